/* SPDX-License-Identifier: Apache-2.0 */
/* How ranks that open a wire agree on failure: every rank says whether it could and why not, and all return the first sentence. */
#include "transport/wire.h"

#include "base/status.h"
#include "base/util.h"

#include <stdlib.h>
#include <string.h>

typedef struct verdict {
    int32_t result;
    char why[252];
} verdict_t;

static verdict_t make_verdict(const char *name, isgq_result_t own)
{
    verdict_t verdict = {.result = own};
    const char *text = iq_last_error();
    size_t length = strlen(name);
    if (own == ISGQ_SUCCESS)
        return verdict;
    if (strncmp(text, name, length) == 0 && strncmp(text + length, ": ", 2) == 0) /* it will be there again */
        text += length + 2;
    memcpy(verdict.why, text, iq_min(strlen(text), sizeof(verdict.why) - 1));
    return verdict;
}

/* What came over the network is printed as text. */
static isgq_result_t judge(const char *name, int rank, verdict_t *verdict)
{
    if (verdict->result == ISGQ_SUCCESS)
        return ISGQ_SUCCESS;
    verdict->why[sizeof(verdict->why) - 1] = '\0';
    for (char *c = verdict->why; *c != '\0'; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
    return IQ_FAIL(verdict->result == ISGQ_ERR_NO_MEMORY ? ISGQ_ERR_NO_MEMORY : ISGQ_ERR_UNSUPPORTED, "%s: rank %d: %s", name, rank,
                   verdict->why);
}

isgq_result_t iq_wire_agree(const iq_wire_params_t *params, const char *name, isgq_result_t own)
{
    const verdict_t mine = make_verdict(name, own);
    verdict_t *all = calloc((size_t)params->nranks, sizeof(*all));
    if (all == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: results of %d ranks", name, params->nranks);
    isgq_result_t result = params->allgather(params->allgather_context, &mine, all, sizeof(mine));
    for (int rank = 0; rank < params->nranks && result == ISGQ_SUCCESS; rank++)
        result = judge(name, rank, &all[rank]);
    free(all);
    return result;
}
