/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of module "cuda"'s table for codec `levels`: a bucket's values to header and codes, and back. What a message is made of,
 * and what its headers mean, is told in codec/levels.h, codec/digits.h and the files of the models; its arithmetic is that of
 * kernels/level_math.h, level_fit.h and hadamard.h.
 */
#ifndef ISGQ_KERNELS_CUDA_LEVEL_MODULE_H
#define ISGQ_KERNELS_CUDA_LEVEL_MODULE_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum iq_cuda_level_kind {
    IQ_CUDA_QSGD,
    IQ_CUDA_NATURAL,
    IQ_CUDA_ONEBIT,
    IQ_CUDA_EF_SIGN,
    IQ_CUDA_BINGRAD_B,
    IQ_CUDA_BINGRAD_PB,
    IQ_CUDA_ORQ,
    IQ_CUDA_EDEN,
    IQ_CUDA_MX,
} iq_cuda_level_kind_t;

#define IQ_CUDA_LEVEL_BUCKET 8192 /* most elements of one */
#define IQ_CUDA_LEVEL_UNIT 24     /* most codes of a unit */

/* One message and its values: elements first .. first + count - 1, count > 0. */
typedef struct iq_cuda_levels {
    iq_cuda_level_kind_t kind;
    unsigned bits;      /* qsgd, eden, mx */
    unsigned levels;    /* orq: 3, 5 or 9 */
    bool euclidean;     /* qsgd: the norm */
    bool nearest;       /* mx: rounding; else stochastic */
    unsigned symbols;   /* a code is below; groups of so many codes take so many bits, a unit of so many codes whole bytes */
    unsigned group_codes, group_bits, unit;
    size_t header_bytes;
    uint64_t first;
    size_t bucket;      /* a multiple of 32 up to IQ_CUDA_LEVEL_BUCKET */
    size_t count;
    isgq_data_type_t type; /* of the values: f32, f16 or bf16 */
    void *values;          /* encode reads them */
    float divisor;         /* encode: of the values, first */
    bool accumulate;       /* decode: rounded to `type`, then added in `type` */
    void *message;         /* aligned to 4 bytes; decode reads it */
    uint32_t stream, rank; /* where the random numbers are (iq_draw), and the signs of rotations */
    uint64_t seed, call;
    const uint32_t *replays; /* as in iq_cuda_grid_t */
    uint16_t *edges;         /* encode: device memory, iq_cuda_level_edges of it */
    uint32_t *fault;         /* decode: a code, header or padding that no encoder writes; the values are then any */
} iq_cuda_levels_t;

/* Codes of units that two buckets share. */
static inline size_t iq_cuda_level_edges(size_t buckets, unsigned unit) { return buckets * unit * sizeof(uint16_t); }

typedef struct iq_cuda_level_table {
    isgq_result_t (*encode)(int device, isgq_stream_t stream, const iq_cuda_levels_t *levels);
    isgq_result_t (*decode)(int device, isgq_stream_t stream, const iq_cuda_levels_t *levels);
} iq_cuda_level_table_t;

#endif
