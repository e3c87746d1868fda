/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program written against nccl.h alone, without a GPU: every collective with every type and reduction, in place, misaligned, grouped, split. Its
 * ranks are processes, or all of them one thread. Values are 1 and 2, so every result is a small whole number that all types hold.
 *
 * usage: nccl_client processes|thread|threads RANKS everything|quantized|pair|abort
 */
#include <math.h>
#include <nccl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 8, COUNT = 1003, LARGE = 40000 };

/* The ranks of this process: one, or all of them. */
static ncclComm_t comms[MOST];
static int first, here, nranks;
static int problems;

#define NCCL(call)                                                                                       \
    do {                                                                                                 \
        ncclResult_t result_ = (call);                                                                   \
        if (result_ != ncclSuccess) {                                                                    \
            fprintf(stderr, "%s: %s, %s\n", #call, ncclGetErrorString(result_), ncclGetLastError(NULL)); \
            exit(1);                                                                                     \
        }                                                                                                \
    } while (0)

static void expect(int right, const char *what, int type, int op)
{
    if (!right && problems++ < 20)
        fprintf(stderr, "wrong: %s, type %d, operation %d, ranks %d..%d of %d\n", what, type, op, first, first + here - 1,
                nranks);
}

static size_t type_bytes(ncclDataType_t type)
{
    static const unsigned char bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return bytes[type];
}

/* Small whole numbers, and what AVG makes of them, in any type. */
static void put(ncclDataType_t type, void *at, size_t i, double value)
{
    int exponent, whole = (int)value;
    double mantissa = value == 0 ? 0 : frexp(value, &exponent) * 2 - 1;
    uint32_t bits;
    float single = (float)value;
    switch (type) {
    case ncclInt8: ((int8_t *)at)[i] = (int8_t)whole; break;
    case ncclUint8: ((uint8_t *)at)[i] = (uint8_t)whole; break;
    case ncclInt32: memcpy((char *)at + 4 * i, &whole, 4); break;
    case ncclUint32: memcpy((char *)at + 4 * i, &whole, 4); break;
    case ncclInt64:
    case ncclUint64: memcpy((char *)at + 8 * i, &(int64_t){whole}, 8); break;
    case ncclFloat32: memcpy((char *)at + 4 * i, &single, 4); break;
    case ncclFloat64: memcpy((char *)at + 8 * i, &value, 8); break;
    case ncclBfloat16:
        memcpy(&bits, &single, 4);
        memcpy((char *)at + 2 * i, &(uint16_t){(uint16_t)(bits >> 16)}, 2);
        break;
    case ncclFloat16:
        memcpy((char *)at + 2 * i, &(uint16_t){value == 0 ? 0 : (uint16_t)((exponent + 14) << 10 | (int)(mantissa * 1024))}, 2);
        break;
    case ncclFloat8e4m3: ((uint8_t *)at)[i] = value == 0 ? 0 : (uint8_t)((exponent + 6) << 3 | (int)(mantissa * 8)); break;
    default: ((uint8_t *)at)[i] = value == 0 ? 0 : (uint8_t)((exponent + 14) << 2 | (int)(mantissa * 4)); break;
    }
}

static double value_of(int rank, size_t i) { return (i * 5 + (size_t)rank * 3) % 7 < 3 ? 2 : 1; }

static double expected(ncclRedOp_t op, ncclDataType_t type, size_t i)
{
    double sum = 0, product = 1, most = 0, least = 9;
    for (int r = 0; r < nranks; r++) {
        double value = value_of(r, i);
        sum += value;
        product *= value;
        most = value > most ? value : most;
        least = value < least ? value : least;
    }
    double average = type <= ncclUint64 ? floor(sum / nranks) : sum / nranks;
    return op == ncclSum ? sum : op == ncclProd ? product : op == ncclMax ? most : op == ncclMin ? least : average;
}

/* Memory of one local rank, off by one element from any alignment. */
typedef struct buffers {
    char *send, *recv, *right;
} buffers_t;

static buffers_t memory[MOST];

static void make_buffers(size_t bytes)
{
    for (int k = 0; k < here; k++) {
        free(memory[k].send), free(memory[k].recv), free(memory[k].right);
        memory[k].send = calloc(bytes + 16, 1);
        memory[k].recv = calloc(bytes + 16, 1);
        memory[k].right = calloc(bytes + 16, 1);
        if (memory[k].send == NULL || memory[k].recv == NULL || memory[k].right == NULL)
            exit(1);
    }
}

static void fill(ncclDataType_t type, int k, size_t count, int in_place)
{
    memset(memory[k].recv, 0x55, count * type_bytes(type));
    for (size_t i = 0; i < count; i++)
        put(type, in_place ? memory[k].recv : memory[k].send, i, value_of(first + k, i));
}

/* 8-bit floats hold averages and sums of many ranks only nearly: those are left to conversions' own tests. */
static int exact_in(ncclDataType_t type, ncclRedOp_t op)
{
    if (type < ncclFloat8e4m3)
        return op != ncclAvg || type > ncclUint64
                   ? type != ncclFloat16 && type != ncclBfloat16 ? 1 : op != ncclAvg || (nranks & (nranks - 1)) == 0
                   : 1;
    return op != ncclAvg && (type == ncclFloat8e4m3 || nranks <= 4);
}

static void allreduce(ncclDataType_t type, ncclRedOp_t op, int in_place, int misaligned)
{
    size_t bytes = COUNT * type_bytes(type), shift = misaligned ? type_bytes(type) : 0;
    make_buffers(bytes + shift);
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        char *send = memory[k].send + shift, *recv = memory[k].recv + shift;
        memory[k].send += shift, memory[k].recv += shift;
        fill(type, k, COUNT, in_place);
        memory[k].send -= shift, memory[k].recv -= shift;
        for (size_t i = 0; i < COUNT; i++)
            put(type, memory[k].right, i, expected(op, type, i));
        NCCL(ncclAllReduce(in_place ? recv : send, recv, COUNT, type, op, comms[k], NULL));
    }
    NCCL(ncclGroupEnd());
    for (int k = 0; k < here; k++)
        expect(memcmp(memory[k].recv + shift, memory[k].right, bytes) == 0, in_place ? "allreduce in place" : "allreduce", type,
               op);
}

