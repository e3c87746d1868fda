/* SPDX-License-Identifier: Apache-2.0 */
/* Letters to bytes and back: see letter_coder.h. */
#include "codec/letter_coder.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coded_math.h"
#include "kernels/kernels.h"

#include <string.h>

enum {
    SCALE_BITS = 11,
    SCALE = 1 << SCALE_BITS, /* frequencies of a table add up to this */
    LEVEL_BITS = 6,
    LEVELS = 1 << LEVEL_BITS,
    STATES_MOST = 4,   /* side by side, as each waits for itself */
    STATES_FROM = 8192 /* letters from which on that pays for the bits of the states */
};

#define LEAST_STATE 0x10000u

/* `inverse` divides by the frequency: x * inverse >> INVERSE_BITS is the whole part of any state that may be divided, since x is less
 * than frequency * 2^(32 - SCALE_BITS), and exact as long as the square of a frequency is at most 2^22. */
typedef struct letter {
    uint64_t inverse;
    uint32_t most; /* state that need not shrink before this letter */
    uint16_t first, frequency;
} letter_t;

typedef struct table {
    letter_t letters[IQ_LETTERS_MOST];
} table_t;

enum { INVERSE_BITS = 43 };

static unsigned states_for(size_t count) { return count >= STATES_FROM ? STATES_MOST : 1; }

/* ---- frequencies ---- */

/* 0: does not occur. Level l stands for 2^((l - 1) / 4). */
static uint32_t level_of(uint32_t count)
{
    if (count == 0)
        return 0;
    uint32_t level = 1 + (uint32_t)(4.0 * iq_log2((double)count) + 0.5);
    return level < LEVELS ? level : LEVELS - 1;
}

static uint32_t weight_of(uint32_t level)
{
    static const uint32_t quarters[4] = {16384, 19484, 23170, 27554};
    return level == 0 ? 0 : (uint32_t)(((uint64_t)quarters[(level - 1) % 4] << ((level - 1) / 4)) >> 12);
}

/* Frequencies from levels; false: no letter has any. */
static bool make_table(const uint32_t *levels, unsigned nletters, table_t *table)
{
    uint64_t sum = 0;
    uint32_t all = 0, most = 0, first = 0;
    for (unsigned i = 0; i < nletters; i++)
        sum += weight_of(levels[i]);
    if (sum == 0)
        return false;
    for (unsigned i = 0; i < nletters; i++) {
        uint32_t share = (uint32_t)((uint64_t)weight_of(levels[i]) * SCALE / sum);
        share = levels[i] > 0 && share == 0 ? 1 : share;
        table->letters[i].frequency = (uint16_t)share;
        all += share;
        most = table->letters[i].frequency > table->letters[most].frequency ? i : most;
    }
    table->letters[most].frequency = (uint16_t)(table->letters[most].frequency + SCALE - all); /* at least SCALE / IQ_LETTERS_MOST before, and at most IQ_LETTERS_MOST are taken */
    for (unsigned i = 0; i < nletters; i++) {
        table->letters[i].first = (uint16_t)first;
        first += table->letters[i].frequency;
    }
    return true;
}

double iq_letters_overhead(unsigned tables, unsigned nletters, size_t count)
{
    return 8.0 + 8.0 * LEVEL_BITS * ((tables * nletters + 7) / 8) + 24.0 * states_for(count) + 0.003 * (double)count;
}

/* ---- writing ---- */

static void invert(table_t *table, unsigned nletters)
{
    for (unsigned i = 0; i < nletters; i++) {
        uint32_t frequency = table->letters[i].frequency;
        table->letters[i].most = (uint32_t)(((uint64_t)frequency << (32 - SCALE_BITS)) - 1);
        table->letters[i].inverse = frequency == 0 ? 0 : (((uint64_t)1 << INVERSE_BITS) + frequency - 1) / frequency;
    }
}

/* A word goes out first where the state would grow beyond 32 bits; that is no branch, which would be guessed wrong. */
static inline __attribute__((always_inline)) uint32_t write_letter(uint32_t x, const letter_t *letter, uint16_t **at)
{
    bool more = x > letter->most;
    uint32_t rest = x >> 16;
    (*at)[-1] = (uint16_t)x;
    *at -= more;
    x = more ? rest : x;
    uint32_t whole = (uint32_t)((x * letter->inverse) >> INVERSE_BITS);
    return x + whole * (uint32_t)(SCALE - letter->frequency) + letter->first;
}

