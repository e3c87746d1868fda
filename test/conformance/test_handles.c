/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bad arguments of everything that is no collective: communicators, queries, memory, quantizers, tensors, introspection. The
 * documented status and one line of text. Invariant 10 of the design.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <stddef.h>
#include <string.h>

#define BAD ISGQ_ERR_INVALID_ARGUMENT

static void check_alive(iq_rank_t *rank)
{
    int32_t one = 1, sum = 0;
    RANK_OK(rank, isgq_allreduce(&one, &sum, 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, sum == rank->nranks, "the communicator does not work any more");
}

/* ---- communicators ---- */

static void init_body(iq_rank_t *rank)
{
    isgq_unique_id_t id, rubbish;
    isgq_comm_t comm = NULL;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    memset(&rubbish, 0x5a, sizeof(rubbish));
    RANK_STATUS(rank, isgq_get_unique_id(NULL), BAD);
    RANK_OK(rank, isgq_get_unique_id(&id));
    RANK_STATUS(rank, isgq_comm_init_rank(NULL, 1, id, 0, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 0, id, 0, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, -3, id, 0, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 1 << 30, id, 0, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 2, id, -1, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 2, id, 2, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 1, rubbish, 0, NULL), BAD);
    config.size = 8;
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 1, id, 0, &config), BAD);
    config = (isgq_comm_config_t)ISGQ_COMM_CONFIG_INIT;
    config.device_type = (isgq_device_type_t)9;
    RANK_OK(rank, isgq_get_unique_id(&id)); /* an id is used up by a failed attempt */
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 1, id, 0, &config), BAD);
    config.device_type = ISGQ_DEVICE_CUDA;
    RANK_OK(rank, isgq_get_unique_id(&id));
    isgq_result_t device = isgq_comm_init_rank(&comm, 1, id, 0, &config); /* there may be a GPU */
    if (device == ISGQ_SUCCESS)
        RANK_OK(rank, isgq_comm_destroy(comm));
    else
        RANK_CHECK(rank, device == ISGQ_ERR_UNSUPPORTED && strstr(isgq_get_last_error(), "CUDA") != NULL,
                   "status %d, \"%s\" does not say what is missing", (int)device, isgq_get_last_error());
    comm = NULL;
    for (size_t chunk = 1; chunk < 4096; chunk *= 5) {
        config = (isgq_comm_config_t)ISGQ_COMM_CONFIG_INIT;
        config.chunk_bytes = chunk;
        RANK_OK(rank, isgq_get_unique_id(&id));
        RANK_STATUS(rank, isgq_comm_init_rank(&comm, 1, id, 0, &config), BAD);
    }
    config.chunk_bytes = SIZE_MAX;
    RANK_OK(rank, isgq_get_unique_id(&id));
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, 1, id, 0, &config), BAD);
    RANK_STATUS(rank, isgq_comm_init_env(NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_nccl(NULL, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_nccl(&comm, NULL, NULL), BAD);
    RANK_CHECK(rank, comm == NULL, "a refused initialisation wrote a handle");
}

/* An id is good for one communicator. */
static void used_id_body(iq_rank_t *rank)
{
    isgq_unique_id_t id;
    isgq_comm_t comm = NULL, again = NULL;
    RANK_OK(rank, isgq_get_unique_id(&id));
    RANK_OK(rank, isgq_comm_init_rank(&comm, 1, id, 0, NULL));
    RANK_STATUS(rank, isgq_comm_init_rank(&again, 1, id, 0, NULL), ISGQ_ERR_INVALID_USAGE);
    RANK_OK(rank, isgq_comm_finalize(comm));
    RANK_OK(rank, isgq_comm_destroy(comm));
}

/* Transports that do not exist, or cannot connect these ranks. */
static void transports_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.transports = "carrier-pigeon";
    isgq_result_t result = isgq_comm_init_rank(&comm, rank->nranks, iq_rank_id(rank), rank->rank, &config);
    RANK_CHECK(rank, result == ISGQ_ERR_UNSUPPORTED || result == BAD, "status %d", (int)result);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "carrier-pigeon") != NULL, "\"%s\" does not name it", isgq_get_last_error());
}

