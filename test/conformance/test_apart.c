/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may differ between ranks (docs/contracts.md): only rank 1 accumulates. Everybody has the values of a call that overwrites, and rank 1 has them
 * added to what was there.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/layers.h"
#include "support/samples.h"

#include <stdlib.h>
#include <string.h>

/* 1.5 MiB of floats: values that stay as they are may be summed in place where all ranks' buffers are in memory that others can map. */
#define COUNT ((size_t)400000)

typedef struct memory {
    isgq_comm_t comm; /* NULL: of malloc */
    float *values;
} memory_t;

static memory_t take(iq_rank_t *rank, bool shared, size_t count)
{
    memory_t memory = {.comm = shared ? rank->comm : NULL};
    if (shared)
        RANK_OK(rank, isgq_mem_alloc((void **)&memory.values, rank->comm, count * sizeof(float)));
    else
        memory.values = malloc(count * sizeof(float));
    return memory;
}

static void give_back(iq_rank_t *rank, memory_t memory)
{
    if (memory.comm != NULL)
        RANK_OK(rank, isgq_mem_free(memory.values, rank->comm));
    else
        free(memory.values);
}

/* Whole numbers, so that what they add up to is exact. */
static void fill(float *values, size_t count, int salt)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((int)(i % 97) + salt);
}

static void dense_body(iq_rank_t *rank)
{
    static const char *const quantizers[] = {"none", "uniform:bits=4", "none"};
    bool odd = rank->rank == 1;
    isgq_call_options_t options = {.size = sizeof(options), .accumulate = odd};
    for (int q = 0; q < 3; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, quantizers[q]);
        size_t count = q == 2 ? 1000 : COUNT;
        memory_t in = take(rank, true, count), out = take(rank, true, count), plain = take(rank, false, count);
        fill(in.values, count, rank->rank);
        fill(out.values, count, 5);
        RANK_OK(rank, isgq_allreduce(in.values, out.values, count, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (size_t i = 0; i < count; i++)
            plain.values[i] = out.values[i] - (odd ? (float)((int)(i % 97) + 5) : 0);
        int n = rank->nranks;
        float due = (float)(n * 96 + n * (n - 1) / 2);
        RANK_CHECK(rank, q == 1 || plain.values[96] == due, "%s: %g, not %g", quantizers[q], (double)plain.values[96], (double)due);
        if (q != 1)
            iq_rank_agree(rank, isgqx_hash(plain.values, count * sizeof(float)), quantizers[q]);
        give_back(rank, in);
        give_back(rank, out);
        give_back(rank, plain);
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(one_rank_adds_dense)
{
    iq_ranks_t ranks = {.kind = _i < 2 ? IQ_RANKS_THREADS : IQ_RANKS_PROCESSES, .nranks = 2 + _i % 2, .body = dense_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Sums of 16-bit layers, in every way. */
static void factored_body(iq_rank_t *rank)
{
    static const char *const ways[] = {"gather", "reduce", "dense", "share", "owner", NULL};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "dense=none;factored=factor:width=4/4,rounding=nearest");
    for (int w = 0; w < 6; w++) {
        iq_layer_t layer = {.m = 19, .n = 11, .max_batch = 6, .bias = true, .type = ISGQ_BFLOAT16};
        iq_layer_call_t plain = iq_layer_call_new(&layer, rank->rank, rank->nranks),
                        mixed = iq_layer_call_new(&layer, rank->rank, rank->nranks);
        iq_layer_call_run(rank, &mixed, quantizer, ways[w], rank->rank == 1); /* to zeros */
        iq_layer_call_run(rank, &plain, quantizer, ways[w], false);
        RANK_CHECK(rank, memcmp(plain.grad.data, mixed.grad.data, plain.grad.bytes) == 0 &&
                             memcmp(plain.bias.data, mixed.bias.data, plain.bias.bytes) == 0,
                   "%s: other values where rank 1 adds", ways[w] == NULL ? "auto" : ways[w]);
        iq_layer_call_free(&plain);
        iq_layer_call_free(&mixed);
    }
    isgq_quantizer_destroy(quantizer);
}

START_TEST(one_rank_adds_factored)
{
    iq_ranks_t ranks = {.nranks = 2 + _i, .body = factored_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("apart");
    iq_add_case(suite, tcase_create("dense"), one_rank_adds_dense, 4);
    iq_add_case(suite, tcase_create("factored"), one_rank_adds_factored, 2);
    return suite;
}
