/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lossless collectives: every type, reduction, algorithm and awkward count, on 1 to 9 ranks, compared with exact references.
 *
 * Invariants 1 (same bits everywhere), 2 (exact sums on any algorithm), 4 (lossless, stated order), 5 (NaN and Inf show) and 6
 * (zero counts, one rank, odd counts, alignment, in place) of the design.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/numbers.h"
#include "support/ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef isgq_result_t (*call_fn)(iq_rank_t *rank, const void *send, void *recv, size_t part, isgq_data_type_t type,
                                 isgq_red_op_t op, const isgq_call_options_t *options);

/* Where the ranks' parts lie: what a rank reads and writes, in parts. */
typedef struct collective {
    const char *name;
    call_fn call;
    bool sends_all, receives_all; /* N parts instead of one */
    bool reduces;
} collective_t;

typedef struct shape {
    const collective_t *collective;
    isgq_data_type_t type;
    isgq_red_op_t op;
    size_t part; /* elements of a rank's part; allreduce: of all */
    const char *algorithm;
    bool in_place, accumulate;
    uint64_t salt;
} shape_t;

static isgq_result_t call_allreduce(iq_rank_t *rank, const void *send, void *recv, size_t part, isgq_data_type_t type,
                                    isgq_red_op_t op, const isgq_call_options_t *options)
{
    return isgq_allreduce(send, recv, part, type, op, NULL, rank->comm, NULL, options);
}

static isgq_result_t call_reduce_scatter(iq_rank_t *rank, const void *send, void *recv, size_t part, isgq_data_type_t type,
                                         isgq_red_op_t op, const isgq_call_options_t *options)
{
    return isgq_reduce_scatter(send, recv, part, type, op, NULL, rank->comm, NULL, options);
}

static isgq_result_t call_allgather(iq_rank_t *rank, const void *send, void *recv, size_t part, isgq_data_type_t type,
                                    isgq_red_op_t op, const isgq_call_options_t *options)
{
    (void)op;
    return isgq_allgather(send, recv, part, type, NULL, rank->comm, NULL, options);
}

static const collective_t allreduce = {"allreduce", call_allreduce, false, false, true};
static const collective_t reduce_scatter = {"reduce_scatter", call_reduce_scatter, true, false, true};
static const collective_t allgather = {"allgather", call_allgather, false, true, false};

static size_t elements(const iq_rank_t *rank, const shape_t *shape, bool all)
{
    return shape->part * (all ? (size_t)rank->nranks : 1);
}

/* What recv must hold after the call, if it held `prior`. */
static void expect(const iq_rank_t *rank, const shape_t *shape, size_t count, void *prior)
{
    const iq_type_t *type = &iq_types[shape->type];
    size_t first = shape->collective->sends_all ? (size_t)rank->rank * shape->part : 0;
    unsigned char *values = malloc(count * type->bytes + 1);
    if (shape->collective->reduces)
        iq_numbers_reduce(shape->type, shape->op, shape->salt, rank->nranks, first, count, values);
    for (int r = 0; !shape->collective->reduces && r < rank->nranks; r++)
        iq_numbers_fill(shape->type, ISGQ_SUM, shape->salt, r, 0, shape->part, values + (size_t)r * shape->part * type->bytes);
    if (shape->accumulate)
        iq_numbers_add(shape->type, values, count, prior);
    else
        memcpy(prior, values, count * type->bytes);
    free(values);
}

static void compare(iq_rank_t *rank, const shape_t *shape, const iq_buffer_t *found, const iq_buffer_t *due)
{
    size_t bytes = iq_types[shape->type].bytes;
    if (memcmp(found->data, due->data, due->bytes) == 0)
        return;
    for (size_t i = 0; i < due->bytes; i += bytes)
        RANK_CHECK(rank, memcmp(found->data + i, due->data + i, bytes) == 0,
                   "%s of %zu %s op %d algorithm %s%s%s: element %zu is wrong, bytes %02x%02x.. instead of %02x%02x..",
                   shape->collective->name, shape->part, iq_types[shape->type].name, (int)shape->op,
                   shape->algorithm == NULL ? "auto" : shape->algorithm, shape->in_place ? " in place" : "",
                   shape->accumulate ? " accumulated" : "", i / bytes, found->data[i + bytes - 1], found->data[i],
                   due->data[i + bytes - 1], due->data[i]);
}

