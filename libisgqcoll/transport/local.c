/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that are threads of one process. The smallest transport: a mesh over ordinary memory.
 *
 * Ranks meet in a process-wide table of rooms, keyed by the communicator's token. Whoever comes first makes the room; a rank may close
 * while others still use it, so the last one to leave frees it.
 */
#include "base/status.h"
#include "base/util.h"
#include "transport/mesh.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct room {
    struct room *next;
    uint64_t token;
    size_t bytes;
    unsigned users;
    void *allocation;
    void *memory; /* `allocation` rounded up to a cache line */
} room_t;

typedef struct local {
    iq_mesh_t mesh;
    room_t *room; /* NULL: no pair of this rank is local */
} local_t;

extern const iq_transport_ops_t iq_transport_local;

static pthread_mutex_t rooms_lock = PTHREAD_MUTEX_INITIALIZER;
static room_t *rooms;

static bool local_connects(const iq_peer_t *a, const iq_peer_t *b) { return a->process == b->process; }

/* ---- rooms; all with rooms_lock held ---- */

static room_t *room_find(uint64_t token, size_t bytes)
{
    for (room_t *room = rooms; room != NULL; room = room->next)
        if (room->token == token && room->bytes == bytes)
            return room;
    return NULL;
}

static room_t *room_create(uint64_t token, size_t bytes)
{
    room_t *room = malloc(sizeof(*room));
    void *allocation = calloc(1, bytes + IQ_CACHE_LINE); /* calloc: pages nobody touches are never made */
    if (room == NULL || allocation == NULL) {
        free(allocation);
        free(room);
        return NULL;
    }
    *room = (room_t){.next = rooms, .token = token, .bytes = bytes, .allocation = allocation};
    room->memory = (void *)iq_align_up((uintptr_t)allocation, IQ_CACHE_LINE);
    rooms = room;
    return room;
}

static void room_destroy(room_t *room)
{
    room_t **place = &rooms;
    while (*place != room)
        place = &(*place)->next;
    *place = room->next;
    free(room->allocation);
    free(room);
}

/* ---- open, close ---- */

static isgq_result_t room_enter(const iq_transport_params_t *params, unsigned members, room_t **entered)
{
    size_t bytes = iq_mesh_bytes(members, params->slot_bytes, params->slots);
    room_t *room = NULL;
    pthread_mutex_lock(&rooms_lock);
    if (bytes != 0) {
        room = room_find(params->token, bytes);
        if (room == NULL)
            room = room_create(params->token, bytes);
    }
    if (room != NULL)
        room->users++;
    pthread_mutex_unlock(&rooms_lock);
    if (room == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "local: %zu bytes for the queues of %u ranks", bytes, members);
    *entered = room;
    return ISGQ_SUCCESS;
}

static void room_leave(room_t *room)
{
    if (room == NULL)
        return;
    pthread_mutex_lock(&rooms_lock);
    if (--room->users == 0)
        room_destroy(room);
    pthread_mutex_unlock(&rooms_lock);
}

static void local_close(iq_transport_t *transport)
{
    local_t *self = (local_t *)transport;
    iq_mesh_detach(&self->mesh);
    room_leave(self->room);
    free(self);
}

static isgq_result_t local_join(local_t *self, const iq_transport_params_t *params)
{
    iq_mesh_group_t group;
    isgq_result_t result;
    IQ_TRY(iq_mesh_group_init(&group, params, local_connects));
    result = group.used ? room_enter(params, group.count, &self->room) : ISGQ_SUCCESS;
    if (result == ISGQ_SUCCESS)
        result = iq_mesh_attach(&self->mesh, &iq_transport_local, params, &group, self->room == NULL ? NULL : self->room->memory);
    iq_mesh_group_fini(&group);
    return result;
}

static isgq_result_t local_open(const iq_transport_params_t *params, iq_transport_t **transport)
{
    isgq_result_t result;
    local_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "local: %zu bytes", sizeof(*self));
    else
        result = local_join(self, params);

    /* Nobody leaves the room before all have entered it: otherwise a latecomer would find none and make a second one. */
    result = iq_transport_agree(params, "local", result);
    if (result != ISGQ_SUCCESS) {
        if (self != NULL)
            local_close(&self->mesh.base);
        return result;
    }
    *transport = &self->mesh.base;
    return ISGQ_SUCCESS;
}

const iq_transport_ops_t iq_transport_local = {
    .name = "local",
    .connects = local_connects,
    .open = local_open,
    .link = iq_mesh_link,
    .board = iq_mesh_board,
    .progress = iq_mesh_progress,
    .sleep = iq_mesh_sleep,
    .wake = iq_mesh_wake,
    .close = local_close,
};