static void reductions(void)
{
    for (int type = 0; type < ncclNumTypes; type++)
        for (int op = 0; op < ncclNumOps; op++)
            for (int form = 0; form < 3; form++)
                if (exact_in((ncclDataType_t)type, (ncclRedOp_t)op))
                    allreduce((ncclDataType_t)type, (ncclRedOp_t)op, form == 1, form == 2);
}

/* To one rank: only there anything is written, and elsewhere there may be no buffer. */
static void reduce(ncclDataType_t type, int root)
{
    make_buffers(COUNT * type_bytes(type));
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        fill(type, k, COUNT, 0);
        for (size_t i = 0; i < COUNT; i++)
            put(type, memory[k].right, i, expected(ncclSum, type, i));
        NCCL(ncclReduce(memory[k].send, first + k == root ? memory[k].recv : NULL, COUNT, type, ncclSum, root, comms[k], NULL));
    }
    NCCL(ncclGroupEnd());
    for (int k = 0; k < here; k++)
        if (first + k == root)
            expect(memcmp(memory[k].recv, memory[k].right, COUNT * type_bytes(type)) == 0, "reduce", type, ncclSum);
}

static void reduce_scatter(ncclDataType_t type)
{
    size_t all = (size_t)nranks * COUNT, part = COUNT * type_bytes(type);
    make_buffers(all * type_bytes(type));
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        fill(type, k, all, 0);
        for (size_t i = 0; i < COUNT; i++)
            put(type, memory[k].right, i, expected(ncclSum, type, (size_t)(first + k) * COUNT + i));
        NCCL(ncclReduceScatter(memory[k].send, memory[k].recv, COUNT, type, ncclSum, comms[k], NULL));
    }
    NCCL(ncclGroupEnd());
    for (int k = 0; k < here; k++)
        expect(memcmp(memory[k].recv, memory[k].right, part) == 0, "reduce_scatter", type, ncclSum);
}

/* Element i of what rank `from` sends to rank `to` (or to all: to = 0). */
static uint32_t mark(int from, int to, size_t i) { return (uint32_t)from << 28 | (uint32_t)to << 24 | (uint32_t)i; }

typedef enum moves { ALLGATHER, GATHER, SCATTER, ALLTOALL, BROADCAST, BCAST } moves_t;