/* In place: the smaller of the two buffers is this rank's part of the larger one. */
static void place(const iq_rank_t *rank, const shape_t *shape, size_t part_bytes, const unsigned char **send,
                  unsigned char **recv)
{
    if (shape->collective->receives_all)
        *send = *recv + (size_t)rank->rank * part_bytes;
    else if (shape->collective->sends_all)
        *recv = (unsigned char *)(uintptr_t)*send + (size_t)rank->rank * part_bytes;
    else
        *send = *recv;
}

static void check_call(iq_rank_t *rank, const shape_t *shape)
{
    const iq_type_t *type = &iq_types[shape->type];
    size_t sent = elements(rank, shape, shape->collective->sends_all),
           received = elements(rank, shape, shape->collective->receives_all);
    iq_buffer_t send = iq_buffer_new(sent * type->bytes, type->bytes),
                recv = iq_buffer_new(received * type->bytes, 3 * type->bytes);
    iq_buffer_t due = iq_buffer_new(received * type->bytes, 0), input = iq_buffer_new(sent * type->bytes, 0);
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = shape->algorithm, .accumulate = shape->accumulate};
    const unsigned char *from = send.data;
    unsigned char *to = recv.data;
    iq_numbers_fill(shape->type, shape->op, shape->salt + 1, rank->rank, 0, received, to);
    if (shape->in_place)
        place(rank, shape, shape->part * type->bytes, &from, &to);
    iq_numbers_fill(shape->type, shape->collective->reduces ? shape->op : ISGQ_SUM, shape->salt, rank->rank, 0, sent,
                    (unsigned char *)(uintptr_t)from);
    memcpy(due.data, to, due.bytes);
    memcpy(input.data, from, input.bytes);
    expect(rank, shape, received, due.data);
    RANK_OK(rank, shape->collective->call(rank, from, to, shape->part, shape->type, shape->op, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    iq_buffer_t found = {.data = to, .bytes = due.bytes};
    compare(rank, shape, &found, &due);
    RANK_CHECK(rank, shape->in_place || memcmp(from, input.data, input.bytes) == 0, "the input was changed");
    RANK_CHECK(rank, iq_buffer_intact(&send) && iq_buffer_intact(&recv), "%s of %zu %s: wrote outside its buffer",
               shape->collective->name, shape->part, type->name);
    iq_buffer_free(&send);
    iq_buffer_free(&recv);
    iq_buffer_free(&due);
    iq_buffer_free(&input);
}

/* Algorithm `index` of a collective, "auto" (NULL) first; false past the last. */
static bool algorithm_at(const char *collective, int index, const char **name)
{
    isgqx_algorithm_t row = {.size = sizeof(row)};
    *name = NULL;
    for (size_t i = 0; index > 0; i++) {
        if (isgqx_algorithm(i, &row) != ISGQ_SUCCESS)
            return false;
        if (strcmp(row.collective, collective) == 0 && --index == 0)
            *name = row.name;
    }
    return true;
}

/* Some algorithms are for some placements of ranks alone. Nothing but those may be refused, and all ranks are told the same at once. */
static bool is_for_these_ranks(iq_rank_t *rank, const char *algorithm)
{
    static const char *const placed[] = {"board", "levels"};
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = algorithm};
    float value = 1;
    for (size_t i = 0; algorithm != NULL && i < sizeof(placed) / sizeof(placed[0]); i++) {
        if (strcmp(algorithm, placed[i]) != 0)
            continue;
        isgq_result_t result = isgq_allreduce(&value, &value, 1, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options);
        if (result == ISGQ_ERR_UNSUPPORTED)
            return false;
        RANK_OK(rank, result);
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    }
    return true;
}

static void check_record(iq_rank_t *rank, const shape_t *shape)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    RANK_CHECK(rank, shape->algorithm == NULL || strcmp(record.algorithm, shape->algorithm) == 0, "%s ran %s instead of %s",
               shape->collective->name, record.algorithm, shape->algorithm);
    RANK_CHECK(rank, record.algorithm[0] != '\0' && strcmp(record.algorithm, "auto") != 0 && record.why[0] != '\0',
               "no algorithm or no reason");
}

