/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libisgqcoll, opened when it is first needed: a preloaded object gets into every process of a job, shells included, and must cost
 * those nothing.
 */
#ifndef ISGQ_PRELOAD_LIBRARY_H
#define ISGQ_PRELOAD_LIBRARY_H

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

/* What the bindings call. */
#define IQ_LIBRARY_FUNCTIONS(X) \
    X(get_version)              \
    X(get_last_error)           \
    X(get_error_string)         \
    X(get_unique_id)            \
    X(comm_init_rank)           \
    X(comm_init_oob)            \
    X(comm_init_nccl)           \
    X(comm_split)               \
    X(comm_count)               \
    X(comm_user_rank)           \
    X(comm_get_async_error)     \
    X(group_start)              \
    X(group_end)                \
    X(reduce_scatter)           \
    X(allgather)                \
    X(broadcast)                \
    X(comm_finalize)            \
    X(comm_destroy)             \
    X(comm_abort)               \
    X(comm_synchronize)         \
    X(comm_get_sequence)        \
    X(comm_test)                \
    X(comm_get_stats)           \
    X(quantizer_create)         \
    X(quantizer_destroy)        \
    X(allreduce)

typedef struct iq_library {
#define X(name) __typeof__(&isgq_##name) name;
    IQ_LIBRARY_FUNCTIONS(X)
#undef X
    __typeof__(&isgqx_use_nccl) use_nccl;
} iq_library_t;

/* The library, or NULL and *error says why not. Any thread; the answer never changes. */
const iq_library_t *iq_library(const char **error);

#endif
