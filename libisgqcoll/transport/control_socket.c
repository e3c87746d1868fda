/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sockets of a rendezvous: abstract unix sockets, which vanish with their last holder and whose kernel tells us the other
 * side's user, and TCP bound to one address. All are close-on-exec and non-blocking.
 */
#include "transport/control_internal.h"

#include "base/log.h"
#include "base/util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 4096

typedef struct endpoint {
    struct sockaddr_storage address;
    socklen_t bytes;
} endpoint_t;

const char *iq_address_name(const iq_rendezvous_t *rendezvous, char name[IQ_ADDRESS_NAME_BYTES])
{
    if (rendezvous->kind == IQ_ADDRESS_UNIX)
        snprintf(name, IQ_ADDRESS_NAME_BYTES, "unix:%s", rendezvous->text);
    else
        snprintf(name, IQ_ADDRESS_NAME_BYTES, strchr(rendezvous->text, ':') != NULL ? "tcp:[%s]:%u" : "tcp:%s:%u",
                 rendezvous->text, (unsigned)rendezvous->port);
    return name;
}

bool iq_address_is_loopback(const char *text)
{
    return strcmp(text, "localhost") == 0 || strncmp(text, "127.", 4) == 0 || strcmp(text, "::1") == 0;
}

static void unix_endpoint(const char *name, endpoint_t *endpoint)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strnlen(name, IQ_ADDRESS_TEXT_BYTES - 1);

    memcpy(address.sun_path + 1, name, length); /* the leading NUL makes the name abstract */
    memcpy(&endpoint->address, &address, sizeof(address));
    endpoint->bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

static void set_port(endpoint_t *endpoint, uint16_t port)
{
    if (endpoint->address.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&endpoint->address)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&endpoint->address)->sin_port = htons(port);
}

static uint16_t get_port(const endpoint_t *endpoint)
{
    if (endpoint->address.ss_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)&endpoint->address)->sin6_port);
    return ntohs(((const struct sockaddr_in *)&endpoint->address)->sin_port);
}

/* 0 or a code for gai_strerror. A name takes the resolver's time, an address none. */
static int tcp_endpoint(const char *text, uint16_t port, endpoint_t *endpoint)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(text, NULL, &hints, &found);
    hints.ai_flags = 0;
    if (error == EAI_NONAME)
        error = getaddrinfo(text, NULL, &hints, &found);
    if (error != 0)
        return error;
    memcpy(&endpoint->address, found->ai_addr, found->ai_addrlen);
    endpoint->bytes = found->ai_addrlen;
    freeaddrinfo(found);
    set_port(endpoint, port);
    return 0;
}

static isgq_result_t numeric_address(const struct sockaddr *address, socklen_t bytes, char text[IQ_ADDRESS_TEXT_BYTES])
{
    int error = getnameinfo(address, bytes, text, IQ_ADDRESS_TEXT_BYTES, NULL, 0, NI_NUMERICHOST);
    return error == 0 ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_SYSTEM, "cannot write an address as text: %s", gai_strerror(error));
}

/* Addresses that only mean something together with an interface are of no use to other hosts. */
static bool is_usable(const struct sockaddr *address, int family)
{
    if (address == NULL || address->sa_family != family)
        return false;
    return family == AF_INET || !IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

isgq_result_t iq_interface_address(const char *interface, char text[IQ_ADDRESS_TEXT_BYTES])
{
    static const int families[] = {AF_INET, AF_INET6};
    struct ifaddrs *list;
    isgq_result_t result = ISGQ_IN_PROGRESS; /* not found yet */
    endpoint_t endpoint;

    if (getifaddrs(&list) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "cannot list the network interfaces: %s", strerror(errno));
    for (size_t i = 0; i < IQ_ARRAY_SIZE(families); i++)
        for (struct ifaddrs *entry = list; entry != NULL && result == ISGQ_IN_PROGRESS; entry = entry->ifa_next)
            if (strcmp(entry->ifa_name, interface) == 0 && is_usable(entry->ifa_addr, families[i]))
                result = numeric_address(entry->ifa_addr,
                                         families[i] == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6), text);
    freeifaddrs(list);
    if (result != ISGQ_IN_PROGRESS)
        return result;
    if (tcp_endpoint(interface, 0, &endpoint) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "ISGQ_INTERFACE \"%s\" is neither a network interface with an address nor an address",
                       interface);
    return numeric_address((const struct sockaddr *)&endpoint.address, endpoint.bytes, text);
}

/* Debian maps a host's own name to 127.0.1.1: rank 0 would listen where nobody else can come. */
static void warn_if_unreachable(const char *text, const endpoint_t *endpoint)
{
    char numeric[IQ_ADDRESS_TEXT_BYTES];
    if (!iq_address_is_loopback(text) &&
        numeric_address((const struct sockaddr *)&endpoint->address, endpoint->bytes, numeric) == ISGQ_SUCCESS &&
        iq_address_is_loopback(numeric))
        IQ_WARN("%s is %s on rank 0's host, where other hosts cannot connect: set ISGQ_INTERFACE", text, numeric);
}

static isgq_result_t listen_endpoint(iq_rendezvous_t *rendezvous, const char *interface, endpoint_t *endpoint)
{
    char local[IQ_ADDRESS_TEXT_BYTES];

    if (rendezvous->kind == IQ_ADDRESS_UNIX) {
        unix_endpoint(rendezvous->text, endpoint);
        return ISGQ_SUCCESS;
    }
    snprintf(local, sizeof(local), "%s", rendezvous->text);
    if (interface[0] != '\0')
        IQ_TRY(iq_interface_address(interface, local));
    int error = tcp_endpoint(local, rendezvous->port, endpoint);
    if (error != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "cannot find the address of \"%s\": %s", local, gai_strerror(error));
    warn_if_unreachable(local, endpoint);
    return ISGQ_SUCCESS;
}

