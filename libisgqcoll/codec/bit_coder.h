/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An adaptive binary range coder (G. N. N. Martin, "Range encoding", 1979; the carry as in Lempel-Ziv-Markov coders): single bits whose
 * probabilities follow from the bits before them in the same message, so that no tables travel and a few hundred bits are enough to gain
 * by it. Integers alone decide, so both ends stay together on any machine.
 */
#ifndef ISGQ_CODEC_BIT_CODER_H
#define ISGQ_CODEC_BIT_CODER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The probability of a 1, in units of 2^-16, and how many bits it was learnt from, up to a limit. */
typedef struct iq_bit_model {
    uint16_t ones, seen;
} iq_bit_model_t;

enum { IQ_BIT_MODEL_LEAST = 64, IQ_BIT_MODEL_SEEN_MOST = 30 };

static inline iq_bit_model_t iq_bit_model_fresh(void) { return (iq_bit_model_t){.ones = 1u << 15}; }

/* Move towards `bit` by 1 / (seen + 1.5): an average at first, forgetting later. `most` limits the memory, up to SEEN_MOST. */
static inline void iq_bit_model_learn(iq_bit_model_t *model, bool bit, unsigned most)
{
    static const uint16_t share[IQ_BIT_MODEL_SEEN_MOST] = {43691, 26214, 18725, 14564, 11916, 10082, 8738, 7710, 6899, 6242,
                                                           5699,  5243,  4855,  4520,  4228,  3972,  3745, 3542, 3361, 3197,
                                                           3048,  2913,  2789,  2675,  2570,  2473,  2383, 2300, 2222, 2149};
    int32_t target = bit ? 65535 - IQ_BIT_MODEL_LEAST : IQ_BIT_MODEL_LEAST, old = model->ones;
    model->ones = (uint16_t)(old + (target - old) * (int32_t)(share[model->seen] >> 1) / 32768);
    model->seen = (uint16_t)(model->seen + (model->seen + 1u < most));
}

/* ---- writing ---- */

typedef struct iq_bit_writer {
    uint8_t *at, *end;
    uint64_t low; /* 33 bits: the carry is the uppermost */
    uint64_t waiting; /* bytes 0xff that a carry would still change, after `last` */
    uint32_t range;
    uint8_t last;
    bool begun, full; /* full: what came did not fit, and nothing is written any more */
} iq_bit_writer_t;

static inline iq_bit_writer_t iq_bit_writer_of(void *memory, size_t bytes)
{
    return (iq_bit_writer_t){.at = memory, .end = (uint8_t *)memory + bytes, .range = UINT32_MAX};
}

static inline void iq_bit_write_byte(iq_bit_writer_t *writer, uint8_t byte)
{
    if (writer->at == writer->end)
        writer->full = true;
    else
        *writer->at++ = byte;
}

static inline void iq_bit_shift(iq_bit_writer_t *writer)
{
    if (writer->low < 0xff000000u || writer->low > UINT32_MAX) {
        uint8_t carry = (uint8_t)(writer->low >> 32);
        if (writer->begun) /* the first byte is always 0 */
            iq_bit_write_byte(writer, (uint8_t)(writer->last + carry));
        for (; writer->waiting > 0; writer->waiting--)
            iq_bit_write_byte(writer, (uint8_t)(0xff + carry));
        writer->last = (uint8_t)(writer->low >> 24);
        writer->begun = true;
    } else {
        writer->waiting++;
    }
    writer->low = (writer->low & 0xffffff) << 8;
}

static inline void iq_bit_write(iq_bit_writer_t *writer, iq_bit_model_t *model, bool bit)
{
    uint32_t bound = (writer->range >> 12) * (uint32_t)(model->ones >> 4);
    if (bit) {
        writer->range = bound;
    } else {
        writer->low += bound;
        writer->range -= bound;
    }
    iq_bit_model_learn(model, bit, IQ_BIT_MODEL_SEEN_MOST);
    for (; writer->range < 1u << 24; writer->range <<= 8)
        iq_bit_shift(writer);
}

/* `count` bits of even odds, at most 16. */
static inline void iq_bit_write_even(iq_bit_writer_t *writer, uint32_t bits, unsigned count)
{
    writer->range >>= count;
    writer->low += (uint64_t)bits * writer->range;
    for (; writer->range < 1u << 24; writer->range <<= 8)
        iq_bit_shift(writer);
}

/* The number with the fewest bytes that tells everything; zeros at its end are left out. Returns the bytes from `memory` on. */
static inline size_t iq_bit_write_end(iq_bit_writer_t *writer, const uint8_t *memory)
{
    uint64_t first = writer->low, after = writer->low + writer->range;
    for (unsigned bits = 24; bits > 0; bits -= 8) {
        uint64_t rest = ((uint64_t)1 << bits) - 1, round = (first + rest) & ~rest;
        if (round < after) {
            writer->low = round;
            break;
        }
    }
    for (int i = 0; i < 5; i++)
        iq_bit_shift(writer);
    while (writer->at > memory && writer->at[-1] == 0)
        writer->at--;
    return (size_t)(writer->at - memory);
}

/* ---- reading ---- */

typedef struct iq_bit_reader {
    const uint8_t *at, *end;
    uint32_t range, code;
    bool strange; /* no writer would have written this */
} iq_bit_reader_t;

/* What follows after the end is zeros. */
static inline uint32_t iq_bit_next(iq_bit_reader_t *reader) { return reader->at < reader->end ? *reader->at++ : 0; }

static inline iq_bit_reader_t iq_bit_reader_of(const void *memory, size_t bytes)
{
    iq_bit_reader_t reader = {.at = memory, .end = (const uint8_t *)memory + bytes, .range = UINT32_MAX};
    for (int i = 0; i < 4; i++)
        reader.code = reader.code << 8 | iq_bit_next(&reader);
    reader.strange = bytes > 0 && reader.end[-1] == 0;
    return reader;
}

static inline void iq_bit_refill(iq_bit_reader_t *reader)
{
    for (; reader->range < 1u << 24; reader->range <<= 8)
        reader->code = reader->code << 8 | iq_bit_next(reader);
}

static inline bool iq_bit_read(iq_bit_reader_t *reader, iq_bit_model_t *model)
{
    uint32_t bound = (reader->range >> 12) * (uint32_t)(model->ones >> 4);
    bool bit = reader->code < bound;
    uint32_t zero = (uint32_t)bit - 1; /* masks: a branch on what is not known would be guessed wrong every other time */
    reader->code -= bound & zero;
    reader->range = bound + ((reader->range - 2 * bound) & zero);
    iq_bit_model_learn(model, bit, IQ_BIT_MODEL_SEEN_MOST);
    iq_bit_refill(reader);
    return bit;
}

static inline uint32_t iq_bit_read_even(iq_bit_reader_t *reader, unsigned count)
{
    reader->range >>= count;
    uint32_t bits = reader->code / reader->range, most = (1u << count) - 1;
    if (bits > most) {
        reader->strange = true;
        bits = most;
    }
    reader->code -= bits * reader->range;
    iq_bit_refill(reader);
    return bits;
}

/* Was that all of a message that a writer made? A message does not know its own length: one that was cut short may be another message. */
static inline bool iq_bit_read_end(const iq_bit_reader_t *reader) { return !reader->strange && reader->at == reader->end; }

#endif