static inline __attribute__((always_inline)) const letter_t *letter_of(const table_t *table, const uint8_t *letters,
                                                                       const uint8_t *tables, size_t i)
{
    return &table[tables == NULL ? 0 : tables[i]].letters[letters[i]];
}

/* Words from the last letter to the first; returns how many. They end at `end`, and one before them may be written to. */
static inline __attribute__((always_inline)) size_t write_words(const uint8_t *letters, const uint8_t *tables, size_t count,
                                                                const table_t *table, bool several, uint32_t *states,
                                                                uint16_t *end)
{
    uint16_t *at = end;
    size_t i = count;
    for (unsigned k = 0; k < STATES_MOST; k++)
        states[k] = LEAST_STATE;
    while (i % (several ? STATES_MOST : 1) != 0) {
        i--;
        states[i % STATES_MOST] = write_letter(states[i % STATES_MOST], letter_of(table, letters, tables, i), &at);
    }
    uint32_t a = states[0], b = states[1], c = states[2], d = states[3];
    while (several && i > 0) {
        i -= STATES_MOST;
        d = write_letter(d, letter_of(table, letters, tables, i + 3), &at);
        c = write_letter(c, letter_of(table, letters, tables, i + 2), &at);
        b = write_letter(b, letter_of(table, letters, tables, i + 1), &at);
        a = write_letter(a, letter_of(table, letters, tables, i), &at);
    }
    while (i > 0)
        a = write_letter(a, letter_of(table, letters, tables, --i), &at);
    memcpy(states, (uint32_t[]){a, b, c, d}, STATES_MOST * sizeof(*states));
    return (size_t)(end - at);
}

/* Kinds of blocks as constants, so that each has a loop of its own. */
static size_t write_kind(const uint8_t *letters, const uint8_t *tables, size_t count, const table_t *table, uint32_t *states,
                         uint16_t *end)
{
    if (states_for(count) > 1)
        return tables != NULL ? write_words(letters, tables, count, table, true, states, end)
                              : write_words(letters, NULL, count, table, true, states, end);
    return tables != NULL ? write_words(letters, tables, count, table, false, states, end)
                          : write_words(letters, NULL, count, table, false, states, end);
}

size_t iq_letters_write(const uint8_t *letters, const uint8_t *tables, size_t count, unsigned nletters,
                        const iq_letter_counts_t *counts, unsigned char *to, size_t room)
{
    uint16_t words[1 + IQ_LETTERS_AT_ONCE], *end = words + 1 + IQ_LETTERS_AT_ONCE;
    uint32_t states[STATES_MOST], levels[IQ_LETTER_TABLES * IQ_LETTERS_MOST], nlevels = 0, present = 0;
    table_t made[IQ_LETTER_TABLES];
    for (unsigned t = 0; t < IQ_LETTER_TABLES; t++) {
        for (unsigned i = 0; i < nletters; i++)
            levels[nlevels + i] = level_of(counts->of[t][i]);
        if (!make_table(levels + nlevels, nletters, &made[t]))
            continue;
        invert(&made[t], nletters);
        present |= 1u << t;
        nlevels += nletters;
    }
    unsigned nstates = states_for(count);
    size_t nwords = write_kind(letters, tables, count, made, states, end);
    size_t head = 1 + iq_packed_bytes(nlevels, LEVEL_BITS), bytes = head + 4 * nstates + 2 * nwords;
    if (bytes >= room)
        return 0;
    to[0] = (unsigned char)present;
    iq_kernels()->pack32(levels, nlevels, LEVEL_BITS, to + 1);
    memcpy(to + head, states, 4 * nstates);
    memcpy(to + head + 4 * nstates, end - nwords, 2 * nwords);
    return bytes;
}

/* ---- reading ---- */

/* What a state's lower bits say, and what becomes of the state: the letter's frequency, from bit OFFSET_AT on how far from its first
 * slot this one is, and from bit LETTER_AT on the letter. */
typedef uint32_t slot_t;

enum { OFFSET_AT = 16, LETTER_AT = OFFSET_AT + SCALE_BITS };

static inline __attribute__((always_inline)) uint32_t read_letter(uint32_t x, const slot_t *slots, const uint16_t **at,
                                                                  uint8_t *letter)
{
    slot_t slot = slots[x % SCALE];
    *letter = (uint8_t)(slot >> LETTER_AT);
    x = (slot & 0xffff) * (x >> SCALE_BITS) + (slot >> OFFSET_AT) % SCALE;
    uint32_t next = **at, more = x < LEAST_STATE; /* a branch would be guessed wrong */
    *at += more;
    return (x << (16 * more)) | (next & (0 - more));
}

