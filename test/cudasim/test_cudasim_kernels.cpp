/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated GPU's threads: what they know, exchange and wait for, against plain loops. */
#include "cudasim/test_support.h"

static const unsigned all = 0xffffffffu;

template <typename... Parameters, typename... Arguments>
static void launch(dim3 grid, dim3 block, void (*kernel)(Parameters...), Arguments... arguments)
{
    cudaLaunchConfig_t config = on(nullptr, grid, block);
    OK(cudaLaunchKernelEx(&config, kernel, arguments...));
    OK(cudaDeviceSynchronize());
}

/* ---- indices ---- */

__global__ static void count_places(unsigned *seen)
{
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    seen[block * blockDim.x * blockDim.y * blockDim.z + thread]++;
}

START_TEST(every_thread_runs_once)
{
    dim3 grid(3, 2, 2), block(5, 4, 3);
    size_t threads = 12 * 60;
    unsigned *seen = pinned<unsigned>(threads);
    launch(grid, block, count_places, seen);
    for (size_t i = 0; i < threads; i++)
        ck_assert_uint_eq(seen[i], 1);
    OK(cudaFreeHost(seen));
}
END_TEST

/* ---- warps ---- */

struct exchanged_t {
    int plain, wide, up, down, exchanged, narrow;
    float real;
    double big;
    unsigned ballot, any, every, most, sum, half;
    int most_signed;
};

__global__ static void exchange(const int *in, exchanged_t *out)
{
    int lane = static_cast<int>(threadIdx.x % 32);
    int value = in[threadIdx.x];
    exchanged_t *to = &out[threadIdx.x];
    to->plain = __shfl_sync(all, value, lane * 7 + 3);
    to->wide = __shfl_sync(all, value, lane + 1, 8);
    to->up = __shfl_up_sync(all, value, 3);
    to->down = __shfl_down_sync(all, value, 5, 16);
    to->exchanged = __shfl_xor_sync(all, value, 9);
    to->narrow = __shfl_xor_sync(all, value, 6, 4);
    to->real = __shfl_xor_sync(all, static_cast<float>(value), 16);
    to->big = __shfl_down_sync(all, value * 1e10, 1);
    to->ballot = __ballot_sync(all, value & 1);
    to->any = static_cast<unsigned>(__any_sync(all, value == in[0]));
    to->every = static_cast<unsigned>(__all_sync(all, value != in[0]));
    to->most = __reduce_max_sync(all, static_cast<unsigned>(value));
    to->most_signed = __reduce_max_sync(all, value);
    to->sum = __reduce_add_sync(all, static_cast<unsigned>(value));
    unsigned mine = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    if (lane < 16)
        to->half = __reduce_min_sync(mine, static_cast<unsigned>(value));
    else
        to->half = __reduce_xor_sync(mine, static_cast<unsigned>(value));
}

static void check_lane(const int *warp, int lane, const int *first, const exchanged_t &got)
{
    unsigned ballot = 0, most = 0, sum = 0, least = all, parity = 0;
    int most_signed = warp[0], has_first = 0;
    for (int i = 0; i < 32; i++) {
        unsigned value = static_cast<unsigned>(warp[i]);
        ballot |= (value & 1u) << i;
        most = max(most, value);
        most_signed = max(most_signed, warp[i]);
        sum += value;
        has_first |= warp[i] == *first;
        if (i < 16)
            least = min(least, value);
        else
            parity ^= value;
    }
    ck_assert_int_eq(got.plain, warp[(lane * 7 + 3) % 32]);
    ck_assert_int_eq(got.wide, warp[(lane & ~7) | ((lane + 1) & 7)]);
    ck_assert_int_eq(got.up, warp[lane < 3 ? lane : lane - 3]);
    ck_assert_int_eq(got.down, warp[(lane & 15) + 5 > 15 ? lane : lane + 5]);
    ck_assert_int_eq(got.exchanged, warp[lane ^ 9]);
    ck_assert_int_eq(got.narrow, warp[(lane ^ 6) > (lane | 3) ? lane : lane ^ 6]);
    ck_assert(got.real == static_cast<float>(warp[lane ^ 16]));
    ck_assert(got.big == warp[lane == 31 ? 31 : lane + 1] * 1e10);
    ck_assert_uint_eq(got.ballot, ballot);
    ck_assert_uint_eq(got.any, static_cast<unsigned>(has_first));
    ck_assert_uint_eq(got.every, static_cast<unsigned>(!has_first));
    ck_assert_uint_eq(got.most, most);
    ck_assert_int_eq(got.most_signed, most_signed);
    ck_assert_uint_eq(got.sum, sum);
    ck_assert_uint_eq(got.half, lane < 16 ? least : parity);
}