static void move(moves_t kind, int root)
{
    size_t n = (size_t)nranks;
    make_buffers(n * COUNT * 4);
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        uint32_t *send = (uint32_t *)memory[k].send, *recv = (uint32_t *)memory[k].recv, *right = (uint32_t *)memory[k].right;
        int rank = first + k;
        for (size_t r = 0; r < n; r++)
            for (size_t i = 0; i < COUNT; i++) {
                int sent = kind == SCATTER || kind == ALLTOALL;
                send[r * COUNT + i] = mark(rank, sent ? (int)r : 0, i);
                right[r * COUNT + i] = kind == ALLTOALL                     ? mark((int)r, rank, i)
                                       : kind == SCATTER                    ? mark(root, rank, i)
                                       : kind == BROADCAST || kind == BCAST ? mark(root, 0, i)
                                                                            : mark((int)r, 0, i);
            }
        if (kind == BCAST && rank == root)
            memcpy(recv, send, COUNT * 4);
        switch (kind) {
        case ALLGATHER: NCCL(ncclAllGather(send, recv, COUNT, ncclUint32, comms[k], NULL)); break;
        case GATHER: NCCL(ncclGather(send, rank == root ? recv : NULL, COUNT, ncclUint32, root, comms[k], NULL)); break;
        case SCATTER: NCCL(ncclScatter(rank == root ? send : NULL, recv, COUNT, ncclUint32, root, comms[k], NULL)); break;
        case ALLTOALL: NCCL(ncclAlltoAll(send, recv, COUNT, ncclUint32, comms[k], NULL)); break;
        case BROADCAST: NCCL(ncclBroadcast(send, recv, COUNT, ncclUint32, root, comms[k], NULL)); break;
        case BCAST: NCCL(ncclBcast(recv, COUNT, ncclUint32, root, comms[k], NULL)); break;
        }
    }
    NCCL(ncclGroupEnd());
    for (int k = 0; k < here; k++) {
        int all = kind == ALLGATHER || kind == ALLTOALL || kind == GATHER;
        if (kind != GATHER || first + k == root)
            expect(memcmp(memory[k].recv, memory[k].right, (all ? n : 1) * COUNT * 4) == 0, "movement", (int)kind, root);
    }
}

/* sum of 3 * input; the operation is destroyed before the group ends, as PyTorch does. */
static void scaled(ncclDataType_t type)
{
    char scalar[8];
    put(type, scalar, 0, 3);
    make_buffers(COUNT * type_bytes(type));
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        ncclRedOp_t op;
        fill(type, k, COUNT, 0);
        for (size_t i = 0; i < COUNT; i++)
            put(type, memory[k].right, i, 3 * expected(ncclSum, type, i));
        NCCL(ncclRedOpCreatePreMulSum(&op, scalar, type, ncclScalarHostImmediate, comms[k]));
        NCCL(ncclAllReduce(memory[k].send, memory[k].recv, COUNT, type, op, comms[k], NULL));
        NCCL(ncclRedOpDestroy(op, comms[k]));
    }
    memset(scalar, 0, sizeof(scalar));
    NCCL(ncclGroupEnd());
    for (int k = 0; k < here; k++)
        expect(memcmp(memory[k].recv, memory[k].right, COUNT * type_bytes(type)) == 0, "premultiplied", type, ncclSum);
}

static void arguments(void)
{
    float x = 1, y = 0;
    ncclComm_t comm = comms[0];
    int number = -1;
    ncclResult_t async = ncclInternalError;
    expect(ncclAllReduce(&x, &y, 1, ncclFloat, ncclSum, NULL, NULL) == ncclInvalidArgument, "NULL comm", 0, 0);
    expect(ncclAllReduce(&x, &y, 1, (ncclDataType_t)77, ncclSum, comm, NULL) == ncclInvalidArgument, "type 77", 0, 0);
    NCCL(ncclGroupStart()); /* the mistake takes the whole group with it */
    NCCL(ncclAllReduce(&x, &y, 1, ncclFloat, ncclSum, comm, NULL));
    expect(ncclAllReduce(&x, &y, 1, (ncclDataType_t)77, ncclSum, comm, NULL) == ncclInvalidArgument, "type 77 in a group", 0, 0);
    expect(ncclGroupEnd() == ncclInvalidArgument && y == 0.0f, "a group with a mistake", 0, 0);
    expect(ncclAllReduce(&x, &y, 1, ncclFloat, (ncclRedOp_t)77, comm, NULL) == ncclInvalidArgument, "operation 77", 0, 0);
    if (nranks == 1) /* elsewhere the others would wait */
        expect(ncclAllReduce(NULL, &y, 1, ncclFloat8e4m3, ncclSum, comm, NULL) == ncclInvalidArgument, "NULL buffer", 0, 0);
    expect(ncclBroadcast(&x, &y, 1, ncclFloat, nranks, comm, NULL) == ncclInvalidArgument, "root beyond", 0, 0);
    expect(strlen(ncclGetLastError(comm)) > 0, "a text", 0, 0);
    expect(ncclAllReduce(&x, &y, 0, ncclFloat, ncclSum, comm, NULL) == ncclSuccess, "no elements", 0, 0);
    expect(ncclGroupEnd() == ncclInvalidUsage, "no group", 0, 0);
    expect(ncclCommDestroy(NULL) == ncclSuccess && ncclCommAbort(NULL) == ncclSuccess, "NULL ended", 0, 0);
    expect(ncclCommCount(comm, &number) == ncclSuccess && number == nranks, "count", 0, 0);
    expect(ncclCommUserRank(comm, &number) == ncclSuccess && number == first, "rank", 0, 0);
    expect(ncclCommGetAsyncError(comm, &async) == ncclSuccess && async == ncclSuccess, "no error", 0, 0);
    expect(ncclGetVersion(&number) == ncclSuccess && number == NCCL_VERSION_CODE, "version", 0, 0);
    expect(ncclSend(&x, 1, ncclFloat, 0, comm, NULL) == ncclInvalidUsage, "ncclSend is missing and says so", 0, 0);
}

