/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, doi:10.1145/2063384.2063405).
 *
 * Counter-based: no state, any element's number can be made anywhere, CPU and GPU agree. Shared by C and CUDA.
 */
#ifndef ISGQ_KERNELS_PHILOX_H
#define ISGQ_KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define IQ_DEVICE __host__ __device__ static inline
#else
#define IQ_DEVICE static inline
#endif

typedef struct iq_philox_block {
    uint32_t word[4];
} iq_philox_block_t;

enum { IQ_PHILOX_ROUNDS = 10 };

/* One instruction on GPUs too, where compilers make of the plain C a product of 64-bit numbers, or two of 32 bits. */
IQ_DEVICE uint64_t iq_multiply_wide(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (uint64_t)a * b;
#endif
}

IQ_DEVICE iq_philox_block_t iq_philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1)
{
    iq_philox_block_t block;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int round = 0; round < IQ_PHILOX_ROUNDS; round++) {
        uint64_t p0 = iq_multiply_wide(0xD2511F53u, c0);
        uint64_t p1 = iq_multiply_wide(0xCD9E8D57u, c2);
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    block.word[0] = c0;
    block.word[1] = c1;
    block.word[2] = c2;
    block.word[3] = c3;
    return block;
}

/* Streams of random numbers within one call, so that no two decisions share a number. */
enum { IQ_STREAM_OWN, IQ_STREAM_RESULT, IQ_STREAM_FACTOR_X, IQ_STREAM_FACTOR_DELTA, IQ_STREAM_ROWS, IQ_STREAM_STRATA, IQ_STREAM_ROTATION, IQ_STREAM_POWER,
       IQ_STREAM_DITHER_X, IQ_STREAM_DITHER_DELTA };

/*
 * Where a decision's random bits are: one Philox block serves four consecutive elements, word (element mod 4).
 * Key: the seed. Counter: element / 4 (40 bits), rank (16), stream (8), call (64).
 */
IQ_DEVICE iq_philox_block_t iq_draw(uint64_t seed, uint64_t call, uint32_t stream, uint32_t rank, uint64_t element)
{
    uint64_t quad = element >> 2;
    return iq_philox((uint32_t)quad, ((uint32_t)(quad >> 32) & 0xffu) | (stream << 8) | (rank << 16), (uint32_t)call,
                     (uint32_t)(call >> 32), (uint32_t)seed, (uint32_t)(seed >> 32));
}

#endif
