/* SPDX-License-Identifier: Apache-2.0 */
/* Processes of one host: a mesh in memory that they share, see segment.h. */
#include "base/status.h"
#include "base/util.h"
#include "transport/mesh.h"
#include "transport/segment.h"
#include "transport/views.h"

#include <stdlib.h>

typedef struct shm {
    iq_mesh_t mesh;
    iq_segment_t segment; /* not joined: no pair of this rank */
    iq_views_t *views;    /* until somebody asks for them */
} shm_t;

/* What the leader of a host tells everybody, and how everybody fared: one allgather. */
typedef struct offer {
    iq_segment_name_t name;
    int32_t result;
} offer_t;

extern const iq_transport_ops_t iq_transport_shm;

static bool same_host(const iq_peer_t *a, const iq_peer_t *b) { return a->host == b->host; }

static bool shm_connects(const iq_peer_t *a, const iq_peer_t *b) { return a->host == b->host && a->process != b->process; }

static void shm_close(iq_transport_t *transport)
{
    shm_t *self = (shm_t *)transport;
    iq_mesh_detach(&self->mesh);
    iq_segment_leave(&self->segment);
    iq_views_close(self->views);
    free(self);
}

static iq_views_t *shm_views(iq_transport_t *transport)
{
    shm_t *self = (shm_t *)transport;
    iq_views_t *views = self->views;
    self->views = NULL;
    return views;
}

static isgq_result_t shm_prepare(shm_t *self, const iq_transport_params_t *params, const iq_mesh_group_t *group, offer_t *offer)
{
    uint64_t now = iq_now_ns(), left = params->deadline_ns > now ? params->deadline_ns - now : 0;
    size_t bytes = iq_mesh_bytes(group->count, params->slot_bytes, params->slots);
    if (bytes == 0)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: queues of %u ranks, %u slots of %zu bytes", group->count, params->slots,
                       params->slot_bytes);
    if (!group->used)
        return ISGQ_SUCCESS;
    const iq_segment_params_t segment = {
        .user = "shm",
        .token = params->token,
        .shape = {params->slot_bytes, params->slots},
        .bytes = bytes,
        .beyond = params->boards ? group->count * IQ_VIEWS_REGION : 0,
        .ranks = group->ranks,
        .count = group->count,
        .rank = params->rank,
        .deadline_ns = now + left - iq_min(left / 4, 1000000000u), /* the rest is for the last allgather */
    };
    return iq_segment_prepare(&self->segment, &segment, &offer->name);
}

/* Everything between the two allgathers. */
static isgq_result_t shm_join(shm_t *self, const iq_transport_params_t *params, const iq_mesh_group_t *group,
                              const offer_t *offers)
{
    for (int rank = 0; rank < params->nranks; rank++)
        if (offers[rank].result != ISGQ_SUCCESS)
            return IQ_FAIL(ISGQ_ERR_REMOTE, "shm: rank %d could not prepare its part: %s", rank,
                           isgq_get_error_string((isgq_result_t)offers[rank].result));
    if (group->used)
        IQ_TRY(iq_segment_join(&self->segment, &offers[group->ranks[0]].name));
    if (group->used && params->boards)
        self->views = iq_views_open(iq_segment_keep(&self->segment), self->segment.beyond_at, params->nranks, params->rank);
    return iq_mesh_attach(&self->mesh, &iq_transport_shm, params, group, self->segment.memory);
}

/* A rank that fails goes on to make the same allgather calls as the others, so that all learn of it. */
static isgq_result_t shm_open_with(shm_t *self, const iq_transport_params_t *params, offer_t *offers)
{
    iq_mesh_group_t group;
    offer_t offer = {.result = ISGQ_SUCCESS};
    isgq_result_t result = iq_mesh_group_init(&group, params, same_host), exchanged;
    if (result == ISGQ_SUCCESS)
        result = shm_prepare(self, params, &group, &offer);
    offer.result = result;
    exchanged = params->allgather(params->allgather_context, &offer, offers, sizeof(offer));
    if (result == ISGQ_SUCCESS)
        result = exchanged;
    if (result == ISGQ_SUCCESS)
        result = shm_join(self, params, &group, offers);
    iq_segment_settle(&self->segment);
    iq_mesh_group_fini(&group);
    return exchanged == ISGQ_SUCCESS ? iq_transport_agree(params, "shm", result) : result;
}

static isgq_result_t shm_transport_open(const iq_transport_params_t *params, iq_transport_t **transport)
{
    shm_t *self = calloc(1, sizeof(*self));
    offer_t *offers = calloc((size_t)params->nranks, sizeof(*offers));
    isgq_result_t result = self == NULL || offers == NULL ? IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: offers of %d ranks", params->nranks)
                                                          : shm_open_with(self, params, offers);
    free(offers);
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
    .board = iq_mesh_board,
    .views = shm_views,
    .progress = iq_mesh_progress,
    .sleep = iq_mesh_sleep,
    .wake = iq_mesh_wake,
    .close = shm_close,
};