/* All counts of one type, reduction and algorithm; in place and accumulation take turns. */
static void sweep_counts(iq_rank_t *rank, shape_t shape, unsigned *turn)
{
    size_t n = (size_t)rank->nranks;
    const size_t counts[] = {0, 1, 2, 3, n - 1, n, n + 1, 31, 33};
    const size_t large[] = {1000, 4099, 70001};
    size_t step = IQ_TEST_SANITIZED || iq_lab_hosts() > 0 ? 2 : 1; /* half of them where calls take long, in turns */
    for (size_t i = step == 2 ? *turn % 2 : 0; i < sizeof(counts) / sizeof(counts[0]) + 1; i += step, (*turn)++) {
        shape.part = i < sizeof(counts) / sizeof(counts[0]) ? counts[i] : large[*turn % 2];
        if (i == sizeof(counts) / sizeof(counts[0]) && *turn % 24 == 0)
            shape.part = large[2] / (shape.collective == &allreduce ? 1 : n);
        shape.in_place = *turn / 3 % 2 == 1;
        shape.accumulate = *turn % 3 == 1;
        shape.salt = *turn;
        check_call(rank, &shape);
    }
    check_record(rank, &shape);
}

static void sweep(iq_rank_t *rank)
{
    const collective_t *collective = rank->argument;
    unsigned turn = 0;
    for (int type = 0; type < IQ_TYPE_COUNT; type++) {
        for (int op = ISGQ_SUM; op <= (collective->reduces ? ISGQ_AVG : ISGQ_SUM); op++) {
            shape_t shape = {.collective = collective, .type = (isgq_data_type_t)type, .op = (isgq_red_op_t)op};
            for (int a = 0; algorithm_at(collective->name, a, &shape.algorithm); a++)
                if (is_for_these_ranks(rank, shape.algorithm))
                    sweep_counts(rank, shape, &turn);
        }
    }
}

static void run_sweep(const collective_t *collective, int index)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {
        .nranks = iq_test_nranks(index), .body = sweep, .argument = (void *)(uintptr_t)collective, .config = &config};
    iq_ranks_run(&ranks, NULL);
}

START_TEST(allreduce_is_exact)
{
    run_sweep(&allreduce, _i);
}
END_TEST

START_TEST(reduce_scatter_is_exact)
{
    run_sweep(&reduce_scatter, _i);
}
END_TEST

START_TEST(allgather_is_exact)
{
    run_sweep(&allgather, _i);
}
END_TEST

/* ---- broadcast and barrier ---- */

static void check_broadcast(iq_rank_t *rank, isgq_data_type_t type, size_t count, int root, bool in_place)
{
    size_t bytes = count * iq_types[type].bytes;
    iq_buffer_t send = iq_buffer_new(bytes, 0), recv = iq_buffer_new(bytes, iq_types[type].bytes), due = iq_buffer_new(bytes, 0);
    const void *from = rank->rank != root ? NULL : in_place ? recv.data : send.data;
    iq_numbers_fill(type, ISGQ_SUM, count, root, 0, count, due.data);
    memset(recv.data, 0x11, bytes);
    if (rank->rank == root)
        memcpy(in_place ? recv.data : send.data, due.data, bytes);
    RANK_OK(rank, isgq_broadcast(from, recv.data, count, type, root, rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, memcmp(recv.data, due.data, bytes) == 0, "broadcast of %zu %s from %d is wrong", count, iq_types[type].name,
               root);
    RANK_CHECK(rank, iq_buffer_intact(&recv) && iq_buffer_intact(&send), "broadcast wrote outside its buffer");
    iq_buffer_free(&send);
    iq_buffer_free(&recv);
    iq_buffer_free(&due);
}

static void broadcast_body(iq_rank_t *rank)
{
    const size_t counts[] = {0, 1, 7, 1000, 4099, 70001};
    for (int root = 0; root < rank->nranks; root++)
        for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
            for (int type = root % 2; type < IQ_TYPE_COUNT; type += i < 4 ? 2 : 8)
                check_broadcast(rank, (isgq_data_type_t)type, counts[i], root, (type + root) % 3 == 0);
}

/*
 * ISGQ_ALGORITHM would be refused by the other collectives: broadcasts get each algorithm through the environment of
 * forked ranks.
 */
START_TEST(broadcast_reaches_all)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = broadcast_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

START_TEST(broadcast_by_name)
{
    const char *name;
    char variable[64];
    const char *environment[] = {variable, NULL};
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 4, .body = broadcast_body, .environment = environment};
    for (int a = 1; algorithm_at("broadcast", a, &name); a++) {
        snprintf(variable, sizeof(variable), "ISGQ_ALGORITHM=%s", name);
        iq_ranks_run(&ranks, NULL);
    }
}
END_TEST