START_TEST(warps_exchange)
{
    const unsigned threads = 96;
    int *in = pinned<int>(threads);
    exchanged_t *out = pinned<exchanged_t>(threads);
    for (unsigned i = 0; i < threads; i++)
        in[i] = static_cast<int>((i + 1) * 2654435761u);
    launch(1, threads, exchange, in, out);
    for (unsigned i = 0; i < threads; i++)
        check_lane(in + i / 32 * 32, static_cast<int>(i % 32), in, out[i]);
    OK(cudaFreeHost(in));
    OK(cudaFreeHost(out));
}
END_TEST

__global__ static void sum_of_part(unsigned *out)
{
    unsigned sum = __reduce_add_sync(all, 1u);
    unsigned next = __shfl_down_sync(all, threadIdx.x, 1);
    out[threadIdx.x] = sum + (threadIdx.x % 32 < 7 ? next * 100 : 0);
}

/* The last warp of 40 threads has 8 lanes; a full mask means those that exist. */
START_TEST(partial_warps)
{
    unsigned *out = pinned<unsigned>(40);
    launch(1, 40, sum_of_part, out);
    for (unsigned i = 0; i < 40; i++)
        ck_assert_uint_eq(out[i], (i < 32 ? 32 : 8) + (i % 32 < 7 ? (i + 1) * 100 : 0));
    OK(cudaFreeHost(out));
}
END_TEST

/* ---- blocks ---- */

template <int N> __global__ static void __launch_bounds__(N) sum_tree(const unsigned *__restrict__ in, unsigned *__restrict__ out)
{
    __shared__ unsigned part[N];
    unsigned me = threadIdx.x;
    part[me] = in[blockIdx.x * N + me];
    __syncthreads();
    for (unsigned distance = N / 2; distance > 0; distance /= 2) {
        if (me < distance)
            part[me] += part[me + distance];
        __syncthreads();
    }
    if (me == 0)
        out[blockIdx.x] = part[0];
    int odd = __syncthreads_count(static_cast<int>(in[blockIdx.x * N + me] & 1u));
    if (me == N - 1)
        out[gridDim.x + blockIdx.x] = static_cast<unsigned>(odd);
}

static void check_sum_tree()
{
    const unsigned blocks = 9, size = 512;
    unsigned *in = pinned<unsigned>(blocks * size), *out = pinned<unsigned>(2 * blocks);
    for (unsigned i = 0; i < blocks * size; i++)
        in[i] = i * 2654435761u;
    launch(blocks, size, sum_tree<size>, in, out);
    for (unsigned b = 0; b < blocks; b++) {
        unsigned sum = 0, odd = 0;
        for (unsigned i = 0; i < size; i++) {
            sum += in[b * size + i];
            odd += in[b * size + i] & 1u;
        }
        ck_assert_uint_eq(out[b], sum);
        ck_assert_uint_eq(out[blocks + b], odd);
    }
    OK(cudaFreeHost(in));
    OK(cudaFreeHost(out));
}

START_TEST(barriers_and_shared_memory)
{
    check_sum_tree();
}
END_TEST