static int failing_allgather(void *context, const void *send, void *recv, size_t bytes)
{
    (void)send, (void)recv, (void)bytes;
    return *(int *)context;
}

static void oob_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    int reason = 7;
    RANK_STATUS(rank, isgq_comm_init_oob(NULL, 1, 0, failing_allgather, &reason, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_oob(&comm, 0, 0, failing_allgather, &reason, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_oob(&comm, 2, 2, failing_allgather, &reason, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_oob(&comm, 1, 0, NULL, &reason, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_init_oob(&comm, 1, 0, failing_allgather, &reason, NULL), ISGQ_ERR_SYSTEM);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "7") != NULL && comm == NULL, "\"%s\" does not hold the caller's number",
               isgq_get_last_error());
}

static void queries_body(iq_rank_t *rank)
{
    isgq_comm_t comm = rank->comm, split = NULL;
    isgq_result_t async;
    uint64_t sequence, bytes;
    int number;
    isgq_stats_t stats = {.size = 0};
    isgqx_call_record_t record = {.size = 3};
    RANK_STATUS(rank, isgq_comm_split(NULL, 0, 0, &split, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_split(comm, 0, 0, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_finalize(NULL), BAD);
    RANK_STATUS(rank, isgq_comm_synchronize(NULL), BAD);
    RANK_STATUS(rank, isgq_comm_get_sequence(NULL, &sequence), BAD);
    RANK_STATUS(rank, isgq_comm_get_sequence(comm, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_wait(NULL, 0), BAD);
    RANK_STATUS(rank, isgq_comm_wait(comm, 1000), BAD);
    RANK_STATUS(rank, isgq_comm_test(NULL, 0, &number), BAD);
    RANK_STATUS(rank, isgq_comm_test(comm, 0, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_test(comm, 1000, &number), BAD);
    RANK_STATUS(rank, isgq_comm_wait_for(NULL, 0, 1, &number), BAD);
    RANK_STATUS(rank, isgq_comm_wait_for(comm, 0, 1, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_wait_for(comm, 1000, 1, &number), BAD);
    RANK_STATUS(rank, isgq_comm_count(NULL, &number), BAD);
    RANK_STATUS(rank, isgq_comm_count(comm, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_user_rank(NULL, &number), BAD);
    RANK_STATUS(rank, isgq_comm_user_rank(comm, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_get_async_error(NULL, &async), BAD);
    RANK_STATUS(rank, isgq_comm_get_async_error(comm, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_get_stats(NULL, &stats), BAD);
    RANK_STATUS(rank, isgq_comm_get_stats(comm, NULL), BAD);
    RANK_STATUS(rank, isgq_comm_get_stats(comm, &stats), BAD);
    RANK_STATUS(rank, isgq_comm_reset_stats(NULL), BAD);
    RANK_STATUS(rank, isgqx_last_call(NULL, &record), BAD);
    RANK_STATUS(rank, isgqx_last_call(comm, NULL), BAD);
    RANK_STATUS(rank, isgqx_last_call(comm, &record), BAD);
    RANK_STATUS(rank, isgqx_own_bytes(NULL, &bytes), BAD);
    RANK_STATUS(rank, isgqx_own_bytes(comm, NULL), BAD);
    RANK_CHECK(rank, isgq_comm_get_last_error(NULL)[0] == '\0' && isgq_comm_get_last_error(comm)[0] == '\0',
               "a text without an error");
    RANK_OK(rank, isgq_comm_abort(NULL));
    RANK_OK(rank, isgq_comm_destroy(NULL));
    RANK_OK(rank, isgq_comm_wait(comm, 0));
    RANK_OK(rank, isgq_comm_count(comm, &number));
    RANK_CHECK(rank, number == rank->nranks, "count is %d", number);
    RANK_OK(rank, isgq_comm_user_rank(comm, &number));
    RANK_CHECK(rank, number == rank->rank, "rank is %d", number);
    check_alive(rank);
}

/* Callers compiled against a shorter struct: nothing behind it is written. */
static void short_stats_body(iq_rank_t *rank)
{
    isgq_stats_t stats;
    memset(&stats, 0x77, sizeof(stats));
    stats.size = offsetof(isgq_stats_t, wire_bytes);
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, stats.calls == 0 && stats.size == offsetof(isgq_stats_t, wire_bytes), "the start is wrong");
    RANK_CHECK(rank, stats.wire_bytes == 0x7777777777777777u && stats.transfer_ns == 0x7777777777777777u,
               "wrote beyond the caller's size");
}

static void finalized_body(iq_rank_t *rank)
{
    float out[4] = {0};
    RANK_OK(rank, isgq_comm_finalize(rank->comm));
    RANK_STATUS(rank, isgq_comm_finalize(rank->comm), ISGQ_ERR_INVALID_USAGE);
    RANK_STATUS(rank, isgq_allreduce(out, out, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL), ISGQ_ERR_INVALID_USAGE);
    RANK_OK(rank, isgq_comm_destroy(rank->comm));
    rank->comm = NULL;
}

static void memory_body(iq_rank_t *rank)
{
    _Alignas(64) char own[256] = {0};
    void *memory = NULL;
    RANK_STATUS(rank, isgq_mem_alloc(NULL, rank->comm, 8), BAD);
    RANK_STATUS(rank, isgq_mem_alloc(&memory, NULL, 8), BAD);
    RANK_STATUS(rank, isgq_mem_alloc(&memory, rank->comm, 0), BAD);
    isgq_result_t result = isgq_mem_alloc(&memory, rank->comm, SIZE_MAX - 63);
    RANK_CHECK(rank, (result == BAD || result == ISGQ_ERR_NO_MEMORY) && memory == NULL, "SIZE_MAX - 63 bytes: status %d",
               (int)result);
    RANK_OK(rank, isgq_mem_free(NULL, rank->comm));
    RANK_STATUS(rank, isgq_mem_free(own + 128, rank->comm), BAD);
    RANK_STATUS(rank, isgq_mem_free(own + 1, rank->comm), BAD);
    RANK_OK(rank, isgq_mem_alloc(&memory, rank->comm, 1000));
    RANK_CHECK(rank, (uintptr_t)memory % 64 == 0, "not on a cache line");
    memset(memory, 1, 1000);
    RANK_OK(rank, isgq_allreduce(memory, memory, 1000, ISGQ_UINT8, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, ((unsigned char *)memory)[999] == rank->nranks, "wrong sum in allocated memory");
    RANK_STATUS(rank, isgq_mem_free(memory, NULL), BAD);
    RANK_OK(rank, isgq_mem_free(memory, rank->comm));
}

/* ---- quantizers, tensors, introspection ---- */

static void quantizers_body(iq_rank_t *rank)
{
    static const char *const bad[] = {"",
                                      "unifrom:bits=4",
                                      "uniform:bits=0",
                                      "uniform:bits=9",
                                      "uniform:bits=",
                                      "uniform:bits",
                                      "uniform:bits=4x",
                                      "uniform:bucket=31",
                                      "uniform:rounding=sideways",
                                      "uniform:bits=4,bits=5",
                                      "factor:width=1/4",
                                      "factor:width=4/9",
                                      "factor:width=4,bits=3",
                                      "isgq:bits=0.5",
                                      "isgq:bits=99",
                                      "none:bits=3",
                                      "dense=uniform;dense=none",
                                      "dense=factor:width=4",
                                      "factored=uniform",
                                      ";",
                                      "dense=",
                                      "uniform:scale=local,sum=exact",
                                      "uniform:bits=4;",
                                      "\n",
                                      "uniform:bits=-1"};
    static const char *const good[] = {"none",
                                       "fp16",
                                       "bf16",
                                       "uniform",
                                       "uniform:bits=4,rounding=nearest,scale=local,bucket=tensor",
                                       "factor",
                                       "factor:width=4/8",
                                       "isgq",
                                       "isgq:bits=2.5",
                                       "powersgd:rank=2",
                                       "dense=uniform:bits=4;factored=factor:width=4/4",
                                       "dense=fp16;factored=isgq:bits=3"};
    isgq_quantizer_t quantizer = NULL, again = NULL;
    char longer[4096];
    size_t bytes = 0;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        isgq_result_t result = isgq_quantizer_create(&quantizer, bad[i]);
        RANK_CHECK(rank, result == BAD && quantizer == NULL && iq_test_one_line(isgq_get_last_error()),
                   "\"%s\": status %d, \"%s\"", bad[i], (int)result, isgq_get_last_error());
    }
    RANK_STATUS(rank, isgq_quantizer_create(&quantizer, "unifrom:bits=4"), BAD);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "unifrom") != NULL && strstr(isgq_get_last_error(), "uniform") != NULL,
               "\"%s\" offers no right word", isgq_get_last_error());
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    RANK_STATUS(rank, isgq_quantizer_create(&quantizer, longer), BAD);
    RANK_STATUS(rank, isgq_quantizer_create(NULL, "none"), BAD);
    RANK_STATUS(rank, isgq_quantizer_create(&quantizer, NULL), BAD);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) { /* the canonical text means the same */
        RANK_OK(rank, isgq_quantizer_create(&quantizer, good[i]));
        RANK_OK(rank, isgq_quantizer_create(&again, isgqx_quantizer_text(quantizer)));
        RANK_CHECK(rank, strcmp(isgqx_quantizer_text(again), isgqx_quantizer_text(quantizer)) == 0, "%s has two texts", good[i]);
        isgq_quantizer_destroy(again);
        isgq_quantizer_destroy(quantizer);
    }
    quantizer = iq_quantizer(rank, "uniform:bits=4");
    RANK_STATUS(rank, isgq_quantizer_max_bytes(NULL, ISGQ_FLOAT32, 10, &bytes), BAD);
    RANK_STATUS(rank, isgq_quantizer_max_bytes(quantizer, (isgq_data_type_t)77, 10, &bytes), BAD);
    RANK_STATUS(rank, isgq_quantizer_max_bytes(quantizer, ISGQ_FLOAT32, 10, NULL), BAD);
    RANK_STATUS(rank, isgq_quantizer_max_bytes(quantizer, ISGQ_FLOAT32, SIZE_MAX, &bytes), BAD);
    RANK_OK(rank, isgq_quantizer_max_bytes(quantizer, ISGQ_FLOAT32, 10240, &bytes));
    RANK_CHECK(rank, bytes >= 5120 && bytes < 6000, "10240 values of 4 bits: %zu bytes", bytes);
    RANK_CHECK(rank, isgqx_quantizer_text(NULL)[0] == '\0', "a text for NULL");
    isgq_quantizer_destroy(quantizer);
    isgq_quantizer_destroy(NULL);
}

static void tensors_body(iq_rank_t *rank)
{
    isgq_tensor_t tensor = NULL, other = NULL;
    unsigned char state[4096];
    size_t bytes = 0, room = sizeof(state), little = 3;
    RANK_STATUS(rank, isgq_tensor_create(NULL, "w", 4), BAD);
    RANK_STATUS(rank, isgq_tensor_create(&tensor, NULL, 4), BAD);
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", 4));
    RANK_OK(rank, isgq_tensor_create(&other, "w", 5));
    RANK_STATUS(rank, isgq_tensor_reset(NULL), BAD);
    RANK_STATUS(rank, isgq_tensor_shape(NULL, 2, 2), BAD);
    RANK_STATUS(rank, isgq_tensor_shape(tensor, 2, 3), BAD);
    RANK_STATUS(rank, isgq_tensor_shape(tensor, SIZE_MAX / 2 + 1, 8), BAD);
    RANK_OK(rank, isgq_tensor_shape(tensor, 4, 1));
    RANK_OK(rank, isgq_tensor_shape(tensor, 2, 2));
    RANK_OK(rank, isgq_tensor_reset(tensor));
    RANK_STATUS(rank, isgq_tensor_save(NULL, NULL, &bytes), BAD);
    RANK_STATUS(rank, isgq_tensor_save(tensor, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_tensor_save(tensor, state, &little), BAD);
    RANK_OK(rank, isgq_tensor_save(tensor, NULL, &bytes));
    RANK_CHECK(rank, bytes > 0 && bytes <= sizeof(state), "the state has %zu bytes", bytes);
    RANK_OK(rank, isgq_tensor_save(tensor, state, &room));
    RANK_CHECK(rank, room == bytes, "%zu bytes used, %zu announced", room, bytes);
    RANK_STATUS(rank, isgq_tensor_load(NULL, state, bytes), BAD);
    RANK_STATUS(rank, isgq_tensor_load(tensor, NULL, bytes), BAD);
    RANK_STATUS(rank, isgq_tensor_load(tensor, state, bytes - 1), ISGQ_ERR_CORRUPT);
    RANK_STATUS(rank, isgq_tensor_load(other, state, bytes), BAD);
    RANK_OK(rank, isgq_tensor_load(tensor, state, bytes));
    for (size_t i = 0; i < bytes; i++) { /* every damaged byte is seen */
        state[i] ^= 0x10;
        RANK_CHECK(rank, isgq_tensor_load(tensor, state, bytes) != ISGQ_SUCCESS, "byte %zu of the state may be damaged unseen",
                   i);
        state[i] ^= 0x10;
    }
    isgq_tensor_destroy(tensor);
    isgq_tensor_destroy(other);
    isgq_tensor_destroy(NULL);
}

static void ignore_line(void *context, const char *line)
{
    (void)line;
    ++*(int *)context;
}

static void introspection_body(iq_rank_t *rank)
{
    isgq_config_var_t var = {.size = sizeof(var)};
    isgqx_algorithm_t algorithm = {.size = sizeof(algorithm)};
    int version = 0, lines = 0, known = 0;
    size_t index = 0;
    RANK_STATUS(rank, isgq_get_version(NULL), BAD);
    RANK_OK(rank, isgq_get_version(&version));
    RANK_CHECK(rank, version == ISGQ_VERSION_CODE, "version %d", version);
    for (int code = -5; code < 200; code++)
        known += strcmp(isgq_get_error_string((isgq_result_t)code), isgq_get_error_string((isgq_result_t)-77)) != 0;
    RANK_CHECK(rank, known == 13 && iq_test_one_line(isgq_get_error_string((isgq_result_t)-77)), "%d statuses have a text",
               known);
    RANK_STATUS(rank, isgq_get_config_var(0, NULL), BAD);
    while (isgq_get_config_var(index, &var) == ISGQ_SUCCESS) {
        RANK_CHECK(rank,
                   strncmp(var.name, "ISGQ_", 5) == 0 && var.default_value != NULL && var.value != NULL && var.help[0] != '\0',
                   "variable %zu", index);
        index++;
    }
    RANK_CHECK(rank, index > 10, "only %zu variables", index);
    RANK_STATUS(rank, isgqx_algorithm(0, NULL), BAD);
    RANK_CHECK(rank, isgqx_algorithm(10000, &algorithm) == BAD, "algorithm 10000 exists");
    RANK_STATUS(rank, isgqx_info_print(NULL, NULL), BAD);
    RANK_OK(rank, isgqx_info_print(ignore_line, &lines));
    RANK_STATUS(rank, isgqx_plan_print("allreduce", NULL, "none", 4, 4, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print("alreduce", NULL, "none", 4, 0, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print(NULL, NULL, "none", 4, 0, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print("allreduce", "rinng", "none", 4, 0, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print("allreduce", NULL, "nonne", 4, 0, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print("allreduce", NULL, "none", 0, 0, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    lines = 0;
    RANK_OK(rank, isgqx_plan_print("allreduce", NULL, "none", 4, 0, 100, ISGQ_FLOAT32, ignore_line, &lines));
    RANK_CHECK(rank, lines > 1, "a plan of %d lines", lines);
}

static void factored_plans_body(iq_rank_t *rank)
{
    isgqx_factored_shape_t shape = {.size = sizeof(shape), .max_batch = 8, .m = 20, .n = 30, .bias = 1}, other = shape;
    int lines = 0;
    RANK_STATUS(rank, isgqx_plan_print_factored(NULL, NULL, "isgq", 4, 0, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print_factored(&shape, NULL, "isgq", 4, 0, ISGQ_FLOAT32, NULL, NULL), BAD);
    RANK_STATUS(rank, isgqx_plan_print_factored(&shape, NULL, "isgq", 4, -1, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print_factored(&shape, NULL, "isqg", 4, 0, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print_factored(&shape, "gahter", "isgq", 4, 0, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print_factored(&shape, NULL, "isgq", 4, 0, ISGQ_INT32, ignore_line, &lines),
                ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgqx_plan_print_factored(&shape, "gather", "none", 4, 0, ISGQ_FLOAT32, ignore_line, &lines),
                ISGQ_ERR_UNSUPPORTED);
    other.size--;
    RANK_STATUS(rank, isgqx_plan_print_factored(&other, NULL, "isgq", 4, 0, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    other = shape;
    other.m = other.n = (size_t)1 << 31;
    RANK_STATUS(rank, isgqx_plan_print_factored(&other, NULL, "isgq", 4, 0, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    other.n = SIZE_MAX;
    RANK_STATUS(rank, isgqx_plan_print_factored(&other, NULL, "isgq", 4, 0, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_STATUS(rank, isgqx_plan_print("factored", NULL, "isgq", 4, 0, 100, ISGQ_FLOAT32, ignore_line, &lines), BAD);
    RANK_CHECK(rank, lines == 0, "%d lines of plans that do not exist", lines);
    RANK_OK(rank, isgqx_plan_print_factored(&shape, NULL, "isgq", 4, 3, ISGQ_BFLOAT16, ignore_line, &lines));
    RANK_CHECK(rank, lines > 7, "a plan of %d lines", lines);
}

/* ---- the cases ---- */

static void run(iq_rank_fn body, int nranks, bool apart)
{
    iq_ranks_t ranks = {.nranks = nranks, .body = body, .apart = apart};
    iq_ranks_run(&ranks, NULL);
}

#define CASE(name, body, nranks, apart) \
    START_TEST(name)                    \
    {                                   \
        run(body, nranks, apart);       \
    }                                   \
    END_TEST

CASE(bad_init, init_body, 1, true)
CASE(used_id, used_id_body, 1, true)
CASE(bad_transports, transports_body, 2, true)
CASE(bad_oob, oob_body, 1, true)
CASE(bad_queries, queries_body, 2, false)
CASE(short_stats, short_stats_body, 1, false)
CASE(after_finalize, finalized_body, 2, false)
CASE(bad_memory, memory_body, 2, false)
CASE(bad_quantizers, quantizers_body, 1, true)
CASE(bad_tensors, tensors_body, 1, true)
CASE(bad_introspection, introspection_body, 1, true)
CASE(bad_factored_plans, factored_plans_body, 1, true)

/* Errors of a binding count as the library's own. */
static void refusing_body(iq_rank_t *rank)
{
    float value[4] = {0};
    RANK_STATUS(rank, isgq_group_refuse(rank->comm, ISGQ_SUCCESS, "no error"), BAD);
    RANK_STATUS(rank, isgq_group_refuse(rank->comm, ISGQ_ERR_TIMEOUT, NULL), BAD);
    RANK_STATUS(rank, isgq_group_refuse(rank->comm, ISGQ_ERR_TIMEOUT, ""), BAD);
    RANK_STATUS(rank, isgq_group_refuse(rank->comm, ISGQ_ERR_MISMATCH, "no group, so nothing fails"), ISGQ_ERR_MISMATCH);
    RANK_CHECK(rank, strcmp(isgq_get_last_error(), "no group, so nothing fails") == 0, "\"%s\"", isgq_get_last_error());
    check_alive(rank);
    iq_rank_meet(rank);
    if (rank->rank == 1) {
        RANK_OK(rank, isgq_group_start());
        RANK_STATUS(rank, isgq_group_refuse(rank->comm, ISGQ_ERR_NO_MEMORY, "a binding's own reason"), ISGQ_ERR_NO_MEMORY);
        RANK_OK(rank, isgq_allreduce(value, value, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
        RANK_STATUS(rank, isgq_group_end(), ISGQ_ERR_NO_MEMORY);
    } else {
        isgq_result_t result = isgq_barrier(rank->comm, NULL); /* it may know already */
        if (result == ISGQ_SUCCESS)
            result = isgq_comm_synchronize(rank->comm);
        RANK_CHECK(rank, result == ISGQ_ERR_NO_MEMORY, "status %d", (int)result);
    }
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "a binding's own reason") != NULL, "\"%s\"", isgq_get_last_error());
}

START_TEST(refusing)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_THREADS, .nranks = 2, .body = refusing_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* No launcher in the environment: a usage error that says what to do. */
static void no_launcher_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    RANK_STATUS(rank, isgq_comm_init_env(&comm, NULL), ISGQ_ERR_INVALID_USAGE);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "ISGQ_") != NULL && comm == NULL, "\"%s\" does not help",
               isgq_get_last_error());
}

START_TEST(no_launcher)
{
    static const char *const empty[] = {"ISGQ_RANK=", "ISGQ_NRANKS=", "RANK=",         "WORLD_SIZE=", "OMPI_COMM_WORLD_RANK=",
                                        "PMI_RANK=",  "PMI_SIZE=",    "SLURM_PROCID=", NULL};
    static const char *const half[] = {"ISGQ_RANK=0", "ISGQ_NRANKS=", NULL};
    static const char *const rubbish[] = {"ISGQ_RANK=x", "ISGQ_NRANKS=2", NULL};
    static const char *const beyond[] = {"ISGQ_RANK=2", "ISGQ_NRANKS=2", NULL};
    const char *const *environments[] = {empty, half, rubbish, beyond};
    for (int i = 0; i < 4; i++) {
        iq_ranks_t ranks = {
            .kind = IQ_RANKS_PROCESSES, .nranks = 1, .body = no_launcher_body, .environment = environments[i], .apart = true};
        iq_ranks_run(&ranks, NULL);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("handles");
    TCase *init = iq_add_case(suite, tcase_create("init"), no_launcher, 1);
    tcase_add_test(init, bad_init);
    tcase_add_test(init, used_id);
    tcase_add_test(init, bad_transports);
    tcase_add_test(init, bad_oob);
    TCase *queries = iq_add_case(suite, tcase_create("queries"), bad_queries, 1);
    tcase_add_test(queries, short_stats);
    tcase_add_test(queries, after_finalize);
    iq_add_case(suite, tcase_create("memory"), bad_memory, 1);
    iq_add_case(suite, tcase_create("quantizers"), bad_quantizers, 1);
    iq_add_case(suite, tcase_create("tensors"), bad_tensors, 1);
    TCase *introspection = iq_add_case(suite, tcase_create("introspection"), bad_introspection, 1);
    tcase_add_test(introspection, bad_factored_plans);
    iq_add_case(suite, tcase_create("refuse"), refusing, 1);
    return suite;
}
