/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor identities: what is saved is what was there, a restart from it changes no bit, and what does not fit is refused.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 1500

#define BAD ISGQ_ERR_INVALID_ARGUMENT

/* A call on samples; the result goes to `out`. */
static void reduce(iq_rank_t *rank, isgq_comm_t comm, isgq_tensor_t tensor, const char *text, uint64_t salt, float *out)
{
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    float *in = malloc(COUNT * sizeof(*in));
    iq_samples_fill(ISGQ_FLOAT32, salt, rank->rank, 0, COUNT, in);
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(comm));
    free(in);
    isgq_quantizer_destroy(quantizer);
}

typedef struct saved {
    unsigned char *bytes;
    size_t count;
} saved_t;

static saved_t save(iq_rank_t *rank, isgq_tensor_t tensor)
{
    saved_t saved = {0};
    size_t room;
    RANK_OK(rank, isgq_tensor_save(tensor, NULL, &saved.count));
    saved.bytes = malloc(saved.count + 7);
    room = saved.count + 7;
    RANK_OK(rank, isgq_tensor_save(tensor, saved.bytes, &room));
    RANK_CHECK(rank, room == saved.count, "%zu bytes used, %zu announced", room, saved.count);
    return saved;
}

/* ---- restarts ---- */

/* Nearest rounding, where the number of a call on its communicator does not matter, and stochastic, where it does. */
static const struct {
    const char *quantizer;
    bool draws;
} feedbacks[] = {
    {"onebit:bucket=256", false},
    {"uniform:bits=2,rounding=nearest,feedback=weighted", false},
    {"uniform:bits=1,sum=requantized,feedback=weighted", true},
    {"uniform:bits=3,bucket=512,feedback=weighted,predict=on", true},
};
#define FEEDBACKS (int)(sizeof(feedbacks) / sizeof(feedbacks[0]))