/* Even and odd ranks apart, highest first; one rank of a process only, as a split is no group call. */
static void split(void)
{
    ncclComm_t half;
    float mine = (float)(first + 1), sum = 0, right = 0;
    int rank, before = 0;
    NCCL(ncclCommSplit(comms[0], first % 2, -first, &half, NULL));
    NCCL(ncclAllReduce(&mine, &sum, 1, ncclFloat, ncclSum, half, NULL));
    for (int r = first % 2; r < nranks; r += 2) {
        right += (float)(r + 1);
        before += r > first;
    }
    NCCL(ncclCommUserRank(half, &rank));
    expect(sum == right && rank == before, "split", 0, 0);
    NCCL(ncclCommDestroy(half));
    NCCL(ncclCommSplit(comms[0], first == 0 ? NCCL_SPLIT_NOCOLOR : 0, 0, &half, NULL));
    expect((half == NULL) == (first == 0), "split without a color", 0, 0);
    NCCL(ncclCommDestroy(half));
}

static void everything(void)
{
    reductions();
    for (int root = 0; root<nranks; root += nranks> 1 ? nranks - 1 : 1) {
        reduce(ncclFloat32, root);
        reduce(ncclFloat8e4m3, root);
        for (int kind = ALLGATHER; kind <= BCAST; kind++)
            move((moves_t)kind, root);
    }
    reduce_scatter(ncclFloat16);
    reduce_scatter(ncclInt64);
    reduce_scatter(ncclFloat8e4m3);
    for (int type = 0; type < ncclFloat8e4m3; type++)
        scaled((ncclDataType_t)type);
    if (nranks == 1 || here == 1)
        split();
    arguments();
}

/* Relative error of large sums, which a policy may have quantized, and of small ones. */
static void quantized(void)
{
    for (int small = 0; small < 2; small++) {
        size_t count = small ? 100 : LARGE;
        double error = 0, norm = 0;
        make_buffers(count * 4);
        NCCL(ncclGroupStart());
        for (int k = 0; k < here; k++) {
            fill(ncclFloat32, k, count, 0);
            NCCL(ncclAllReduce(memory[k].send, memory[k].recv, count, ncclFloat32, small ? ncclSum : ncclAvg, comms[k], NULL));
        }
        NCCL(ncclGroupEnd());
        for (int k = 1; k < here; k++)
            expect(memcmp(memory[k].recv, memory[0].recv, count * 4) == 0, "same bits on all ranks", 0, 0);
        for (size_t i = 0; i < count; i++) {
            double right = expected(small ? ncclSum : ncclAvg, ncclFloat32, i),
                   difference = (double)((float *)memory[0].recv)[i] - right;
            error += difference * difference;
            norm += right * right;
        }
        if (first == 0)
            printf("%s %.3e\n", small ? "small" : "large", error / norm);
    }
}

/* The same sum as a pair, in place as such programs do it: each rank sums its part and gathers those of all. */
static void pair(void)
{
    size_t part = LARGE / (size_t)nranks, all = part * (size_t)nranks;
    double error = 0, norm = 0;
    make_buffers(all * 4);
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        float *values = (float *)memory[k].recv;
        fill(ncclFloat32, k, all, 1);
        NCCL(ncclReduceScatter(values, values + (size_t)(first + k) * part, part, ncclFloat32, ncclSum, comms[k], NULL));
    }
    NCCL(ncclGroupEnd());
    NCCL(ncclGroupStart());
    for (int k = 0; k < here; k++) {
        float *values = (float *)memory[k].recv;
        NCCL(ncclAllGather(values + (size_t)(first + k) * part, values, part, ncclFloat32, comms[k], NULL));
    }
    NCCL(ncclGroupEnd());
    for (size_t i = 0; i < all; i++) {
        double right = expected(ncclSum, ncclFloat32, i), difference = (double)((float *)memory[0].recv)[i] - right;
        error += difference * difference;
        norm += right * right;
    }
    if (first == 0)
        printf("pair %.3e\n", error / norm);
}

