/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs one function on N ranks: threads of this process, forked processes, or forked processes that count as different hosts.
 *
 * A rank that finds something wrong records a sentence and jumps out of its body; its communicator is destroyed, so the others
 * wake. When all have ended, iq_ranks_run fails the test in the caller's thread with everybody's sentences. All that ranks
 * share beside the communicator (id, sentences, values, flags, a barrier) lies in one shared mapping, so it works alike for
 * threads and processes. A rank that does not end within the watchdog's time is named and killed.
 *
 * Forked ranks read their environment at their first library call: run them before the parent's own first call.
 *
 * In a lab (netlab.py --outside) ranks of every kind are processes, and rank r lives in host r % hosts, a network namespace.
 */
#ifndef ISGQ_TEST_SUPPORT_RANKS_H
#define ISGQ_TEST_SUPPORT_RANKS_H

#include "isgqcoll_ext.h"
#include "netlab/lab.h"

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define IQ_RANKS_MOST 32
#define IQ_RANK_VALUES 128
#define IQ_RANK_FLAGS 16
#define IQ_RANK_FAILURE_BYTES 640 /* of one rank's sentence */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IQ_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IQ_TEST_SANITIZED 1
#endif
#endif
#ifndef IQ_TEST_SANITIZED
#define IQ_TEST_SANITIZED 0
#endif

/*
 * Rank counts that sweeps go through: IQ_RANK_COUNTS of them, 1 to 9. Fewer where a sanitizer makes everything slow; on four hosts
 * those that two hosts cannot show: every rank on its own, one pair, all hosts shared.
 */
#define IQ_RANK_COUNTS iq_test_rank_counts()
int iq_test_rank_counts(void);
int iq_test_nranks(int index);

typedef enum iq_ranks_kind {
    IQ_RANKS_THREADS,   /* local */
    IQ_RANKS_PROCESSES, /* shm */
    IQ_RANKS_HOSTS      /* ucx: ISGQ_HOSTID differs between ranks */
} iq_ranks_kind_t;

struct iq_ranks_shared;

/* One rank, as its body sees it. */
typedef struct iq_rank {
    int rank, nranks;
    isgq_comm_t comm; /* joined before the body unless iq_ranks_t.apart; left after it unless the body sets it to NULL */
    void *argument;
    uint64_t *values;        /* [IQ_RANK_VALUES] zero at first, for the caller of iq_ranks_run */
    _Atomic uint64_t *flags; /* [IQ_RANK_FLAGS] of all ranks together */
    struct iq_ranks_shared *shared;
    jmp_buf failed;
} iq_rank_t;

typedef void (*iq_rank_fn)(iq_rank_t *rank);

typedef struct iq_ranks {
    iq_ranks_kind_t kind;
    int nranks;
    int hosts; /* of IQ_RANKS_HOSTS: rank r lives on host r % hosts; 0: one for every rank */
    iq_rank_fn body;
    void *argument;
    const isgq_comm_config_t *config;
    const char *const *environment; /* forked ranks: "NAME=value", NULL at the end; or NULL */
    bool apart;                     /* the body joins by itself */
    bool broken;                    /* the communicator fails in the body: destroy it without finalize */
    bool home;                      /* stays out of the lab's hosts */
    unsigned lost;                  /* forked ranks, bit r: rank r is killed or stopped and need not report */
    unsigned watchdog_s;            /* 0: a minute */
    int lost_signal; /* that the lost ranks must have died of by themselves; 0: killed here when the others have ended */
} iq_ranks_t;

typedef struct iq_ranks_values {
    uint64_t of[IQ_RANKS_MOST][IQ_RANK_VALUES];
} iq_ranks_values_t;

/* Fails the test of Check if a rank fails: ranks_check.c. `values` may be NULL. */
void iq_ranks_run(const iq_ranks_t *ranks, iq_ranks_values_t *values);

/* The same outside Check: the sentences of the ranks that failed go to `failures`, "" if none did. */
bool iq_ranks_try(const iq_ranks_t *ranks, iq_ranks_values_t *values, char *failures, size_t bytes);

/* This build has UCX and the module loads. Asks in a forked child. */
bool iq_ranks_have_network(void);

/* ---- for bodies ---- */

_Noreturn void iq_rank_fail(iq_rank_t *rank, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void iq_rank_ok(iq_rank_t *rank, isgq_result_t result, const char *call, const char *file, int line);
void iq_rank_status(iq_rank_t *rank, isgq_result_t result, isgq_result_t expected, const char *call, const char *file, int line);

#define RANK_CHECK(rank, condition, ...)                           \
    do {                                                           \
        if (!(condition))                                          \
            iq_rank_fail((rank), __FILE__, __LINE__, __VA_ARGS__); \
    } while (0)

/* The call succeeds. */
#define RANK_OK(rank, call) iq_rank_ok((rank), (call), #call, __FILE__, __LINE__)

/* The call fails with `expected` and leaves one line of text. */
#define RANK_STATUS(rank, call, expected) iq_rank_status((rank), (call), (expected), #call, __FILE__, __LINE__)

/* The id of this run; rank 0 makes it. */
isgq_unique_id_t iq_rank_id(iq_rank_t *rank);

/* All ranks are here. Not through the library. */
void iq_rank_meet(iq_rank_t *rank);

/* Wait until a flag has at least this value. */
void iq_rank_await(iq_rank_t *rank, int flag, uint64_t value);

/* Every rank has the same value. */
void iq_rank_agree(iq_rank_t *rank, uint64_t value, const char *what);

uint64_t iq_test_now_ns(void);
void iq_test_pause(void); /* a fifth of a millisecond, within a loop that has a deadline */

/* One line, not empty: what every error text must be. */
bool iq_test_one_line(const char *text);

#endif