static void barrier_body(iq_rank_t *rank)
{
    for (uint64_t round = 1; round <= 50; round++) {
        atomic_fetch_add(&rank->flags[0], 1);
        RANK_OK(rank, isgq_barrier(rank->comm, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        uint64_t arrived = atomic_load(&rank->flags[0]), all = round * (uint64_t)rank->nranks;
        RANK_CHECK(rank, arrived >= all, "round %d: left with %d of %d arrivals", (int)round, (int)arrived, (int)all);
    }
}

START_TEST(barrier_waits_for_all)
{
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = barrier_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- the order of float sums ---- */

typedef struct order {
    isgq_data_type_t type;
    const char *algorithm;
    bool in_order; /* 0..N-1; otherwise some order */
} order_t;

static double wild(int rank, size_t i)
{
    return (double)iq_mix_unit(7, (uint64_t)rank, i) * ldexp(1.0, (int)(iq_mix(8, (uint64_t)rank, i) % 12));
}

/* Sum in f32 (f64 for f64) from rank 0 on, rounded to the type at the end. */
static double sum_in_order(isgq_data_type_t type, int nranks, const void *const *inputs, size_t i)
{
    float narrow = (float)iq_numbers_get(type, inputs[0], i);
    double wide = iq_numbers_get(type, inputs[0], i);
    for (int r = 1; r < nranks; r++) {
        narrow += (float)iq_numbers_get(type, inputs[r], i);
        wide += iq_numbers_get(type, inputs[r], i);
    }
    return type == ISGQ_FLOAT64 ? wide : (double)narrow;
}

static void compare_order(iq_rank_t *rank, const order_t *order, const void *const *inputs, const void *found, size_t count)
{
    double unit = order->type == ISGQ_FLOAT64   ? 0x1p-52
                  : order->type == ISGQ_FLOAT32 ? 0x1p-23
                  : order->type == ISGQ_FLOAT16 ? 0x1p-10
                                                : 0x1p-7;
    for (size_t i = 0; i < count; i++) {
        double due = sum_in_order(order->type, rank->nranks, inputs, i), size = 0, rounded[1] = {0};
        for (int r = 0; r < rank->nranks; r++)
            size += fabs(iq_numbers_get(order->type, inputs[r], i));
        iq_numbers_set(order->type, rounded, 0, due);
        double result = iq_numbers_get(order->type, found, i);
        if (order->in_order)
            RANK_CHECK(rank,
                       memcmp((const char *)found + i * iq_types[order->type].bytes, rounded, iq_types[order->type].bytes) == 0,
                       "%s %s: element %zu is %.17g, in rank order it is %.17g", order->algorithm, iq_types[order->type].name, i,
                       result, due);
        else
            RANK_CHECK(rank, fabs(result - due) <= rank->nranks * unit * size, "%s %s: element %zu is %.17g, not about %.17g",
                       order->algorithm, iq_types[order->type].name, i, result, due);
    }
}

static void order_body(iq_rank_t *rank)
{
    const order_t *order = rank->argument;
    const size_t count = 5003;
    size_t bytes = count * iq_types[order->type].bytes;
    void *inputs[IQ_RANKS_MOST], *out = malloc(bytes);
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = iq_lab_algorithm(order->algorithm, rank->nranks)};
    for (int r = 0; r < rank->nranks; r++) {
        inputs[r] = malloc(bytes);
        for (size_t i = 0; i < count; i++)
            iq_numbers_set(order->type, inputs[r], i, wild(r, i));
    }
    RANK_OK(rank, isgq_allreduce(inputs[rank->rank], out, count, order->type, ISGQ_SUM, NULL, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    compare_order(rank, order, (const void *const *)inputs, out, count);
    iq_rank_agree(rank, isgqx_hash(out, bytes), "the sum");
    for (int r = 0; r < rank->nranks; r++)
        free(inputs[r]);
    free(out);
}

START_TEST(floats_are_summed_in_the_stated_order)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT64, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    order_t order;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = order_body, .argument = &order, .config = &config};
    for (size_t t = 0; t < 4; t++) {
        for (int a = 0; algorithm_at("allreduce", a, &order.algorithm); a++) {
            order.type = types[t];
            order.in_order = order.algorithm == NULL || (strcmp(order.algorithm, "ring") != 0 && strcmp(order.algorithm, "levels") != 0);
            if (order.algorithm == NULL)
                order.algorithm = "auto";
            iq_ranks_run(&ranks, NULL);
        }
    }
}
END_TEST

/* ---- NaN and Inf ---- */

static void check_special(iq_rank_t *rank, isgq_data_type_t type, isgq_red_op_t op, const char *algorithm, int culprit)
{
    const size_t count = 301;
    size_t bytes = count * iq_types[type].bytes;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = iq_lab_algorithm(algorithm, rank->nranks)};
    void *buffer = malloc(bytes), *due = malloc(bytes);
    iq_numbers_fill(type, op, 3, rank->rank, 0, count, buffer);
    iq_numbers_reduce(type, op, 3, rank->nranks, 0, count, due);
    if (rank->rank == culprit) {
        iq_numbers_set(type, buffer, 17, (double)NAN);
        iq_numbers_set(type, buffer, 200, op == ISGQ_MIN ? -(double)INFINITY : (double)INFINITY);
    }
    RANK_OK(rank, isgq_allreduce(buffer, buffer, count, type, op, NULL, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, isnan(iq_numbers_get(type, buffer, 17)), "%s op %d %s: NaN of rank %d is lost", iq_types[type].name, (int)op,
               algorithm, culprit);
    RANK_CHECK(rank, isinf(iq_numbers_get(type, buffer, 200)), "%s op %d %s: Inf of rank %d is lost", iq_types[type].name,
               (int)op, algorithm, culprit);
    iq_numbers_set(type, due, 17, iq_numbers_get(type, buffer, 17));
    iq_numbers_set(type, due, 200, iq_numbers_get(type, buffer, 200));
    for (size_t i = 0; i < count; i++)
        RANK_CHECK(rank, i == 17 || iq_numbers_get(type, buffer, i) == iq_numbers_get(type, due, i),
                   "element %zu suffers from its neighbours", i);
    iq_rank_agree(rank, isgqx_hash(buffer, bytes), "the result with NaN");
    free(buffer);
    free(due);
}

static void special_body(iq_rank_t *rank)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT64, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    const char *name;
    for (size_t t = 0; t < 4; t++)
        for (int op = ISGQ_SUM; op <= ISGQ_AVG; op++)
            for (int a = 1; algorithm_at("allreduce", a, &name); a++)
                check_special(rank, types[t], (isgq_red_op_t)op, name, (op + a) % rank->nranks);
}

START_TEST(nan_and_inf_show)
{
    iq_ranks_t ranks = {.nranks = 1 + 2 * _i, .body = special_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- ordinary settings ---- */

/* Nothing set: default chunks, default algorithms, processes. */
START_TEST(processes_agree)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 1 + _i, .body = sweep, .argument = (void *)(uintptr_t)&allreduce};
    iq_ranks_run(&ranks, NULL);
    ranks.argument = (void *)(uintptr_t)&reduce_scatter;
    iq_ranks_run(&ranks, NULL);
    ranks.argument = (void *)(uintptr_t)&allgather;
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* All over the network; then pairs of ranks that share a host, so that one call uses two transports. */
START_TEST(hosts_agree)
{
    iq_ranks_t ranks = {
        .kind = IQ_RANKS_HOSTS, .nranks = 3 + _i, .hosts = 3 - _i, .body = sweep, .argument = (void *)(uintptr_t)&allreduce};
    if (iq_ranks_have_network())
        iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("collectives");
    iq_add_case(suite, tcase_create("allreduce"), allreduce_is_exact, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("reduce_scatter"), reduce_scatter_is_exact, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("allgather"), allgather_is_exact, IQ_RANK_COUNTS);
    TCase *broadcast = iq_add_case(suite, tcase_create("broadcast"), broadcast_by_name, 1);
    tcase_add_loop_test(broadcast, broadcast_reaches_all, 0, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("barrier"), barrier_waits_for_all, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("order_of_sums"), floats_are_summed_in_the_stated_order, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("nan"), nan_and_inf_show, 4);
    iq_add_case(suite, tcase_create("processes"), processes_agree, 4);
    if (!iq_lab_skips("hosts_agree", "the ranks of processes_agree live on hosts too"))
        iq_add_case(suite, tcase_create("hosts"), hosts_agree, 2);
    return suite;
}
