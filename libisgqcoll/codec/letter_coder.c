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

typedef struct table {
    uint32_t first[IQ_LETTERS_MOST], frequency[IQ_LETTERS_MOST];
} table_t;

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
        table->frequency[i] = levels[i] > 0 && share == 0 ? 1 : share;
        all += table->frequency[i];
        most = table->frequency[i] > table->frequency[most] ? i : most;
    }
    table->frequency[most] += SCALE - all; /* at least SCALE / IQ_LETTERS_MOST before, and at most IQ_LETTERS_MOST are taken */
    for (unsigned i = 0; i < nletters; i++) {
        table->first[i] = first;
        first += table->frequency[i];
    }
    return true;
}

double iq_letters_overhead(unsigned tables, unsigned nletters, size_t count)
{
    return 8.0 + 8.0 * LEVEL_BITS * ((tables * nletters + 7) / 8) + 24.0 * states_for(count) + 0.003 * (double)count;
}

/* ---- writing ---- */

/* Words from the last letter to the first; returns how many. They end at `end`. */
static inline __attribute__((always_inline)) size_t write_words(const uint8_t *letters, const uint8_t *tables, size_t count,
                                                                const table_t *table, unsigned nstates, uint32_t *states,
                                                                uint16_t *end)
{
    uint16_t *at = end;
    uint32_t state[STATES_MOST];
    for (unsigned i = 0; i < nstates; i++)
        state[i] = LEAST_STATE;
    for (size_t i = count; i-- > 0;) {
        uint32_t x = state[i % nstates], frequency = table[tables[i]].frequency[letters[i]];
        if (x >= (uint64_t)frequency << (32 - SCALE_BITS)) {
            *--at = (uint16_t)x;
            x >>= 16;
        }
        uint32_t whole = x / frequency;
        state[i % nstates] = (whole << SCALE_BITS) + (x - whole * frequency) + table[tables[i]].first[letters[i]];
    }
    memcpy(states, state, nstates * sizeof(*states));
    return (size_t)(end - at);
}

size_t iq_letters_write(const uint8_t *letters, const uint8_t *tables, size_t count, unsigned nletters,
                        const iq_letter_counts_t *counts, unsigned char *to, size_t room)
{
    uint16_t words[IQ_LETTERS_AT_ONCE];
    uint32_t states[STATES_MOST], levels[IQ_LETTER_TABLES * IQ_LETTERS_MOST], nlevels = 0, present = 0;
    table_t made[IQ_LETTER_TABLES];
    for (unsigned t = 0; t < IQ_LETTER_TABLES; t++) {
        for (unsigned i = 0; i < nletters; i++)
            levels[nlevels + i] = level_of(counts->of[t][i]);
        if (!make_table(levels + nlevels, nletters, &made[t]))
            continue;
        present |= 1u << t;
        nlevels += nletters;
    }
    unsigned nstates = states_for(count);
    size_t nwords = nstates == 1 ? write_words(letters, tables, count, made, 1, states, words + IQ_LETTERS_AT_ONCE)
                                 : write_words(letters, tables, count, made, STATES_MOST, states, words + IQ_LETTERS_AT_ONCE);
    size_t head = 1 + iq_packed_bytes(nlevels, LEVEL_BITS), bytes = head + 4 * nstates + 2 * nwords;
    if (bytes >= room)
        return 0;
    to[0] = (unsigned char)present;
    iq_kernels()->pack32(levels, nlevels, LEVEL_BITS, to + 1);
    memcpy(to + head, states, 4 * nstates);
    memcpy(to + head + 4 * nstates, words + IQ_LETTERS_AT_ONCE - nwords, 2 * nwords);
    return bytes;
}

/* ---- reading ---- */

/* What a state's lower bits say: letter, and what becomes of the state. */
typedef struct slot {
    uint16_t frequency;
    uint16_t offset : SCALE_BITS, letter : 16 - SCALE_BITS; /* from the letter's first slot */
} slot_t;

static inline __attribute__((always_inline)) size_t read_words(const uint16_t *words, slot_t (*slots)[SCALE],
                                                               const uint8_t *tables, size_t count, unsigned nstates,
                                                               uint32_t *states, uint8_t *letters)
{
    size_t used = 0;
    uint32_t state[STATES_MOST];
    memcpy(state, states, nstates * sizeof(*states));
    for (size_t i = 0; i < count; i++) {
        uint32_t x = state[i % nstates];
        slot_t slot = slots[tables[i]][x % SCALE];
        letters[i] = slot.letter;
        x = slot.frequency * (x >> SCALE_BITS) + slot.offset;
        uint32_t next = words[used], more = x < LEAST_STATE; /* a branch would be guessed wrong */
        state[i % nstates] = (x << (16 * more)) | (next & (0 - more));
        used += more;
    }
    memcpy(states, state, nstates * sizeof(*states));
    return used;
}

static void fill_slots(const table_t *table, unsigned nletters, slot_t slots[SCALE])
{
    for (unsigned letter = 0; letter < nletters; letter++)
        for (uint32_t i = 0; i < table->frequency[letter]; i++)
            slots[table->first[letter] + i] = (slot_t){.frequency = (uint16_t)table->frequency[letter],
                                                       .offset = i & (SCALE - 1),
                                                       .letter = letter & (IQ_LETTERS_MOST - 1)};
}

isgq_result_t iq_letters_read(const unsigned char *from, size_t bytes, const uint8_t *tables, size_t count, unsigned nletters,
                              uint8_t *letters)
{
    static const slot_t none = {.frequency = SCALE};
    slot_t slots[IQ_LETTER_TABLES][SCALE];
    uint16_t words[IQ_LETTERS_AT_ONCE + 1];
    uint32_t states[STATES_MOST], levels[IQ_LETTER_TABLES * IQ_LETTERS_MOST], nstates = states_for(count);
    table_t table;
    unsigned present = bytes > 0 ? from[0] : 0, npresent = (unsigned)__builtin_popcount(present), seen = 0;
    size_t nlevels = npresent * nletters, head = 1 + iq_packed_bytes(nlevels, LEVEL_BITS), before = head + 4 * nstates;
    if (present >= 1u << IQ_LETTER_TABLES || bytes < before || (bytes - before) % 2 != 0 || (bytes - before) / 2 > count)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "letters: %zu bytes with tables %#x for %zu letters of %u", bytes, present, count,
                       nletters);
    iq_kernels()->unpack32(from + 1, nlevels, LEVEL_BITS, levels);
    for (unsigned t = 0; t < IQ_LETTER_TABLES; t++) {
        if ((present >> t & 1) != 0 && make_table(levels + nletters * seen++, nletters, &table))
            fill_slots(&table, nletters, slots[t]);
        else
            for (size_t i = 0; i < SCALE; i++)
                slots[t][i] = none; /* who asks for it does not come to the right end */
    }
    size_t nwords = (bytes - before) / 2;
    memcpy(states, from + head, 4 * nstates);
    memcpy(words, from + before, 2 * nwords);
    memset(words + nwords, 0, 2 * (count + 1 - nwords));
    size_t used = nstates == 1 ? read_words(words, slots, tables, count, 1, states, letters)
                               : read_words(words, slots, tables, count, STATES_MOST, states, letters);
    bool ends = used == nwords;
    for (unsigned i = 0; i < nstates; i++)
        ends &= states[i] == LEAST_STATE;
    return ends ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_CORRUPT, "letters: %zu words are not the code of %zu letters", nwords, count);
}
