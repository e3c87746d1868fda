/* SPDX-License-Identifier: Apache-2.0 */
/* NEON, which every 64-bit ARM CPU has: vectors of four. */
#include "kernels/cpu/rows.h"
#include "kernels/cpu/squeeze.h"

#include <arm_neon.h>
#include <string.h>

#define ROW iq_kernels_neon
#define ROW_NAME "neon"
#define TARGET
#define PACK_MANY pack_many

static bool usable(void) { return true; }

/* ---- random words ---- */

/* Philox on 4 * VECTORS blocks at once: word i of four blocks is a vector. Two vectors, because a round waits for the one before. */
enum { VECTORS = 2 };

typedef struct product {
    uint32x4_t low, high;
} product_t;

static inline product_t multiply(uint32x4_t a, uint32_t by)
{
    uint32x4_t first = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(a), by));
    uint32x4_t second = vreinterpretq_u32_u64(vmull_high_n_u32(a, by));
    return (product_t){vuzp1q_u32(first, second), vuzp2q_u32(first, second)};
}

static inline void draw_vectors(const iq_grid_t *grid, uint64_t quad, uint32_t *random)
{
    const uint32_t tag = (grid->stream << 8) | (grid->rank << 16);
    uint32_t key0 = (uint32_t)grid->seed, key1 = (uint32_t)(grid->seed >> 32);
    uint32x4x4_t c[VECTORS];
    for (unsigned v = 0; v < VECTORS; v++) {
        uint32_t number[2][4]; /* lower and upper half */
        for (unsigned lane = 0; lane < 4; lane++) {
            number[0][lane] = (uint32_t)(quad + 4 * v + lane);
            number[1][lane] = ((uint32_t)((quad + 4 * v + lane) >> 32) & 0xffu) | tag;
        }
        c[v].val[0] = vld1q_u32(number[0]);
        c[v].val[1] = vld1q_u32(number[1]);
        c[v].val[2] = vdupq_n_u32((uint32_t)grid->call);
        c[v].val[3] = vdupq_n_u32((uint32_t)(grid->call >> 32));
    }
    for (int round = 0; round < IQ_PHILOX_ROUNDS; round++) {
        for (unsigned v = 0; v < VECTORS; v++) {
            product_t p0 = multiply(c[v].val[0], 0xD2511F53u), p1 = multiply(c[v].val[2], 0xCD9E8D57u);
            c[v].val[0] = veorq_u32(veorq_u32(p1.high, c[v].val[1]), vdupq_n_u32(key0));
            c[v].val[2] = veorq_u32(veorq_u32(p0.high, c[v].val[3]), vdupq_n_u32(key1));
            c[v].val[1] = p1.low;
            c[v].val[3] = p0.low;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (unsigned v = 0; v < VECTORS; v++)
        vst4q_u32(random + 16 * v, c[v]);
}

static void draw_tile(const iq_grid_t *grid, uint64_t quad, uint32_t quads, uint32_t *random)
{
    for (uint32_t block = 0; block < quads; block += 4 * VECTORS)
        draw_vectors(grid, quad + block, random + 4 * block);
}

/* ---- packing ---- */

/* As squeeze.h merges neighbours, sixteen codes at a time; then the `width` bytes of both halves are brought together. How many codes
 * were packed is returned. `bytes`: room at `out`. Sixteen bytes are written for 2 * width. */
static size_t pack_many(const uint8_t *codes, size_t count, unsigned width, unsigned char *out, size_t bytes)
{
    const uint16x8_t one = vdupq_n_u16(0xff);
    const uint32x4_t two = vdupq_n_u32(0xffff);
    const uint64x2_t four = vdupq_n_u64(0xffffffff);
    const int16x8_t by1 = vdupq_n_s16((int16_t)((int)width - 8)); /* to the right, that is: shifts by less than zero */
    const int32x4_t by2 = vdupq_n_s32(2 * (int)width - 16);
    const int64x2_t by4 = vdupq_n_s64(4 * (int)width - 32);
    uint8_t place[16];
    size_t i = 0, at = 0;
    for (unsigned byte = 0; byte < 16; byte++)
        place[byte] = (uint8_t)(byte < width ? byte : byte + 8 - width);
    const uint8x16_t order = vld1q_u8(place);
    for (; i + 16 <= count && at + 16 <= bytes; i += 16, at += 2 * width) {
        uint16x8_t pairs = vreinterpretq_u16_u8(vld1q_u8(codes + i));
        pairs = vorrq_u16(vandq_u16(pairs, one), vshlq_u16(vbicq_u16(pairs, one), by1));
        uint32x4_t quads = vreinterpretq_u32_u16(pairs);
        quads = vorrq_u32(vandq_u32(quads, two), vshlq_u32(vbicq_u32(quads, two), by2));
        uint64x2_t groups = vreinterpretq_u64_u32(quads);
        groups = vorrq_u64(vandq_u64(groups, four), vshlq_u64(vbicq_u64(groups, four), by4));
        vst1q_u8(out + at, vqtbl1q_u8(vreinterpretq_u8_u64(groups), order));
    }
    return i;
}

#define VECTOR float32x4_t
#define REGISTER "w"
#define LANES 4
#define LOAD(from) vld1q_f32((const float *)(from))
#define STORE(to, vector) vst1q_f32((float *)(to), vector)
#define STREAM(to, vector) vst1q_f32((float *)(to), vector) /* there are no such stores without assembly */
#define ADD vaddq_f32
#define DIVIDE vdivq_f32
#define SPREAD_FLOAT vdupq_n_f32
#include "kernels/cpu/sum_body.h"

#define BITS uint32x4_t
#define LOAD_BITS(from) vld1q_u32(from)
#define STORE_BITS(to, bits) vst1q_u32(to, bits)
#define REPEAT(from) vreinterpretq_u32_u8(vld1q_u8(from))
#define SHUFFLE(bits, places) vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(bits), vreinterpretq_u8_u32(places)))
#define SHIFT_DOWN(bits, by) vshlq_u32(bits, vnegq_s32(vreinterpretq_s32_u32(by)))
#define AND vandq_u32
#define MINUS vsubq_u32
#define MOST_OF vmaxq_u32
#define SPREAD_BITS(value) vdupq_n_u32((uint32_t)(value))
#define TO_FLOAT(bits) vcvtq_f32_s32(vreinterpretq_s32_u32(bits))
#define MULTIPLY vmulq_f32
#include "kernels/cpu/decode_body.h"

#include "kernels/cpu/body.h"
