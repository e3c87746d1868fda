/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of several ranks, see segment.h. The leader serves connections until all members have come; strangers that find the
 * socket learn nothing and stop nobody.
 *
 *     | header, a cache line | memory |
 */
#include "transport/segment.h"

#include "base/log.h"
#include "base/status.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SEGMENT_MAGIC 0x67736d6851475349ull /* "ISGQhmsg" */
#define BEYOND_UNIT ((uint64_t)2 << 20)     /* what is beyond the memory begins at a multiple */
#define STRANGERS 8                         /* connections beside the members' that may be pending at once */

typedef struct header {
    uint64_t magic, token, shape[2];
    uint32_t version, members;
    char user[16];
    char padding[64 - 4 * 8 - 2 * 4 - 16];
} header_t;

_Static_assert(sizeof(header_t) == IQ_CACHE_LINE, "memory is aligned to cache lines");

/* What a member says when it has connected. */
typedef struct hello {
    uint64_t token;
    int32_t rank;
    uint32_t version;
} hello_t;

static header_t make_header(const iq_segment_params_t *params)
{
    header_t header = {.magic = SEGMENT_MAGIC,
                       .token = params->token,
                       .shape = {params->shape[0], params->shape[1]},
                       .version = ISGQ_VERSION_CODE,
                       .members = params->count};
    memcpy(header.user, params->user, iq_min(strlen(params->user), sizeof(header.user) - 1));
    return header;
}

/* ---- sockets ---- */

static socklen_t socket_address(const iq_segment_name_t *name, struct sockaddr_un *address)
{
    static const char digits[] = "0123456789abcdef";
    static const char prefix[] = "isgqcoll-";
    char *text = address->sun_path + 1; /* a leading NUL makes it abstract */
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    memcpy(text, prefix, sizeof(prefix) - 1);
    text += sizeof(prefix) - 1;
    for (size_t i = 0; i < sizeof(name->bytes); i++) {
        *text++ = digits[name->bytes[i] >> 4];
        *text++ = digits[name->bytes[i] & 15];
    }
    return (socklen_t)(text - (char *)address);
}

static bool peer_is_us(int fd)
{
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t bytes = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

static isgq_result_t send_fd(const iq_segment_t *segment, int socket_fd, int rank)
{
    char byte = 1;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.header), &segment->memory_fd, sizeof(segment->memory_fd));
    if (sendmsg(socket_fd, &message, MSG_NOSIGNAL) == 1)
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: hand the segment to rank %d: %s", segment->params.user, rank, strerror(errno));
}

static isgq_result_t receive_fd(iq_segment_t *segment, int socket_fd)
{
    int leader = segment->params.ranks[0];
    char byte;
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t received = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *header = received == 1 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(&segment->memory_fd, CMSG_DATA(header), sizeof(segment->memory_fd));
        return ISGQ_SUCCESS;
    }
    if (received < 0 && errno == EAGAIN)
        return IQ_FAIL(ISGQ_ERR_TIMEOUT, "%s: rank %d has not handed out the segment before the deadline", segment->params.user,
                       leader);
    return IQ_FAIL(ISGQ_ERR_REMOTE, "%s: rank %d closed the connection instead of handing out the segment", segment->params.user,
                   leader);
}

/* ---- the leader ---- */

static uint64_t beyond_at(const iq_segment_t *segment) { return iq_align_up(segment->mapped, BEYOND_UNIT); }

/* Files are so long without taking anything, unless somebody counts lengths: then that would be a signal, not an error. */
static bool extends(const iq_segment_t *segment)
{
    struct rlimit limit;
    if (segment->params.beyond == 0 || getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY)
        return false;
    return ftruncate(segment->memory_fd, (off_t)(beyond_at(segment) + segment->params.beyond)) == 0;
}

/* Beyond the limit for files, which holds for memory that has a descriptor too, the kernel would end the process by a signal. */
static isgq_result_t check_limit(const iq_segment_t *segment)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < segment->mapped)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: segment of %zu bytes: files are limited to %llu (ulimit -f)", segment->params.user, segment->mapped,
                       (unsigned long long)limit.rlim_cur);
    return ISGQ_SUCCESS;
}