static const char *bind_advice(const iq_rendezvous_t *rendezvous, int error)
{
    if (error == EADDRNOTAVAIL)
        return ": rank 0 must run on the host that has this address";
    if (error == EADDRINUSE)
        return rendezvous->kind == IQ_ADDRESS_UNIX ? ": another job of this name is starting; give each its own ISGQ_JOB"
                                                   : ": choose another ISGQ_MASTER_PORT";
    return "";
}

isgq_result_t iq_socket_listen(iq_rendezvous_t *rendezvous, const char *interface, int *fd)
{
    char name[IQ_ADDRESS_NAME_BYTES];
    endpoint_t endpoint;
    int one = 1;

    IQ_TRY(listen_endpoint(rendezvous, interface, &endpoint));
    int socket_fd = socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_fd < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "cannot make a socket for the rendezvous: %s", strerror(errno));
    if (rendezvous->kind == IQ_ADDRESS_TCP)
        setsockopt(socket_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)); /* earlier connections may linger in TIME_WAIT */
    if (bind(socket_fd, (struct sockaddr *)&endpoint.address, endpoint.bytes) != 0 || listen(socket_fd, BACKLOG) != 0 ||
        getsockname(socket_fd, (struct sockaddr *)&endpoint.address, &endpoint.bytes) != 0) {
        int error = errno;
        close(socket_fd);
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "rank 0 cannot listen at %s: %s%s", iq_address_name(rendezvous, name), strerror(error),
                       bind_advice(rendezvous, error));
    }
    if (rendezvous->kind == IQ_ADDRESS_TCP)
        rendezvous->port = get_port(&endpoint);
    *fd = socket_fd;
    return ISGQ_SUCCESS;
}

static bool is_our_user(int fd)
{
    struct ucred cred;
    socklen_t bytes = sizeof(cred);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes) == 0 && cred.uid == geteuid();
}

pid_t iq_socket_peer_pid(int fd)
{
    struct ucred cred;
    socklen_t bytes = sizeof(cred);
    struct sockaddr_storage address;
    socklen_t address_bytes = sizeof(address);

    if (getsockname(fd, (struct sockaddr *)&address, &address_bytes) != 0 || address.ss_family != AF_UNIX)
        return 0;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &bytes) == 0 ? cred.pid : 0;
}

/* Small frames must leave at once; a host that lost power or cable must be noticed although it sends no end of file. */
static void tune_tcp(int fd)
{
    const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 5},
        {IPPROTO_TCP, TCP_KEEPINTVL, 3}, {IPPROTO_TCP, TCP_KEEPCNT, 5}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 20000},
    };
    for (size_t i = 0; i < IQ_ARRAY_SIZE(options); i++)
        if (setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(options[i].value)) != 0)
            IQ_DEBUG("control channel: socket option %d: %s", options[i].name, strerror(errno));
}

int iq_socket_accept(int listen_fd, iq_address_kind_t kind)
{
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == ECONNABORTED || errno == EINTR))
            continue;
        if (fd < 0)
            return -1;
        if (kind == IQ_ADDRESS_UNIX && !is_our_user(fd)) {
            IQ_DEBUG("rendezvous: dropped a process of another user");
            close(fd);
            continue;
        }
        if (kind == IQ_ADDRESS_TCP)
            tune_tcp(fd);
        return fd;
    }
}

/* 0 or errno. */
static int finish_connect(int fd, uint64_t deadline_ns)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
    int error = 0, ready;
    socklen_t bytes = sizeof(error);

    do {
        ready = poll(&poll_fd, 1, iq_poll_ms(deadline_ns));
    } while (ready < 0 && errno == EINTR);
    if (ready <= 0)
        return ready == 0 ? ETIMEDOUT : errno;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
}

int iq_socket_connect(const iq_rendezvous_t *rendezvous, uint64_t deadline_ns, char *reason, size_t reason_bytes)
{
    endpoint_t endpoint;
    int error;

    if (rendezvous->kind == IQ_ADDRESS_UNIX)
        unix_endpoint(rendezvous->text, &endpoint);
    else if ((error = tcp_endpoint(rendezvous->text, rendezvous->port, &endpoint)) != 0) {
        snprintf(reason, reason_bytes, "%s", gai_strerror(error));
        return -1;
    }

    int fd = socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        snprintf(reason, reason_bytes, "%s", strerror(errno));
        return -1;
    }
    error = connect(fd, (struct sockaddr *)&endpoint.address, endpoint.bytes) == 0 ? 0 : errno;
    if (error == EINPROGRESS || error == EINTR)
        error = finish_connect(fd, deadline_ns);
    if (error != 0) {
        snprintf(reason, reason_bytes, "%s", strerror(error));
    } else if (rendezvous->kind == IQ_ADDRESS_UNIX && !is_our_user(fd)) {
        snprintf(reason, reason_bytes, "a process of another user listens there");
        error = EACCES;
    }
    if (error != 0) {
        close(fd);
        return -1;
    }
    if (rendezvous->kind == IQ_ADDRESS_TCP)
        tune_tcp(fd);
    return fd;
}
