/* SPDX-License-Identifier: Apache-2.0 */
/* Questions to a communicator, and waiting for it. */
#include "base/config.h"
#include "base/util.h"
#include "core/comm.h"
#include "core/exec_stream.h"

#include <string.h>

#define CHECK_OUTPUT(operation, pointer)                                                             \
    do {                                                                                             \
        if ((pointer) == NULL)                                                                       \
            return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s is NULL", operation, #pointer);        \
    } while (0)

const char *isgq_get_error_string(isgq_result_t result)
{
    switch (result) {
#define ISGQ_X(name, value, text) \
    case ISGQ_##name:             \
        return text;
        ISGQ_RESULT_MAP(ISGQ_X)
#undef ISGQ_X
    }
    return "unknown status";
}

const char *isgq_get_last_error(void) { return iq_last_error(); }

isgq_result_t isgq_get_version(int *version_code)
{
    CHECK_OUTPUT("get_version", version_code);
    *version_code = ISGQ_VERSION_CODE;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_get_config_var(size_t index, isgq_config_var_t *var)
{
    CHECK_OUTPUT("get_config_var", var);
    return iq_config_describe(index, var);
}

static uint64_t submitted(isgq_comm_t comm) { return atomic_load(&comm->submitted); }

isgq_result_t isgq_comm_synchronize(isgq_comm_t comm)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_synchronize"));
    return iq_progress_synchronize(comm);
}

isgq_result_t isgq_comm_get_sequence(isgq_comm_t comm, uint64_t *sequence)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_get_sequence"));
    CHECK_OUTPUT("comm_get_sequence", sequence);
    *sequence = submitted(comm);
    return ISGQ_SUCCESS;
}

/* A call that was made. */
static isgq_result_t check_sequence(isgq_comm_t comm, uint64_t sequence, const char *operation)
{
    IQ_TRY(iq_comm_check_handle(comm, operation));
    uint64_t last = submitted(comm);
    if (sequence > last)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: call %llu was not made; the last is %llu", operation, (unsigned long long)sequence,
                       (unsigned long long)last);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_wait(isgq_comm_t comm, uint64_t sequence)
{
    IQ_TRY(check_sequence(comm, sequence, "comm_wait"));
    return iq_progress_wait(comm, sequence, IQ_FOREVER);
}

isgq_result_t isgq_comm_wait_for(isgq_comm_t comm, uint64_t sequence, uint32_t milliseconds, int *done)
{
    IQ_TRY(check_sequence(comm, sequence, "comm_wait_for"));
    CHECK_OUTPUT("comm_wait_for", done);
    IQ_TRY(iq_progress_wait(comm, sequence, iq_now_ns() + milliseconds * 1000000ull));
    *done = atomic_load(&comm->completed) >= sequence;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_test(isgq_comm_t comm, uint64_t sequence, int *done)
{
    IQ_TRY(check_sequence(comm, sequence, "comm_test"));
    CHECK_OUTPUT("comm_test", done);
    *done = atomic_load(&comm->completed) >= sequence;
    return *done ? ISGQ_SUCCESS : iq_comm_check(comm);
}

const char *isgq_comm_get_last_error(isgq_comm_t comm)
{
    return comm == NULL || atomic_load(&comm->failed) == 0 ? "" : comm->failure_text;
}

isgq_result_t isgq_comm_count(isgq_comm_t comm, int *nranks)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_count"));
    CHECK_OUTPUT("comm_count", nranks);
    *nranks = comm->nranks;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_user_rank(isgq_comm_t comm, int *rank)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_user_rank"));
    CHECK_OUTPUT("comm_user_rank", rank);
    *rank = comm->rank;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_get_async_error(isgq_comm_t comm, isgq_result_t *async_error)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_get_async_error"));
    CHECK_OUTPUT("comm_get_async_error", async_error);
    *async_error = (isgq_result_t)atomic_load(&comm->failed);
    if (*async_error == ISGQ_SUCCESS) /* a stream may be past its call before the news of its failure are here */
        *async_error = iq_stream_verdict(comm);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_get_stats(isgq_comm_t comm, isgq_stats_t *stats)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_get_stats"));
    CHECK_OUTPUT("comm_get_stats", stats);
    size_t size = stats->size;
    if (size < sizeof(size_t))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "comm_get_stats: stats->size is %zu", size);
    pthread_mutex_lock(&comm->queue_lock);
    memcpy(stats, &comm->stats, iq_min(size, sizeof(comm->stats)));
    pthread_mutex_unlock(&comm->queue_lock);
    stats->size = size;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_reset_stats(isgq_comm_t comm)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_reset_stats"));
    pthread_mutex_lock(&comm->queue_lock);
    memset(&comm->stats, 0, sizeof(comm->stats));
    comm->own_bytes = 0;
    pthread_mutex_unlock(&comm->queue_lock);
    return ISGQ_SUCCESS;
}
