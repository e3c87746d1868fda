/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes of one host: a mesh in a memfd.
 *
 * The first rank of a host (the leader) makes the memory and listens on an abstract unix socket under a random name, which travels by
 * allgather; the others connect and are handed the descriptor. Neither has a name in any file system, and both descriptors are closed before
 * open returns, so nothing is left behind however the processes end.
 *
 *     | header, a cache line | the mesh |
 */
#include "base/log.h"
#include "base/status.h"
#include "base/util.h"
#include "transport/mesh.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SEGMENT_MAGIC 0x67736d6851475349ull /* "ISGQhmsg" */
#define STRANGERS 8                         /* connections beside the members' that may be pending at once */

typedef struct segment {
    uint64_t magic, token, slot_bytes;
    uint32_t version, members, slots;
    char padding[64 - 3 * 8 - 3 * 4];
} segment_t;

/* What the leader tells everybody: one allgather. */
typedef struct offer {
    uint8_t name[16];
    int32_t result;
} offer_t;

/* What a member says when it has connected. */
typedef struct hello {
    uint64_t token;
    int32_t rank;
    uint32_t version;
} hello_t;

typedef struct shm {
    iq_mesh_t mesh;
    segment_t *segment; /* NULL: no pair of this rank */
    size_t bytes;
} shm_t;

/* Lives during open only. */
typedef struct setup {
    const iq_transport_params_t *params;
    iq_mesh_group_t group;
    uint64_t deadline_ns;
    size_t bytes;
    offer_t offer;
    int memory_fd, listen_fd;
} setup_t;

extern const iq_transport_ops_t iq_transport_shm;

static bool same_host(const iq_peer_t *a, const iq_peer_t *b) { return a->host == b->host; }

static bool shm_connects(const iq_peer_t *a, const iq_peer_t *b) { return a->host == b->host && a->process != b->process; }

static bool is_leader(const setup_t *setup) { return setup->group.used && setup->group.self == 0; }

/* ---- sockets ---- */

static socklen_t socket_address(const uint8_t name[16], struct sockaddr_un *address)
{
    static const char digits[] = "0123456789abcdef";
    static const char prefix[] = "isgqcoll-";
    char *text = address->sun_path + 1; /* a leading NUL makes it abstract */
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    memcpy(text, prefix, sizeof(prefix) - 1);
    text += sizeof(prefix) - 1;
    for (size_t i = 0; i < 16; i++) {
        *text++ = digits[name[i] >> 4];
        *text++ = digits[name[i] & 15];
    }
    return (socklen_t)(text - (char *)address);
}

static bool peer_is_us(int fd)
{
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t bytes = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

static isgq_result_t send_fd(int socket_fd, int fd, int rank)
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
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    if (sendmsg(socket_fd, &message, MSG_NOSIGNAL) == 1)
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: hand the segment to rank %d: %s", rank, strerror(errno));
}

static isgq_result_t receive_fd(int socket_fd, int leader, int *fd)
{
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
        memcpy(fd, CMSG_DATA(header), sizeof(*fd));
        return ISGQ_SUCCESS;
    }
    if (received < 0 && errno == EAGAIN)
        return IQ_FAIL(ISGQ_ERR_TIMEOUT, "shm: rank %d has not handed out the segment before the deadline", leader);
    return IQ_FAIL(ISGQ_ERR_REMOTE, "shm: rank %d closed the connection instead of handing out the segment", leader);
}

/* ---- the leader ---- */

