/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What codecs remember of a tensor's earlier results: the same on all ranks, or a mismatch. The codec is `uniform` with a memory of its own: how
 * many results there were, and the sum of their squares.
 */
#include "support/check_main.h"

#include "codec/dense.h"
#include "core/tensor.h"

#include <pthread.h>
#include <string.h>

#define RANKS 3
#define COUNT 40000 /* several spans */
#define CALLS 5

typedef struct rank {
    int index;
    isgq_comm_t comm;
    isgq_tensor_t tensor;
    isgq_result_t result; /* of the scenario */
    char text[256];
    float in[COUNT], out[COUNT];
    double seen[CALLS + 3]; /* calls in the history when a call began; -1: none */
    int learned;            /* calls that were learned from */
} rank_t;

static rank_t ranks[RANKS];
static isgq_unique_id_t id;

/* ---- a codec that remembers ---- */

static void learn(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *dst, double *history)
{
    const float *values = dst;
    (void)codec;
    if (span.first == 0) {
        ranks[call->rank].seen[ranks[call->rank].learned++] = call->history[0];
        history[0] += 1.0;
    }
    for (size_t i = 0; i < span.count; i++)
        history[1] += (double)values[i] * (double)values[i];
    history[2] = (double)(span.first + span.count);
}

static iq_codec_ops_t remembering;

static isgq_result_t reduce(rank_t *rank, isgq_tensor_t tensor, const char *text)
{
    isgq_quantizer_t quantizer;
    IQ_TRY(isgq_quantizer_create(&quantizer, text));
    iq_call_t call = {.kind = IQ_CALL_ALLREDUCE,
                      .datatype = ISGQ_FLOAT32,
                      .op = ISGQ_SUM,
                      .send = rank->in,
                      .recv = rank->out,
                      .count = COUNT,
                      .quantizer = quantizer,
                      .timeout_ms = 5000};
    isgq_result_t result = iq_decide(rank->comm, &call, NULL);
    call.codec.ops = &remembering;
    if (result == ISGQ_SUCCESS)
        result = iq_tensor_use(rank->comm, tensor, &call);
    if (result == ISGQ_SUCCESS)
        result = iq_submit(rank->comm, &(iq_call_t *){&call}, 1);
    isgq_quantizer_destroy(quantizer);
    return result == ISGQ_SUCCESS ? isgq_comm_synchronize(rank->comm) : result;
}

/* ---- ranks as threads ---- */

typedef isgq_result_t (*scenario_fn)(rank_t *rank);
static scenario_fn scenario;

static isgq_result_t join_and_run(rank_t *rank)
{
    IQ_TRY(isgq_comm_init_rank(&rank->comm, RANKS, id, rank->index, NULL));
    IQ_TRY(isgq_tensor_create(&rank->tensor, "w", COUNT));
    isgq_result_t result = scenario(rank);
    for (int turn = 0; result == ISGQ_SUCCESS && turn < 2; turn++) { /* who was through first learns of a mismatch here */
        result = isgq_barrier(rank->comm, NULL);
        if (result == ISGQ_SUCCESS)
            result = isgq_comm_synchronize(rank->comm);
    }
    return result;
}

static void *rank_main(void *argument)
{
    rank_t *rank = argument;
    rank->result = join_and_run(rank);
    strncpy(rank->text, isgq_get_last_error(), sizeof(rank->text) - 1);
    if (rank->result == ISGQ_SUCCESS)
        rank->result = isgq_comm_finalize(rank->comm);
    (void)isgq_comm_destroy(rank->comm);
    return NULL;
}

static void run(scenario_fn wanted)
{
    pthread_t threads[RANKS];
    scenario = wanted;
    memset(ranks, 0, sizeof(ranks));
    remembering = iq_codec_uniform_ops;
    remembering.learn = learn;
    ck_assert_int_eq(isgq_get_unique_id(&id), ISGQ_SUCCESS);
    for (int r = 0; r < RANKS; r++) {
        ranks[r].index = r;
        for (int i = 0; i < COUNT; i++)
            ranks[r].in[i] = (float)((i * 37 + r * 11) % 101 - 50);
        ck_assert_int_eq(pthread_create(&threads[r], NULL, rank_main, &ranks[r]), 0);
    }
    for (int r = 0; r < RANKS; r++)
        pthread_join(threads[r], NULL);
}