/* Another thread aborts while this one waits for a rank that does not come. */
static void *abort_later(void *comm)
{
    usleep(200000);
    NCCL(ncclCommAbort(comm));
    return NULL;
}

static void abort_inside(void)
{
    pthread_t thread;
    float x = 1, y;
    if (first == 0) {
        usleep(500000); /* never makes the call */
        (void)ncclCommAbort(comms[0]);
        return;
    }
    if (pthread_create(&thread, NULL, abort_later, comms[0]) != 0)
        exit(1);
    expect(ncclAllReduce(&x, &y, 1, ncclFloat, ncclSum, comms[0], NULL) != ncclSuccess, "a call that was aborted", 0, 0);
    pthread_join(thread, NULL);
}

/* Ranks are threads: none may wait for another one's end, nor may the first to end hold up those that are still beginning. */
static void *short_life(void *argument)
{
    const ncclUniqueId *id = argument;
    static _Atomic int next;
    ncclComm_t comm;
    float x = 1;
    NCCL(ncclCommInitRank(&comm, nranks, *id, next++ % nranks));
    NCCL(ncclCommDestroy(comm));
    expect(ncclCommDestroy(comm) == ncclInvalidArgument, "destroyed twice", 0, 0);
    expect(ncclAllReduce(&x, &x, 1, ncclFloat, ncclSum, comm, NULL) == ncclInvalidArgument, "use after destroy", 0, 0);
    return NULL;
}

static int short_lives(void)
{
    pthread_t threads[MOST];
    ncclUniqueId id;
    for (int round = 0; round < 10; round++) {
        NCCL(ncclGetUniqueId(&id));
        for (int r = 0; r < nranks; r++)
            if (pthread_create(&threads[r], NULL, short_life, &id) != 0)
                return 1;
        for (int r = 0; r < nranks; r++)
            pthread_join(threads[r], NULL);
    }
    return problems != 0;
}

static void run(const char *what)
{
    if (strcmp(what, "abort") == 0) {
        abort_inside();
        return;
    }
    if (strcmp(what, "quantized") == 0)
        quantized();
    else if (strcmp(what, "pair") == 0)
        pair();
    else
        everything();
    for (int k = 0; k < here; k++)
        NCCL(ncclCommDestroy(comms[k]));
}

static int one_process(int rank, int pipes[MOST][2], const char *what)
{
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.commName = "gradients";
    first = rank;
    here = 1;
    if (rank == 0) {
        NCCL(ncclGetUniqueId(&id));
        for (int r = 1; r < nranks; r++)
            if (write(pipes[r][1], &id, sizeof(id)) != sizeof(id))
                return 1;
    } else if (read(pipes[rank][0], &id, sizeof(id)) != sizeof(id)) {
        return 1;
    }
    NCCL(ncclCommInitRankConfig(&comms[0], nranks, id, rank, &config));
    run(what);
    fflush(stdout);
    return problems != 0;
}

static int processes(const char *what)
{
    int pipes[MOST][2], status, failed = 0;
    for (int r = 0; r < nranks; r++)
        if (pipe(pipes[r]) != 0)
            return 1;
    for (int r = 0; r < nranks; r++)
        if (fork() == 0)
            _exit(one_process(r, pipes, what));
    for (int r = 0; r < nranks; r++)
        failed += wait(&status) < 0 || status != 0;
    return failed != 0;
}

int main(int argc, char **argv)
{
    nranks = argc == 4 ? atoi(argv[2]) : 0;
    if (nranks < 1 || nranks > MOST) {
        fprintf(stderr, "usage: nccl_client processes|thread|threads RANKS everything|quantized|pair|abort\n");
        return 2;
    }
    if (strcmp(argv[1], "processes") == 0)
        return processes(argv[3]);
    if (strcmp(argv[1], "threads") == 0)
        return short_lives();
    here = nranks;
    NCCL(ncclCommInitAll(comms, nranks, NULL));
    run(argv[3]);
    return problems != 0;
}