static isgq_result_t create_segment(setup_t *setup)
{
    const iq_transport_params_t *params = setup->params;
    const segment_t header = {.magic = SEGMENT_MAGIC,
                              .token = params->token,
                              .slot_bytes = params->slot_bytes,
                              .version = ISGQ_VERSION_CODE,
                              .members = setup->group.count,
                              .slots = params->slots};
    setup->memory_fd = memfd_create("isgqcoll", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (setup->memory_fd < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: memfd_create: %s", strerror(errno));
    /* Sealed: no process that holds it can shrink it under the others' feet. */
    if (ftruncate(setup->memory_fd, (off_t)setup->bytes) != 0 ||
        pwrite(setup->memory_fd, &header, sizeof(header), 0) != sizeof(header) ||
        fcntl(setup->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: segment of %zu bytes: %s", setup->bytes, strerror(errno));
    return ISGQ_SUCCESS;
}

static isgq_result_t make_offer(setup_t *setup)
{
    struct sockaddr_un address;
    if (!is_leader(setup))
        return ISGQ_SUCCESS;
    IQ_TRY(create_segment(setup));
    if (getrandom(setup->offer.name, sizeof(setup->offer.name), 0) != sizeof(setup->offer.name))
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: getrandom: %s", strerror(errno));
    setup->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t bytes = socket_address(setup->offer.name, &address);
    if (setup->listen_fd < 0 || bind(setup->listen_fd, (struct sockaddr *)&address, bytes) != 0 ||
        listen(setup->listen_fd, (int)setup->group.count + STRANGERS) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: listen on a unix socket: %s", strerror(errno));
    return ISGQ_SUCCESS;
}

/* Answer whoever sits behind `fd`. *missing loses the rank if it is one that we wait for; others are ignored. */
static isgq_result_t serve_client(const setup_t *setup, int fd, bool *missing, unsigned *missing_count)
{
    hello_t hello;
    if (recv(fd, &hello, sizeof(hello), 0) != sizeof(hello) || hello.token != setup->params->token ||
        hello.version != ISGQ_VERSION_CODE)
        return ISGQ_SUCCESS;
    for (unsigned member = 0; member < setup->group.count; member++) {
        if (setup->group.ranks[member] != hello.rank || !missing[member])
            continue;
        missing[member] = false;
        --*missing_count;
        return send_fd(fd, setup->memory_fd, hello.rank);
    }
    return ISGQ_SUCCESS;
}

static void accept_client(const setup_t *setup, struct pollfd *clients, nfds_t *count)
{
    int fd = accept4(setup->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
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
static isgq_result_t serve_clients(const setup_t *setup, struct pollfd *clients, nfds_t room, bool *missing)
{
    isgq_result_t result = ISGQ_SUCCESS;
    unsigned missing_count = setup->group.count - 1;
    nfds_t count = 1;
    clients[0] = (struct pollfd){.fd = setup->listen_fd};
    while (missing_count > 0 && result == ISGQ_SUCCESS && iq_now_ns() < setup->deadline_ns) {
        clients[0].events = count < room ? POLLIN : 0;
        int ready = poll(clients, count, milliseconds_left(setup->deadline_ns));
        if (ready < 0 && errno != EINTR)
            result = IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: poll of %zu connections: %s", (size_t)count, strerror(errno));
        if (ready <= 0)
            continue;
        for (nfds_t i = count; i-- > 1 && result == ISGQ_SUCCESS;) {
            if (clients[i].revents == 0)
                continue;
            result = serve_client(setup, clients[i].fd, missing, &missing_count);
            close(clients[i].fd);
            clients[i] = clients[--count];
        }
        if (clients[0].revents != 0)
            accept_client(setup, clients, &count);
    }
    while (count > 1)
        close(clients[--count].fd);
    return result;
}

static isgq_result_t serve(const setup_t *setup)
{
    nfds_t room = setup->group.count + STRANGERS;
    struct pollfd *clients = calloc(room, sizeof(*clients));
    bool *missing = calloc(setup->group.count, sizeof(*missing));
    isgq_result_t result;
    if (clients == NULL || missing == NULL) {
        result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: table of %u ranks", setup->group.count);
        goto free_tables;
    }
    for (unsigned member = 1; member < setup->group.count; member++)
        missing[member] = true;

    result = serve_clients(setup, clients, room, missing);
    for (unsigned member = 1; member < setup->group.count && result == ISGQ_SUCCESS; member++)
        if (missing[member])
            result = IQ_FAIL(ISGQ_ERR_TIMEOUT, "shm: rank %d has not come for the segment before the deadline",
                             setup->group.ranks[member]);
free_tables:
    free(missing);
    free(clients);
    return result;
}

/* ---- the other members ---- */

static isgq_result_t fetch(setup_t *setup, const offer_t *offer)
{
    const hello_t hello = {.token = setup->params->token, .rank = setup->params->rank, .version = ISGQ_VERSION_CODE};
    int leader = setup->group.ranks[0], wait_ms = milliseconds_left(setup->deadline_ns);
    struct timeval patience = {.tv_sec = wait_ms / 1000, .tv_usec = wait_ms % 1000 * 1000 + 1}; /* 0 would mean for ever */
    struct sockaddr_un address;
    socklen_t bytes = socket_address(offer->name, &address);
    isgq_result_t result;

    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "shm: socket: %s", strerror(errno));
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
        connect(fd, (struct sockaddr *)&address, bytes) != 0)
        result = IQ_FAIL(ISGQ_ERR_REMOTE, "shm: connect to rank %d: %s", leader, strerror(errno));
    else if (!peer_is_us(fd))
        result = IQ_FAIL(ISGQ_ERR_REMOTE, "shm: rank %d belongs to another user", leader);
    else if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
        result = IQ_FAIL(ISGQ_ERR_REMOTE, "shm: write to rank %d: %s", leader, strerror(errno));
    else
        result = receive_fd(fd, leader, &setup->memory_fd);
    close(fd);
    return result;
}

/* ---- open, close ---- */

static isgq_result_t map_segment(shm_t *self, const setup_t *setup)
{
    const iq_transport_params_t *params = setup->params;
    struct stat file;
    int seals = fcntl(setup->memory_fd, F_GET_SEALS);
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW) ||
        fstat(setup->memory_fd, &file) != 0 || (size_t)file.st_size != setup->bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "shm: the segment of rank %d is not sealed or not %zu bytes long", setup->group.ranks[0],
                       setup->bytes);
    void *memory = mmap(NULL, setup->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, setup->memory_fd, 0);
    if (memory == MAP_FAILED)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: map %zu bytes: %s", setup->bytes, strerror(errno));
    self->segment = memory;
    self->bytes = setup->bytes;
    const segment_t *header = self->segment;
    if (header->magic != SEGMENT_MAGIC || header->token != params->token || header->version != ISGQ_VERSION_CODE ||
        header->members != setup->group.count || header->slots != params->slots || header->slot_bytes != params->slot_bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "shm: the segment of rank %d belongs to another communicator", setup->group.ranks[0]);
    IQ_DEBUG("shm: %u ranks share a segment of %zu bytes", setup->group.count, setup->bytes);
    return ISGQ_SUCCESS;
}

static void shm_close(iq_transport_t *transport)
{
    shm_t *self = (shm_t *)transport;
    iq_mesh_detach(&self->mesh);
    if (self->segment != NULL)
        munmap(self->segment, self->bytes);
    free(self);
}

/* Everything between the two allgathers. */
static isgq_result_t shm_join(shm_t *self, setup_t *setup, const offer_t *offers)
{
    void *memory = NULL;
    for (int rank = 0; rank < setup->params->nranks; rank++)
        if (offers[rank].result != ISGQ_SUCCESS)
            return IQ_FAIL(ISGQ_ERR_REMOTE, "shm: rank %d could not prepare its part: %s", rank,
                           isgq_get_error_string((isgq_result_t)offers[rank].result));
    if (setup->group.used) {
        IQ_TRY(setup->group.self == 0 ? serve(setup) : fetch(setup, &offers[setup->group.ranks[0]]));
        IQ_TRY(map_segment(self, setup));
        memory = self->segment + 1;
    }
    return iq_mesh_attach(&self->mesh, &iq_transport_shm, setup->params, &setup->group, memory);
}

static isgq_result_t setup_init(setup_t *setup, const iq_transport_params_t *params)
{
    uint64_t now = iq_now_ns(), left = params->deadline_ns > now ? params->deadline_ns - now : 0;
    *setup = (setup_t){.params = params, .memory_fd = -1, .listen_fd = -1};
    setup->deadline_ns = now + left - iq_min(left / 4, 1000000000u); /* the rest is for the last allgather */
    IQ_TRY(iq_mesh_group_init(&setup->group, params, same_host));
    size_t mesh_bytes = iq_mesh_bytes(setup->group.count, params->slot_bytes, params->slots);
    if (mesh_bytes == 0 || __builtin_add_overflow(mesh_bytes, sizeof(segment_t), &setup->bytes))
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: queues of %u ranks, %u slots of %zu bytes", setup->group.count, params->slots,
                       params->slot_bytes);
    return make_offer(setup);
}

static void setup_fini(setup_t *setup)
{
    if (setup->memory_fd >= 0)
        close(setup->memory_fd);
    if (setup->listen_fd >= 0)
        close(setup->listen_fd);
    iq_mesh_group_fini(&setup->group);
}

/* A rank that fails goes on to make the same allgather calls as the others, so that all learn of it. */
static isgq_result_t shm_transport_open(const iq_transport_params_t *params, iq_transport_t **transport)
{
    setup_t setup;
    isgq_result_t result = setup_init(&setup, params), exchanged;
    shm_t *self = calloc(1, sizeof(*self));
    offer_t *offers = calloc((size_t)params->nranks, sizeof(*offers));
    if (result == ISGQ_SUCCESS && (self == NULL || offers == NULL))
        result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: offers of %d ranks", params->nranks);
    if (offers == NULL)
        goto free_setup;

    setup.offer.result = result;
    exchanged = params->allgather(params->allgather_context, &setup.offer, offers, sizeof(*offers));
    if (result == ISGQ_SUCCESS)
        result = exchanged;
    if (result == ISGQ_SUCCESS)
        result = shm_join(self, &setup, offers);
    if (exchanged == ISGQ_SUCCESS)
        result = iq_transport_agree(params, "shm", result);

free_setup:
    free(offers);
    setup_fini(&setup);
    if (result == ISGQ_SUCCESS)
        *transport = &self->mesh.base;
    else if (self != NULL)
        shm_close(&self->mesh.base);
    return result;
}

const iq_transport_ops_t iq_transport_shm = {
    .name = "shm",
    .connects = shm_connects,
    .open = shm_transport_open,
    .link = iq_mesh_link,
    .progress = iq_mesh_progress,
    .sleep = iq_mesh_sleep,
    .wake = iq_mesh_wake,
    .close = shm_close,
};