/* The ranks meet once more, as after a restart. */
static isgq_comm_t join_again(iq_rank_t *rank)
{
    isgq_unique_id_t id;
    isgq_comm_t comm = NULL;
    memset(&id, 0, sizeof(id));
    if (rank->rank == 0)
        RANK_OK(rank, isgq_get_unique_id(&id));
    RANK_OK(rank, isgq_broadcast(&id, &id, sizeof(id), ISGQ_UINT8, 0, rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_OK(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, NULL));
    return comm;
}

static void restart_body(iq_rank_t *rank)
{
    int index = *(int *)rank->argument;
    const char *text = feedbacks[index].quantizer;
    isgq_tensor_t before = NULL, after = NULL;
    float out[COUNT], again[COUNT];
    RANK_OK(rank, isgq_tensor_create(&before, "layer.weight", COUNT));
    RANK_OK(rank, isgq_tensor_create(&after, "layer.weight", COUNT));
    for (uint64_t k = 0; k < 5; k++)
        reduce(rank, rank->comm, before, text, k, out);
    saved_t saved = save(rank, before);
    RANK_CHECK(rank, saved.count > COUNT * sizeof(float), "a state of %zu bytes holds no residual", saved.count);
    for (uint64_t k = 5; k < 9; k++)
        reduce(rank, rank->comm, before, text, k, out);
    isgq_comm_t second = join_again(rank);
    RANK_OK(rank, isgq_tensor_load(after, saved.bytes, saved.count));
    saved_t copy = save(rank, after);
    RANK_CHECK(rank, copy.count == saved.count && memcmp(copy.bytes, saved.bytes, saved.count) == 0, "loaded and saved again it differs");
    for (int k = 0; k < 5 && feedbacks[index].draws; k++) /* as many calls as before */
        RANK_OK(rank, isgq_barrier(second, NULL));
    for (uint64_t k = 5; k < 9; k++)
        reduce(rank, second, after, text, k, again);
    RANK_CHECK(rank, memcmp(out, again, sizeof(out)) == 0, "%s: a restart changes bits", text);
    RANK_OK(rank, isgq_comm_finalize(second));
    RANK_OK(rank, isgq_comm_destroy(second));
    free(saved.bytes);
    free(copy.bytes);
    isgq_tensor_destroy(before);
    isgq_tensor_destroy(after);
}

START_TEST(restarts)
{
    iq_ranks_t ranks = {.kind = _i % 2 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 1 + _i, .body = restart_body, .argument = &_i};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* A tensor that was reset is as good as a new one, and a tensor matters to codecs with feedback alone. */
static void reset_body(iq_rank_t *rank)
{
    isgq_tensor_t tensor = NULL;
    float first[COUNT], second[COUNT], third[COUNT];
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    reduce(rank, rank->comm, tensor, "onebit:bucket=256", 1, first);
    reduce(rank, rank->comm, tensor, "onebit:bucket=256", 1, second);
    RANK_OK(rank, isgq_tensor_reset(tensor));
    reduce(rank, rank->comm, tensor, "onebit:bucket=256", 1, third);
    RANK_CHECK(rank, memcmp(first, second, sizeof(first)) != 0, "no feedback");
    RANK_CHECK(rank, memcmp(first, third, sizeof(first)) == 0, "something is left after a reset");
    reduce(rank, rank->comm, tensor, "onebit:bucket=256,feedback=off", 1, second);
    RANK_CHECK(rank, memcmp(first, second, sizeof(first)) == 0, "feedback although it is off");
    reduce(rank, rank->comm, rank->rank == 0 ? tensor : NULL, "onebit:bucket=256", 1, third); /* every rank's own affair */
    isgq_tensor_destroy(tensor);
}

START_TEST(resets)
{
    iq_ranks_t ranks = {.nranks = 3, .body = reset_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- states that are not loaded ---- */

static void check_refused(iq_rank_t *rank, isgq_tensor_t tensor, const saved_t *saved, isgq_result_t status, const char *word)
{
    RANK_STATUS(rank, isgq_tensor_load(tensor, saved->bytes, saved->count), status);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), word) != NULL, "\"%s\" does not say \"%s\"", isgq_get_last_error(), word);
}

static void states_body(iq_rank_t *rank)
{
    isgq_tensor_t tensor = NULL, longer = NULL, renamed = NULL, fresh = NULL;
    float out[COUNT], again[COUNT];
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    RANK_OK(rank, isgq_tensor_create(&longer, "w", COUNT + 1));
    RANK_OK(rank, isgq_tensor_create(&renamed, "v", COUNT));
    RANK_OK(rank, isgq_tensor_create(&fresh, "w", COUNT));
    saved_t empty = save(rank, tensor);
    for (uint64_t k = 0; k < 3; k++)
        reduce(rank, rank->comm, tensor, "onebit:bucket=256", k, out);
    saved_t saved = save(rank, tensor);
    RANK_CHECK(rank, saved.count >= empty.count + COUNT * sizeof(float), "%zu bytes without a residual, %zu with", empty.count, saved.count);
    check_refused(rank, longer, &saved, BAD, "another tensor");
    check_refused(rank, renamed, &saved, BAD, "another tensor");
    for (size_t i = 0; i < saved.count; i += i < 300 ? 1 : 97) { /* every damaged byte is seen, in the residual too */
        saved.bytes[i] ^= 0x10;
        RANK_CHECK(rank, isgq_tensor_load(fresh, saved.bytes, saved.count) != ISGQ_SUCCESS, "byte %zu may be damaged unseen", i);
        saved.bytes[i] ^= 0x10;
    }
    saved_t cut = {saved.bytes, saved.count - 4}, stump = {saved.bytes, 24}, old = {saved.bytes, 40};
    check_refused(rank, fresh, &cut, ISGQ_ERR_CORRUPT, "were saved");
    check_refused(rank, fresh, &stump, ISGQ_ERR_CORRUPT, "24 bytes");
    saved.bytes[4] = 1; /* the version before residuals, whose states had 40 bytes */
    check_refused(rank, fresh, &old, ISGQ_ERR_CORRUPT, "version 1");
    saved.bytes[4] = 4;
    reduce(rank, rank->comm, fresh, "onebit:bucket=256", 7, again); /* the failed loads left nothing behind */
    RANK_OK(rank, isgq_tensor_reset(tensor));
    reduce(rank, rank->comm, tensor, "onebit:bucket=256", 7, out);
    RANK_CHECK(rank, memcmp(out, again, sizeof(out)) == 0, "a refused state was loaded in part");
    RANK_OK(rank, isgq_tensor_load(tensor, empty.bytes, empty.count)); /* and an empty one is no residual */
    reduce(rank, rank->comm, tensor, "onebit:bucket=256", 7, out);
    RANK_CHECK(rank, memcmp(out, again, sizeof(out)) == 0, "an empty state leaves a residual");
    free(saved.bytes);
    free(empty.bytes);
    isgq_tensor_destroy(tensor);
    isgq_tensor_destroy(longer);
    isgq_tensor_destroy(renamed);
    isgq_tensor_destroy(fresh);
}

START_TEST(states)
{
    iq_ranks_t ranks = {.nranks = 2, .body = states_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- while a call is under way ---- */

static void busy_body(iq_rank_t *rank)
{
    isgq_comm_t second = join_again(rank);
    isgq_tensor_t tensor = NULL;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "onebit:bucket=256");
    static float in[2][COUNT], out[2][COUNT];
    unsigned char *state = malloc(COUNT * 8);
    size_t bytes = COUNT * 8;
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    if (rank->rank == 0) { /* rank 1 has not made the call, so it cannot be over */
        RANK_OK(rank, isgq_allreduce(in[0], out[0], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_STATUS(rank, isgq_tensor_save(tensor, state, &bytes), ISGQ_ERR_INVALID_USAGE);
        RANK_STATUS(rank, isgq_tensor_load(tensor, state, bytes), ISGQ_ERR_INVALID_USAGE);
        RANK_STATUS(rank, isgq_tensor_reset(tensor), ISGQ_ERR_INVALID_USAGE);
        isgq_result_t result = isgq_allreduce(in[0], out[0], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, second, NULL, &options);
        RANK_CHECK(rank, result == ISGQ_ERR_INVALID_USAGE && strstr(isgq_get_last_error(), "another communicator") != NULL,
                   "two communicators at once: status %d, \"%s\"", (int)result, isgq_get_last_error());
    }
    iq_rank_meet(rank);
    if (rank->rank == 1)
        RANK_OK(rank, isgq_allreduce(in[1], out[1], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_OK(rank, isgq_tensor_reset(tensor));
    RANK_OK(rank, isgq_allreduce(in[rank->rank], out[rank->rank], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, second, NULL, &options));
    RANK_OK(rank, isgq_comm_finalize(second));
    RANK_OK(rank, isgq_comm_destroy(second));
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(quantizer);
    free(state);
}

START_TEST(busy)
{
    iq_ranks_t ranks = {.nranks = 2, .body = busy_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* A communicator that fails lets go of the tensors of its calls. */
static void failed_body(iq_rank_t *rank)
{
    static float in[2][COUNT], out[2][COUNT];
    isgq_tensor_t tensor = NULL;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "onebit:bucket=256");
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    if (rank->rank == 0)
        for (int i = 0; i < 3; i++)
            RANK_OK(rank, isgq_allreduce(in[0], out[0], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    iq_rank_meet(rank);
    RANK_OK(rank, isgq_comm_abort(rank->comm));
    RANK_OK(rank, isgq_comm_destroy(rank->comm));
    rank->comm = NULL;
    RANK_OK(rank, isgq_tensor_reset(tensor));
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(failed)
{
    iq_ranks_t ranks = {.nranks = 2, .body = failed_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- calls that have no residual ---- */

static void others_body(iq_rank_t *rank)
{
    isgq_tensor_t tensor = NULL, part = NULL;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "onebit:bucket=256");
    float in[60], out[120], x[12], grad[120], bias[10];
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = in, .batch = 1, .m = 12, .n = 10, .bias = bias};
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", 120));
    RANK_OK(rank, isgq_tensor_create(&part, "w", 60));
    isgq_call_options_t whole = {.size = sizeof(whole), .tensor = tensor}, short_one = {.size = sizeof(short_one), .tensor = part};
    for (int i = 0; i < 60; i++)
        in[i] = (float)i;
    for (int i = 0; i < 12; i++)
        x[i] = 1.0f;
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 30, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &whole), BAD);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "120") != NULL && strstr(isgq_get_last_error(), "60") != NULL,
               "\"%s\" lacks a size", isgq_get_last_error());
    RANK_OK(rank, isgq_reduce_scatter(in, out, 30, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &short_one));
    for (int k = 0; k < 2; k++) { /* gathered values have no residual: the same again */
        float *to = k == 0 ? out : grad;
        RANK_OK(rank, isgq_allgather(in, to, 60, ISGQ_FLOAT32, quantizer, rank->comm, NULL, &whole));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    }
    RANK_CHECK(rank, memcmp(out, grad, sizeof(grad)) == 0, "an allgather remembers something");
    double due = 0.0, got = 0.0;
    for (int k = 0; k < 400; k++) { /* a factored call's product has one, its bias has none */
        RANK_OK(rank, isgq_allreduce_factored(&factors, 1, grad, ISGQ_FLOAT32, ISGQ_AVG, quantizer, rank->comm, NULL, &whole));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        got += (double)grad[57];
        due += 7.0;
    }
    RANK_CHECK(rank, got > 0.95 * due && got < 1.05 * due, "products add up to %g, not %g", got, due);
    isgq_tensor_destroy(tensor);
    isgq_tensor_destroy(part);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(others)
{
    iq_ranks_t ranks = {.nranks = 2, .body = others_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("tensors");
    iq_add_case(suite, tcase_create("restart"), restarts, FEEDBACKS);
    iq_add_case(suite, tcase_create("reset"), resets, 1);
    iq_add_case(suite, tcase_create("states"), states, 1);
    TCase *busy_case = iq_add_case(suite, tcase_create("busy"), busy, 1);
    tcase_add_test(busy_case, failed);
    iq_add_case(suite, tcase_create("other_calls"), others, 1);
    return suite;
}
