/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unique ids: where rank 0 listens and the secret, in 128 bytes that the program hands around.
 *
 *     0        8        12        16     20     24         88         120
 *     | magic  | format | version | kind | port | text     | secret   | checksum
 *
 * Whoever makes an id listens from that moment on, so ranks may knock before rank 0 has joined. Until then the socket waits in a
 * list.
 */
#include "base/config.h"
#include "base/util.h"
#include "transport/auth.h"
#include "transport/control_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ID_MAGIC 0x31444951475349ffull /* a byte that no text has, "ISGQID1" */
#define ID_FORMAT 1
#define ID_CHECKED_BYTES 120

typedef struct listener {
    struct listener *next;
    pid_t process; /* a forked child inherits the list, but must not share the socket with its parent */
    int fd;
    isgq_unique_id_t id;
} listener_t;

static pthread_mutex_t listeners_lock = PTHREAD_MUTEX_INITIALIZER;
static listener_t *listeners;

static void encode_id(const iq_rendezvous_t *rendezvous, isgq_unique_id_t *id)
{
    iq_pack_t pack = {.used = 0};

    iq_pack_u64(&pack, ID_MAGIC);
    iq_pack_u32(&pack, ID_FORMAT);
    iq_pack_u32(&pack, ISGQ_VERSION_CODE);
    iq_pack_u32(&pack, (uint32_t)rendezvous->kind);
    iq_pack_u32(&pack, rendezvous->port);
    iq_pack_bytes(&pack, rendezvous->text, sizeof(rendezvous->text));
    iq_pack_bytes(&pack, rendezvous->secret, sizeof(rendezvous->secret));
    iq_pack_u64(&pack, iq_hash(IQ_HASH_START, pack.data, pack.used));
    iq_assert(pack.used == sizeof(id->internal));
    memcpy(id->internal, pack.data, sizeof(id->internal));
    iq_auth_wipe(&pack, sizeof(pack));
}

static isgq_result_t decode_id(const isgq_unique_id_t *id, iq_rendezvous_t *rendezvous)
{
    iq_unpack_t unpack = {.data = (const uint8_t *)id->internal, .left = sizeof(id->internal)};

    if (iq_unpack_u64(&unpack) != ID_MAGIC)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "these bytes are no unique id");
    uint32_t format = iq_unpack_u32(&unpack), version = iq_unpack_u32(&unpack);
    if (format != ID_FORMAT || version != ISGQ_VERSION_CODE)
        return IQ_FAIL(ISGQ_ERR_MISMATCH, "the unique id is of library version %u.%u.%u, this library is %d.%d.%d",
                       version / 10000, version / 100 % 100, version % 100, ISGQ_VERSION_MAJOR, ISGQ_VERSION_MINOR,
                       ISGQ_VERSION_PATCH);

    memset(rendezvous, 0, sizeof(*rendezvous));
    uint32_t kind = iq_unpack_u32(&unpack), port = iq_unpack_u32(&unpack);
    iq_unpack_bytes(&unpack, rendezvous->text, sizeof(rendezvous->text));
    iq_unpack_bytes(&unpack, rendezvous->secret, sizeof(rendezvous->secret));
    if (iq_unpack_u64(&unpack) != iq_hash(IQ_HASH_START, id->internal, ID_CHECKED_BYTES) || kind > IQ_ADDRESS_TCP ||
        port > 65535 || memchr(rendezvous->text, '\0', sizeof(rendezvous->text)) == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "the unique id is damaged");
    rendezvous->kind = (iq_address_kind_t)kind;
    rendezvous->port = (uint16_t)port;
    rendezvous->has_secret = true;
    rendezvous->listen_fd = -1;
    return ISGQ_SUCCESS;
}

/* A fresh place: TCP if the user named an interface, else a unix socket of a name that nobody can guess. */
static isgq_result_t choose_place(iq_rendezvous_t *rendezvous)
{
    const char *interface = iq_config()->interface;
    uint8_t noise[16];

    *rendezvous = (iq_rendezvous_t){.kind = IQ_ADDRESS_UNIX, .has_secret = true, .listen_fd = -1};
    IQ_TRY(iq_random_bytes(rendezvous->secret, sizeof(rendezvous->secret)));
    if (interface[0] != '\0') {
        rendezvous->kind = IQ_ADDRESS_TCP;
        IQ_TRY(iq_interface_address(interface, rendezvous->text));
        return iq_auth_permits(rendezvous);
    }
    IQ_TRY(iq_random_bytes(noise, sizeof(noise)));
    int used = snprintf(rendezvous->text, sizeof(rendezvous->text), "isgq.");
    for (size_t i = 0; i < sizeof(noise); i++)
        used += snprintf(rendezvous->text + used, sizeof(rendezvous->text) - (size_t)used, "%02x", noise[i]);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_rendezvous_new_id(isgq_unique_id_t *id)
{
    iq_rendezvous_t rendezvous;
    listener_t *listener = calloc(1, sizeof(*listener));
    isgq_result_t result;

    if (listener == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "no memory for a unique id");
    result = choose_place(&rendezvous);
    if (result == ISGQ_SUCCESS)
        result = iq_socket_listen(&rendezvous, "", &listener->fd);
    if (result != ISGQ_SUCCESS) {
        free(listener);
        return result;
    }
    encode_id(&rendezvous, &listener->id);
    *id = listener->id;
    listener->process = getpid();
    pthread_mutex_lock(&listeners_lock);
    listener->next = listeners;
    listeners = listener;
    pthread_mutex_unlock(&listeners_lock);
    return ISGQ_SUCCESS;
}

/* The socket that listens for this id, -1 if there is none in this process (any more). */
static int take_listener(const isgq_unique_id_t *id)
{
    int fd = -1;

    pthread_mutex_lock(&listeners_lock);
    for (listener_t **link = &listeners; *link != NULL; link = &(*link)->next) {
        listener_t *listener = *link;
        if (listener->process != getpid() || memcmp(&listener->id, id, sizeof(*id)) != 0)
            continue;
        *link = listener->next;
        fd = listener->fd;
        iq_auth_wipe(&listener->id, sizeof(listener->id));
        free(listener);
        break;
    }
    pthread_mutex_unlock(&listeners_lock);
    return fd;
}

void iq_rendezvous_drop_id(const isgq_unique_id_t *id)
{
    int fd = take_listener(id);
    if (fd >= 0)
        close(fd);
}

isgq_result_t iq_rendezvous_from_id(const isgq_unique_id_t *id, int rank, iq_rendezvous_t *rendezvous)
{
    iq_rendezvous_t decoded;

    IQ_TRY(decode_id(id, &decoded));
    if (rank == 0) {
        decoded.listen_fd = take_listener(id);
        if (decoded.listen_fd < 0)
            return IQ_FAIL(ISGQ_ERR_INVALID_USAGE,
                           "rank 0 must join in the process that made the unique id, and an id serves only once");
    }
    *rendezvous = decoded;
    iq_auth_wipe(decoded.secret, sizeof(decoded.secret));
    return ISGQ_SUCCESS;
}
