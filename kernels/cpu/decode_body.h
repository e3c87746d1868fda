/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed codes to values without a stop in memory, for rows with vectors: beside what sum_body.h needs the including file defines
 *     BITS                       a vector of 32-bit lanes
 *     LOAD_BITS, STORE_BITS      of LANES * 4 bytes
 *     REPEAT(from)               sixteen bytes in each 128 bits
 *     SHUFFLE(bytes, places)     bytes[places[i]], within 128 bits
 *     SHIFT_DOWN, AND, MINUS, MOST_OF, SPREAD_BITS, TO_FLOAT, MULTIPLY
 * Sixteen codes are 2 * width bytes. A lane fetches the two that its code begins in, one byte up so that 2 * code can be shifted down.
 */
#define DECODE_MANY decode_many

enum { AT_ONCE = 16, PARTS = AT_ONCE / LANES };

typedef struct places {
    BITS bytes[PARTS], down[PARTS];
} places_t;

TARGET static places_t places_of(unsigned width)
{
    uint32_t bytes[AT_ONCE], down[AT_ONCE];
    places_t places;
    for (unsigned code = 0; code < AT_ONCE; code++) {
        unsigned byte = code * width / 8;
        bytes[code] = 0x80000080u | byte << 8 | (byte < 15 ? byte + 1 : 0x80u) << 16; /* 0x80: none */
        down[code] = code * width % 8 + 7;
    }
    for (int part = 0; part < PARTS; part++) {
        places.bytes[part] = LOAD_BITS(bytes + LANES * part);
        places.down[part] = LOAD_BITS(down + LANES * part);
    }
    return places;
}

/* What stays the same for all codes. */
typedef struct decoding {
    places_t places;
    BITS mask, offset, largest;
    VECTOR unit;
} decoding_t;

TARGET static inline __attribute__((always_inline)) void decode_sixteen(decoding_t *all, const unsigned char *in, bool add, iq_f32_any_t *dst)
{
    const BITS bytes = REPEAT(in);
    for (size_t part = 0; part < PARTS; part++, dst += LANES) {
        BITS twice = AND(SHIFT_DOWN(SHUFFLE(bytes, all->places.bytes[part]), all->places.down[part]), all->mask);
        VECTOR value = MULTIPLY(TO_FLOAT(MINUS(twice, all->offset)), all->unit);
        all->largest = MOST_OF(all->largest, twice);
        STORE(dst, add ? ADD(LOAD(dst), value) : value);
    }
}

/* Sixteens from the first on; how many codes they are is returned. `most` is the largest of them. */
TARGET static inline __attribute__((always_inline)) size_t decode_runs(const unsigned char *in, size_t count, unsigned width, int32_t offset,
                                                                       float unit, bool add, iq_f32_any_t *dst, uint32_t *most)
{
    decoding_t all = {places_of(width), SPREAD_BITS((int32_t)(((1u << width) - 1) << 1)), SPREAD_BITS(offset), SPREAD_BITS(0), SPREAD_FLOAT(unit)};
    uint32_t lanes[LANES];
    size_t bytes = iq_packed_bytes(count, width), i = 0, at = 0;
    for (; i + AT_ONCE <= count && at + 16 <= bytes; i += AT_ONCE, at += 2 * width) {
        if (add)
            iq_ask_for(dst + i + AHEAD, AT_ONCE);
        decode_sixteen(&all, in + at, add, dst + i);
    }
    for (; i + AT_ONCE <= count; i += AT_ONCE, at += 2 * width) { /* behind which there are no sixteen bytes to read */
        unsigned char last[16] = {0};
        memcpy(last, in + at, 2 * width);
        decode_sixteen(&all, last, add, dst + i);
    }
    STORE_BITS(lanes, all.largest);
    *most = 0;
    for (int lane = 0; lane < LANES; lane++)
        *most = lanes[lane] / 2 > *most ? lanes[lane] / 2 : *most;
    return i;
}

TARGET static size_t decode_many(const unsigned char *in, size_t count, unsigned width, int32_t offset, float unit, bool add,
                                 iq_f32_any_t *dst, uint32_t *most)
{
    return add ? decode_runs(in, count, width, offset, unit, true, dst, most) : decode_runs(in, count, width, offset, unit, false, dst, most);
}