static isgq_result_t create(iq_segment_t *segment)
{
    const iq_segment_params_t *params = &segment->params;
    IQ_TRY(check_limit(segment));
    const header_t header = make_header(params);
    segment->memory_fd = memfd_create("isgqcoll", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (segment->memory_fd < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: memfd_create: %s", params->user, strerror(errno));
    /* Sealed: no process that holds it can shrink it under the others' feet. */
    if ((!extends(segment) && ftruncate(segment->memory_fd, (off_t)segment->mapped) != 0) ||
        pwrite(segment->memory_fd, &header, sizeof(header), 0) != sizeof(header) ||
        fcntl(segment->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: segment of %zu bytes: %s", params->user, segment->mapped, strerror(errno));
    return ISGQ_SUCCESS;
}

static isgq_result_t listen_for_members(iq_segment_t *segment, iq_segment_name_t *name)
{
    const iq_segment_params_t *params = &segment->params;
    struct sockaddr_un address;
    if (getrandom(name, sizeof(*name), 0) != sizeof(*name))
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: getrandom: %s", params->user, strerror(errno));
    segment->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t bytes = socket_address(name, &address);
    if (segment->listen_fd < 0 || bind(segment->listen_fd, (struct sockaddr *)&address, bytes) != 0 ||
        listen(segment->listen_fd, (int)params->count + STRANGERS) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: listen on a unix socket: %s", params->user, strerror(errno));
    return ISGQ_SUCCESS;
}

/* Answer whoever sits behind `fd`. *missing loses the rank if it is one that we wait for; others are ignored. */
static isgq_result_t serve_client(const iq_segment_t *segment, int fd, bool *missing, unsigned *missing_count)
{
    hello_t hello;
    if (recv(fd, &hello, sizeof(hello), 0) != sizeof(hello) || hello.token != segment->params.token ||
        hello.version != ISGQ_VERSION_CODE)
        return ISGQ_SUCCESS;
    for (unsigned member = 0; member < segment->params.count; member++) {
        if (segment->params.ranks[member] != hello.rank || !missing[member])
            continue;
        missing[member] = false;
        --*missing_count;
        return send_fd(segment, fd, hello.rank);
    }
    return ISGQ_SUCCESS;
}

static void accept_client(const iq_segment_t *segment, struct pollfd *clients, nfds_t *count)
{
    int fd = accept4(segment->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0 && peer_is_us(fd))
        clients[(*count)++] = (struct pollfd){.fd = fd, .events = POLLIN};
    else if (fd >= 0)
        close(fd);
}

static int milliseconds_left(uint64_t deadline_ns)
{
    uint64_t now = iq_now_ns();
    return now >= deadline_ns ? 0 : (int)iq_min((deadline_ns - now) / 1000000u + 1, 1000000);
}

/* clients[0] is the listening socket, the rest are connections; a full table simply stops accepting. */
static isgq_result_t serve_clients(const iq_segment_t *segment, struct pollfd *clients, nfds_t room, bool *missing)
{
    isgq_result_t result = ISGQ_SUCCESS;
    unsigned missing_count = segment->params.count - 1;
    nfds_t count = 1;
    clients[0] = (struct pollfd){.fd = segment->listen_fd};
    while (missing_count > 0 && result == ISGQ_SUCCESS && iq_now_ns() < segment->params.deadline_ns) {
        clients[0].events = count < room ? POLLIN : 0;
        int ready = poll(clients, count, milliseconds_left(segment->params.deadline_ns));
        if (ready < 0 && errno != EINTR)
            result =
                IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: poll of %zu connections: %s", segment->params.user, (size_t)count, strerror(errno));
        if (ready <= 0)
            continue;
        for (nfds_t i = count; i-- > 1 && result == ISGQ_SUCCESS;) {
            if (clients[i].revents == 0)
                continue;
            result = serve_client(segment, clients[i].fd, missing, &missing_count);
            close(clients[i].fd);
            clients[i] = clients[--count];
        }
        if (clients[0].revents != 0)
            accept_client(segment, clients, &count);
    }
    while (count > 1)
        close(clients[--count].fd);
    return result;
}

static isgq_result_t serve(const iq_segment_t *segment)
{
    nfds_t room = segment->params.count + STRANGERS;
    struct pollfd *clients = calloc(room, sizeof(*clients));
    bool *missing = calloc(segment->params.count, sizeof(*missing));
    isgq_result_t result;
    if (clients == NULL || missing == NULL) {
        result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: table of %u ranks", segment->params.user, segment->params.count);
        goto free_tables;
    }
    for (unsigned member = 1; member < segment->params.count; member++)
        missing[member] = true;

    result = serve_clients(segment, clients, room, missing);
    for (unsigned member = 1; member < segment->params.count && result == ISGQ_SUCCESS; member++)
        if (missing[member])
            result = IQ_FAIL(ISGQ_ERR_TIMEOUT, "%s: rank %d has not come for the segment before the deadline",
                             segment->params.user, segment->params.ranks[member]);
free_tables:
    free(missing);
    free(clients);
    return result;
}

/* ---- the other members ---- */

static isgq_result_t fetch(iq_segment_t *segment, const iq_segment_name_t *name)
{
    const hello_t hello = {.token = segment->params.token, .rank = segment->params.rank, .version = ISGQ_VERSION_CODE};
    int leader = segment->params.ranks[0], wait_ms = milliseconds_left(segment->params.deadline_ns);
    struct timeval patience = {.tv_sec = wait_ms / 1000, .tv_usec = wait_ms % 1000 * 1000 + 1}; /* 0 would mean for ever */
    struct sockaddr_un address;
    socklen_t bytes = socket_address(name, &address);
    isgq_result_t result;

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s: socket: %s", segment->params.user, strerror(errno));
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
        connect(fd, (struct sockaddr *)&address, bytes) != 0)
        result = IQ_FAIL(ISGQ_ERR_REMOTE, "%s: connect to rank %d: %s", segment->params.user, leader, strerror(errno));
    else if (!peer_is_us(fd))
        result = IQ_FAIL(ISGQ_ERR_REMOTE, "%s: rank %d belongs to another user", segment->params.user, leader);
    else if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
        result = IQ_FAIL(ISGQ_ERR_REMOTE, "%s: write to rank %d: %s", segment->params.user, leader, strerror(errno));
    else
        result = receive_fd(segment, fd);
    close(fd);
    return result;
}

/* ---- all members ---- */

isgq_result_t iq_segment_prepare(iq_segment_t *segment, const iq_segment_params_t *params, iq_segment_name_t *name)
{
    *segment = (iq_segment_t){.params = *params, .memory_fd = -1, .listen_fd = -1};
    if (__builtin_add_overflow(params->bytes, sizeof(header_t), &segment->mapped) || segment->mapped > PTRDIFF_MAX)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: segment of %zu bytes", params->user, params->bytes);
    if (params->rank != params->ranks[0])
        return ISGQ_SUCCESS;
    IQ_TRY(create(segment));
    return listen_for_members(segment, name);
}

/* As long as what is mapped, or with all that is beyond. */
static bool is_long_enough(const iq_segment_t *segment, uint64_t bytes)
{
    return bytes == segment->mapped || (segment->params.beyond != 0 && bytes == beyond_at(segment) + segment->params.beyond);
}

static isgq_result_t map(iq_segment_t *segment)
{
    const iq_segment_params_t *params = &segment->params;
    const header_t expected = make_header(params);
    struct stat file;
    int seals = fcntl(segment->memory_fd, F_GET_SEALS);
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW) ||
        fstat(segment->memory_fd, &file) != 0 || !is_long_enough(segment, (uint64_t)file.st_size))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s: the segment of rank %d is not sealed or not %zu bytes long", params->user,
                       params->ranks[0], segment->mapped);
    void *mapping = mmap(NULL, segment->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, segment->memory_fd, 0);
    if (mapping == MAP_FAILED)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: map %zu bytes: %s", params->user, segment->mapped, strerror(errno));
    segment->mapping = mapping;
    if (memcmp(mapping, &expected, sizeof(expected)) != 0)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s: the segment of rank %d belongs to another communicator", params->user,
                       params->ranks[0]);
    segment->memory = (unsigned char *)mapping + sizeof(header_t);
    if ((uint64_t)file.st_size != segment->mapped)
        segment->beyond_at = beyond_at(segment);
    IQ_DEBUG("%s: %u ranks share a segment of %zu bytes", params->user, params->count, segment->mapped);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_segment_join(iq_segment_t *segment, const iq_segment_name_t *name)
{
    IQ_TRY(segment->listen_fd >= 0 ? serve(segment) : fetch(segment, name));
    return map(segment);
}

int iq_segment_keep(const iq_segment_t *segment)
{
    return segment->beyond_at == 0 ? -1 : fcntl(segment->memory_fd, F_DUPFD_CLOEXEC, 0);
}

void iq_segment_settle(iq_segment_t *segment)
{
    if (segment->params.user == NULL)
        return;
    if (segment->memory_fd >= 0)
        close(segment->memory_fd);
    if (segment->listen_fd >= 0)
        close(segment->listen_fd);
    segment->memory_fd = segment->listen_fd = -1;
}

void iq_segment_leave(iq_segment_t *segment)
{
    if (segment->mapping != NULL)
        munmap(segment->mapping, segment->mapped);
    segment->mapping = segment->memory = NULL;
}
