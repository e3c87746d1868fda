/* SPDX-License-Identifier: Apache-2.0 */
/* The table of transports and the choice among them. Adding one is its file and its row here. */
#include "transport/transport.h"

#include "base/status.h"

#include <stdlib.h>
#include <string.h>

extern const iq_transport_ops_t iq_transport_local, iq_transport_shm, iq_transport_ucx;

const iq_transport_ops_t *const iq_transports[] = {&iq_transport_local, &iq_transport_shm, &iq_transport_ucx, NULL};

static const iq_transport_ops_t *find(const char *name, size_t length)
{
    for (size_t i = 0; iq_transports[i] != NULL; i++)
        if (strlen(iq_transports[i]->name) == length && memcmp(iq_transports[i]->name, name, length) == 0)
            return iq_transports[i];
    return NULL;
}

const iq_transport_ops_t *iq_transport_choose(const char *allowed, const iq_peer_t *a, const iq_peer_t *b)
{
    static const char separators[] = ", \t";
    const char *word = allowed + strspn(allowed, separators);
    while (*word != '\0') {
        size_t length = strcspn(word, separators);
        const iq_transport_ops_t *transport = find(word, length);
        if (transport != NULL && transport->connects(a, b))
            return transport;
        word += length;
        word += strspn(word, separators);
    }
    return NULL;
}

isgq_result_t iq_transport_agree(const iq_transport_params_t *params, const char *name, isgq_result_t own)
{
    int32_t mine = own;
    int32_t *all = calloc((size_t)params->nranks, sizeof(*all));
    isgq_result_t result;
    if (all == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: results of %d ranks", name, params->nranks);

    result = params->allgather(params->allgather_context, &mine, all, sizeof(mine));
    for (int rank = 0; rank < params->nranks && result == ISGQ_SUCCESS && own == ISGQ_SUCCESS; rank++)
        if (all[rank] != ISGQ_SUCCESS)
            result = IQ_FAIL(ISGQ_ERR_REMOTE, "%s: rank %d could not open it: %s", name, rank,
                             isgq_get_error_string((isgq_result_t)all[rank]));
    free(all);
    return own != ISGQ_SUCCESS ? own : result;
}