__global__ static void note_order(unsigned *order, unsigned *next) { order[(*next)++] = blockIdx.x * blockDim.x + threadIdx.x; }

START_TEST(backward)
{
    setenv("CUDASIM_ORDER", "backward", 1);
    check_sum_tree();
    unsigned *order = pinned<unsigned>(12), *next = pinned<unsigned>(1);
    launch(3, 4, note_order, order, next);
    for (unsigned i = 0; i < 12; i++)
        ck_assert_uint_eq(order[i], 11 - i);
    OK(cudaFreeHost(order));
    OK(cudaFreeHost(next));
}
END_TEST

/* ---- memory and numbers ---- */

struct totals_t {
    unsigned sum, most, bits, swaps;
    int least, difference;
    unsigned long long big, big_most;
};

__global__ static void add_up(totals_t *totals)
{
    unsigned me = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&totals->sum, me);
    atomicMax(&totals->most, me);
    atomicOr(&totals->bits, 1u << (me % 32));
    atomicMin(&totals->least, -static_cast<int>(me));
    atomicSub(&totals->difference, 2);
    atomicAdd(&totals->big, 1ull << 33);
    atomicMax(&totals->big_most, static_cast<unsigned long long>(me) << 34);
    while (atomicCAS(&totals->swaps, me, me + 1) != me && totals->swaps < me)
        ;
}

/* Two streams at once: atomics hold between them. */
START_TEST(atomics)
{
    totals_t *totals = pinned<totals_t>(1);
    cudaStream_t streams[2];
    for (cudaStream_t &stream : streams) {
        OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        cudaLaunchConfig_t config = on(stream, 8, 64);
        OK(cudaLaunchKernelEx(&config, add_up, totals));
    }
    for (cudaStream_t stream : streams) {
        OK(cudaStreamSynchronize(stream));
        OK(cudaStreamDestroy(stream));
    }
    ck_assert_uint_eq(totals->sum, 511 * 512);
    ck_assert_uint_eq(totals->most, 511);
    ck_assert_uint_eq(totals->bits, all);
    ck_assert_uint_eq(totals->swaps, 512);
    ck_assert_int_eq(totals->least, -511);
    ck_assert_int_eq(totals->difference, -2048);
    ck_assert(totals->big == 1024ull << 33);
    ck_assert(totals->big_most == 511ull << 34);
    OK(cudaFreeHost(totals));
}
END_TEST

__global__ static void move(const uint4 *from, uint4 *to)
{
    uint4 value = __ldcs(&from[threadIdx.x]);
    value.w = __float_as_uint(__uint_as_float(value.w));
    __stcs(&to[threadIdx.x], make_uint4(value.x, __ldg(&from[threadIdx.x].y), value.z, value.w));
}

START_TEST(vectors_and_bits)
{
    uint4 *memory = pinned<uint4>(64);
    for (unsigned i = 0; i < 32; i++)
        memory[i] = make_uint4(i, i * 3, i * 5, i * 7);
    launch(1, 32, move, memory, memory + 32);
    ck_assert_mem_eq(memory, memory + 32, 32 * sizeof(uint4));
    OK(cudaFreeHost(memory));

    ck_assert_uint_eq(__funnelshift_l(0x89abcdefu, 0x01234567u, 8), 0x23456789u);
    ck_assert_uint_eq(__funnelshift_r(0x89abcdefu, 0x01234567u, 8), 0x6789abcdu);
    ck_assert_uint_eq(__funnelshift_r(0x89abcdefu, 0x01234567u, 32), 0x89abcdefu);
    ck_assert_uint_eq(__byte_perm(0x33221100u, 0x77665544u, 0x7051u), 0x77005511u);
    ck_assert_uint_eq(__brev(0x80000003u), 0xc0000001u);
    ck_assert_int_eq(__clz(0), 32);
    ck_assert_int_eq(__clz(1), 31);
    ck_assert_int_eq(__popc(0xf0f0u), 8);
    ck_assert_int_eq(__ffs(8), 4);
    ck_assert_uint_eq(__umulhi(all, all), 0xfffffffeu);

    ck_assert(__fadd_rd(1.0f, 2.0f) == 3.0f);
    ck_assert(__fadd_rd(1.0f, -0x1p-60f) == 1.0f - 0x1p-24f);
    ck_assert(__fadd_rd(1.0f, 0x1.8p-24f) == 1.0f);
    ck_assert(__fadd_rd(0x1.fffffep127f, 0x1.fffffep127f) == 0x1.fffffep127f);
    ck_assert(signbit(__fadd_rd(1.0f, -1.0f)) && !signbit(__fadd_rd(0.0f, 0.0f)));
}
END_TEST