static void let_go(void)
{
    for (int r = 0; r < RANKS; r++)
        isgq_tensor_destroy(ranks[r].tensor);
}

/* ---- the history grows, call by call ---- */

static double squares[RANKS];

static isgq_result_t grow(rank_t *rank)
{
    squares[rank->index] = 0.0;
    for (int k = 0; k < CALLS; k++) {
        IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
        for (int i = 0; i < COUNT; i++)
            squares[rank->index] += (double)rank->out[i] * (double)rank->out[i];
    }
    return ISGQ_SUCCESS;
}

START_TEST(it_grows)
{
    run(grow);
    for (int r = 0; r < RANKS; r++) {
        const double *history = ranks[r].tensor->history;
        ck_assert_msg(ranks[r].result == ISGQ_SUCCESS, "rank %d: %s", r, ranks[r].text);
        ck_assert_int_eq(ranks[r].learned, CALLS);
        for (int k = 0; k < CALLS; k++)
            ck_assert(ranks[r].seen[k] == (double)k);
        ck_assert(history[0] == CALLS && history[1] == squares[r] && history[2] == COUNT);
        ck_assert(memcmp(history, ranks[0].tensor->history, sizeof(ranks[0].tensor->history)) == 0);
    }
    let_go();
}
END_TEST

/* No tensor, no history; another quantizer begins anew; a reset too; a saved one goes on. */
static isgq_result_t change(rank_t *rank)
{
    unsigned char state[4096];
    size_t bytes = sizeof(state);
    IQ_TRY(reduce(rank, NULL, "uniform:bits=5"));
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
    IQ_TRY(isgq_tensor_save(rank->tensor, state, &bytes));
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=6"));
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
    IQ_TRY(isgq_tensor_reset(rank->tensor));
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
    IQ_TRY(isgq_tensor_load(rank->tensor, state, bytes));
    return reduce(rank, rank->tensor, "uniform:bits=5");
}

START_TEST(it_begins_anew)
{
    static const double due[] = {0, 1, 0, 0, 0, 2};
    run(change);
    for (int r = 0; r < RANKS; r++) {
        ck_assert_msg(ranks[r].result == ISGQ_SUCCESS, "rank %d: %s", r, ranks[r].text);
        ck_assert_int_eq(ranks[r].learned, 6);
        for (int k = 0; k < 6; k++)
            ck_assert_msg(ranks[r].seen[k] == due[k], "rank %d, call %d began with %g calls, not %g", r, k, ranks[r].seen[k], due[k]);
    }
    let_go();
}
END_TEST

/* ---- ranks that differ ---- */

static isgq_result_t lacks_tensor(rank_t *rank) { return reduce(rank, rank->index == 1 ? NULL : rank->tensor, "uniform:bits=5"); }

static isgq_result_t was_reset(rank_t *rank)
{
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
    IQ_TRY(reduce(rank, rank->tensor, "uniform:bits=5"));
    if (rank->index == 2)
        IQ_TRY(isgq_tensor_reset(rank->tensor));
    return reduce(rank, rank->tensor, "uniform:bits=5");
}

START_TEST(ranks_that_differ)
{
    run(_i == 0 ? lacks_tensor : was_reset);
    for (int r = 0; r < RANKS; r++) {
        ck_assert_msg(ranks[r].result == ISGQ_ERR_MISMATCH, "rank %d: status %d, %s", r, (int)ranks[r].result, ranks[r].text);
        ck_assert_msg(strstr(ranks[r].text, "history") != NULL, "rank %d: %s", r, ranks[r].text);
        const char *odd = _i == 0 ? "none on rank 1" : "2 calls";
        ck_assert_msg(strstr(ranks[r].text, odd) != NULL && strstr(ranks[r].text, "of 0 calls on") != NULL, "rank %d: %s", r, ranks[r].text);
    }
    let_go();
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("tensor_history");
    TCase *memory = tcase_create("memory");
    tcase_add_test(memory, it_grows);
    tcase_add_test(memory, it_begins_anew);
    suite_add_tcase(suite, memory);
    TCase *differ = tcase_create("differ");
    tcase_add_loop_test(differ, ranks_that_differ, 0, 2);
    tcase_set_timeout(differ, 60);
    suite_add_tcase(suite, differ);
    return suite;
}