static inline __attribute__((always_inline)) const slot_t *slots_of(slot_t (*slots)[SCALE], const uint8_t *tables, size_t i)
{
    return slots[tables == NULL ? 0 : tables[i]];
}

/* Returns how many words there were. */
static inline __attribute__((always_inline)) size_t read_words(const uint16_t *words, slot_t (*slots)[SCALE],
                                                               const uint8_t *tables, size_t count, bool several,
                                                               uint32_t *states, uint8_t *letters)
{
    const uint16_t *at = words;
    size_t i = 0;
    uint32_t a = states[0], b = states[1], c = states[2], d = states[3];
    for (; several && i + STATES_MOST <= count; i += STATES_MOST) {
        a = read_letter(a, slots_of(slots, tables, i), &at, &letters[i]);
        b = read_letter(b, slots_of(slots, tables, i + 1), &at, &letters[i + 1]);
        c = read_letter(c, slots_of(slots, tables, i + 2), &at, &letters[i + 2]);
        d = read_letter(d, slots_of(slots, tables, i + 3), &at, &letters[i + 3]);
    }
    for (; !several && i < count; i++)
        a = read_letter(a, slots_of(slots, tables, i), &at, &letters[i]);
    memcpy(states, (uint32_t[]){a, b, c, d}, STATES_MOST * sizeof(*states));
    for (; i < count; i++)
        states[i % STATES_MOST] = read_letter(states[i % STATES_MOST], slots_of(slots, tables, i), &at, &letters[i]);
    return (size_t)(at - words);
}

static size_t read_kind(const uint16_t *words, slot_t (*slots)[SCALE], const uint8_t *tables, size_t count,
                        uint32_t *states, uint8_t *letters)
{
    if (states_for(count) > 1)
        return tables != NULL ? read_words(words, slots, tables, count, true, states, letters)
                              : read_words(words, slots, NULL, count, true, states, letters);
    return tables != NULL ? read_words(words, slots, tables, count, false, states, letters)
                          : read_words(words, slots, NULL, count, false, states, letters);
}

static void fill_slots(const table_t *table, unsigned nletters, slot_t slots[SCALE])
{
    for (unsigned letter = 0; letter < nletters; letter++) {
        slot_t first = table->letters[letter].frequency | letter << LETTER_AT, *to = slots + table->letters[letter].first;
        for (uint32_t i = 0; i < table->letters[letter].frequency; i++)
            to[i] = first + (i << OFFSET_AT);
    }
}

isgq_result_t iq_letters_read(const unsigned char *from, size_t bytes, const uint8_t *tables, size_t count, unsigned nletters,
                              uint8_t *letters)
{
    slot_t slots[IQ_LETTER_TABLES][SCALE];
    uint16_t words[IQ_LETTERS_AT_ONCE + 1];
    uint32_t states[STATES_MOST] = {0}, levels[IQ_LETTER_TABLES * IQ_LETTERS_MOST], nstates = states_for(count);
    table_t table;
    unsigned ntables = tables != NULL ? IQ_LETTER_TABLES : 1, present = bytes > 0 ? from[0] : 0, seen = 0;
    size_t nlevels = (size_t)__builtin_popcount(present) * nletters, head = 1 + iq_packed_bytes(nlevels, LEVEL_BITS),
           before = head + 4 * nstates;
    if (present >= 1u << IQ_LETTER_TABLES || bytes < before || (bytes - before) % 2 != 0 || (bytes - before) / 2 > count)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "letters: %zu bytes with tables %#x for %zu letters of %u", bytes, present, count,
                       nletters);
    iq_kernels()->unpack32(from + 1, nlevels, LEVEL_BITS, levels);
    for (unsigned t = 0; t < ntables; t++) {
        if ((present >> t & 1) != 0 && make_table(levels + nletters * seen++, nletters, &table))
            fill_slots(&table, nletters, slots[t]);
        else
            for (size_t i = 0; i < SCALE; i++)
                slots[t][i] = SCALE; /* who asks for it does not come to the right end */
    }
    size_t nwords = (bytes - before) / 2;
    memcpy(states, from + head, 4 * nstates);
    memcpy(words, from + before, 2 * nwords);
    memset(words + nwords, 0, 2 * (count + 1 - nwords));
    size_t used = read_kind(words, slots, tables, count, states, letters);
    bool ends = used == nwords;
    for (unsigned i = 0; i < nstates; i++)
        ends &= states[i] == LEAST_STATE;
    return ends ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_CORRUPT, "letters: %zu words are not the code of %zu letters", nwords, count);
}
