/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which calls of an unsuspecting program may be quantized: the rules of ISGQ_POLICY, read once, then asked at every call.
 *
 *   ISGQ_POLICY=off             nothing is touched (the default, and the kill switch)
 *   ISGQ_POLICY=record[:FILE]   nothing is touched; what the program does is written to FILE (isgq-policy) with a proposal
 *   ISGQ_POLICY=@FILE           the rules in FILE
 *   ISGQ_POLICY='RULES'         the rules themselves, separated by semicolons
 *
 * A rule, one a line in a file, # begins a comment:
 *
 *   quantize comm=PATTERN type=f32[,f64...] bytes=LEAST-[MOST] with=QUANTIZER [op=sum[,avg]] [ranks=LEAST-[MOST]] [call=allreduce[,...]]
 *   exclude  comm=PATTERN [type=...] [bytes=...] [op=...] [ranks=...] [call=...]
 *
 * A quantize rule names communicators (a shell pattern on their names), types and sizes itself: there are no defaults for them. It is for
 * allreduce unless it names other calls: reduce_scatter and allgather, which as a pair are what some programs do instead. Any exclude
 * rule that fits beats every quantize rule; of these the first that fits counts. What fits none passes through.
 */
#ifndef ISGQ_PRELOAD_POLICY_H
#define ISGQ_PRELOAD_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { IQ_POLICY_RULES = 32, IQ_POLICY_TEXT = 128, IQ_POLICY_ERROR = 256 };

typedef enum iq_policy_mode { IQ_POLICY_OFF, IQ_POLICY_QUANTIZE, IQ_POLICY_RECORD } iq_policy_mode_t;

/* Bits, so that a rule may name several. */
typedef enum iq_policy_type { IQ_POLICY_F16 = 1, IQ_POLICY_BF16 = 2, IQ_POLICY_F32 = 4, IQ_POLICY_F64 = 8 } iq_policy_type_t;
typedef enum iq_policy_op { IQ_POLICY_SUM = 1, IQ_POLICY_AVG = 2 } iq_policy_op_t;
typedef enum iq_policy_call { IQ_POLICY_ALLREDUCE = 1, IQ_POLICY_REDUCE_SCATTER = 2, IQ_POLICY_ALLGATHER = 4 } iq_policy_call_t;

/* What a rule looks at in a call. */
typedef struct iq_policy_seen {
    uint32_t call, type, op; /* one bit each, 0 for what no rule can name; an allgather has no operation */
    uint64_t bytes;          /* of one rank's input */
} iq_policy_seen_t;

typedef struct iq_policy_rule {
    bool exclude;
    uint32_t calls, types, ops;       /* bits */
    uint64_t least_bytes, most_bytes; /* of one rank's input */
    int least_ranks, most_ranks;
    char comm[IQ_POLICY_TEXT]; /* pattern */
    char with[IQ_POLICY_TEXT]; /* quantizer, "" in an exclude rule */
} iq_policy_rule_t;

typedef struct iq_policy {
    iq_policy_mode_t mode;
    size_t nrules;
    iq_policy_rule_t rules[IQ_POLICY_RULES];
    char record[IQ_POLICY_TEXT]; /* file */
    uint64_t hash;               /* of mode and rules: equal policies have equal hashes */
} iq_policy_t;

/*
 * Understand the value of ISGQ_POLICY; NULL and "" mean off. False: `error` (IQ_POLICY_ERROR bytes) says what is wrong where, and the
 * policy is off.
 */
bool iq_policy_parse(iq_policy_t *policy, const char *text, char *error);

/* The rules that speak of a communicator, as bits: asked once, when it is first seen. */
uint32_t iq_policy_named(const iq_policy_t *policy, const char *comm, int nranks);

/* What to do with a call on a communicator for which the answer of iq_policy_named was `named`; NULL: nothing, and *why says why. */
const iq_policy_rule_t *iq_policy_match(const iq_policy_t *policy, uint32_t named, const iq_policy_seen_t *seen,
                                        const char **why);

/* "f32", or "?" for what no rule can name. */
const char *iq_policy_type_name(uint32_t type);
const char *iq_policy_op_name(uint32_t op);
const char *iq_policy_call_name(uint32_t call);

#endif