/* ---- wrong kernels end with the reason ---- */

__global__ static void leaves_early()
{
    if (threadIdx.x == 3)
        return;
    __syncthreads();
}
__global__ static void half_a_warp()
{
    if (threadIdx.x < 16)
        __shfl_sync(all, 1, 0);
}
__global__ static void different_masks()
{
    __ballot_sync(threadIdx.x == 5 ? 0x7fffffffu : all, 1);
    __syncwarp();
}
__global__ static void not_in_its_mask() { __syncwarp(0x0000ffffu); }
__global__ static void barrier_against_warp()
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncwarp(threadIdx.x == 40 ? all : 0xfffffeffu);
}
__global__ static void traps()
{
    if (threadIdx.x == 7)
        __trap();
}

template <void (*kernel)()> static void run_wrong_one() { launch(2, 64, kernel); }

START_TEST(divergence)
{
    require_death(run_wrong_one<leaves_early>, "of 64 threads 63 wait at __syncthreads, 0 in warp operations, 1 have left");
    require_death(run_wrong_one<half_a_warp>, "with mask 0xffffffff, lanes 0x0000ffff came");
    require_death(run_wrong_one<different_masks>, "with another mask");
    require_death(run_wrong_one<not_in_its_mask>, "thread (16, 0, 0): it is not in the mask of its own warp operation");
    require_death(run_wrong_one<barrier_against_warp>, "32 wait at __syncthreads, 1 in warp operations, 31 have left");
    require_death(run_wrong_one<traps>, "thread (7, 0, 0): __trap");
}
END_TEST

__global__ static void writes_behind(unsigned char *memory, int offset) { memory[offset] = 1; }

template <int offset> static void write_behind()
{
    unsigned char *memory = nullptr;
    OK(cudaMalloc(&memory, 1000));
    launch(1, 1, writes_behind, memory, offset);
    OK(cudaFree(memory));
}

/* The sanitizer for addresses finds it at once and calls it by another name. */
START_TEST(writes_outside)
{
#ifndef __SANITIZE_ADDRESS__
    require_death(write_behind<1000>, "was written after it, at offset 1000");
    require_death(write_behind<-1>, "was written before it, at offset -1");
#endif
}
END_TEST

extern "C" Suite *iq_suite(void)
{
    Suite *suite = suite_create("cudasim_kernels");
    TCase *c;

    c = tcase_create("threads");
    tcase_add_test(c, every_thread_runs_once);
    tcase_add_test(c, barriers_and_shared_memory);
    suite_add_tcase(suite, c);

    c = tcase_create("backward");
    tcase_add_test(c, backward);
    suite_add_tcase(suite, c);

    c = tcase_create("warps");
    tcase_add_test(c, warps_exchange);
    tcase_add_test(c, partial_warps);
    suite_add_tcase(suite, c);

    c = tcase_create("memory");
    tcase_add_test(c, atomics);
    tcase_add_test(c, vectors_and_bits);
    suite_add_tcase(suite, c);

    c = tcase_create("divergence");
    tcase_add_test(c, divergence);
    suite_add_tcase(suite, c);

    c = tcase_create("outside");
    tcase_add_test(c, writes_outside);
    suite_add_tcase(suite, c);
    return suite;
}
