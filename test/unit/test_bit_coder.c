/* SPDX-License-Identifier: Apache-2.0 */
/* The adaptive coder gives back what went in, in about as many bytes as the odds allow, and takes any bytes without harm. */
#include "support/check_main.h"
#include "support/factor_ranks.h"

#include "codec/factor_symbols.h"

enum { ROW = 300, ROWS = 40 };

static uint32_t word_of(uint64_t seed, uint64_t index) { return iq_draw(seed, 0, 1, 0, index * 4).word[0]; }

/* Bits with odds p, some of even odds between them: the same at the other end, and not much more than the entropy. */
START_TEST(test_bits)
{
    static const double odds[] = {0.5, 0.1, 0.9, 0.01, 0.999, 0, 1};
    enum { COUNT = 20000 };
    static uint8_t memory[COUNT];
    for (size_t k = 0; k < IQ_ARRAY_SIZE(odds); k++) {
        iq_bit_model_t model = iq_bit_model_fresh();
        iq_bit_writer_t writer = iq_bit_writer_of(memory, sizeof(memory));
        for (uint64_t i = 0; i < COUNT; i++) {
            iq_bit_write(&writer, &model, word_of(k, i) < odds[k] * 4294967295.0);
            if (i % 100 == 0)
                iq_bit_write_even(&writer, word_of(k + 50, i) & 0x3ff, 10);
        }
        size_t bytes = iq_bit_write_end(&writer, memory);
        double p = odds[k], entropy = p > 0 && p < 1 ? -p * log2(p) - (1 - p) * log2(1 - p) : 0;
        ck_assert(!writer.full);
        ck_assert_double_le((double)bytes, 8 + COUNT * (entropy * 1.03 + 0.012) / 8 + 10.0 * COUNT / 100 / 8);
        iq_bit_reader_t reader = iq_bit_reader_of(memory, bytes);
        model = iq_bit_model_fresh();
        for (uint64_t i = 0; i < COUNT; i++) {
            require(iq_bit_read(&reader, &model) == (word_of(k, i) < odds[k] * 4294967295.0), "another bit");
            if (i % 100 == 0)
                require(iq_bit_read_even(&reader, 10) == (word_of(k + 50, i) & 0x3ff), "other even bits");
        }
        ck_assert(iq_bit_read_end(&reader));
    }
}
END_TEST

/* Runs of the one outcome that is nearly certain: carries that travel far, and messages that end in zeros. */
START_TEST(test_carries)
{
    static uint8_t memory[4096];
    for (uint64_t seed = 0; seed < 3000; seed++) {
        size_t count = 1 + word_of(seed, 0) % 200;
        iq_bit_model_t model = iq_bit_model_fresh();
        iq_bit_writer_t writer = iq_bit_writer_of(memory, sizeof(memory));
        for (uint64_t i = 0; i < count; i++) {
            iq_bit_write(&writer, &model, word_of(seed, 1 + i / 40) & 1);
            iq_bit_write_even(&writer, word_of(seed, 1 + i / 60) & 2 ? 0xffff : 0, 16);
        }
        size_t bytes = iq_bit_write_end(&writer, memory);
        require(bytes == 0 || memory[bytes - 1] != 0, "a zero at the end");
        iq_bit_reader_t reader = iq_bit_reader_of(memory, bytes);
        model = iq_bit_model_fresh();
        for (uint64_t i = 0; i < count; i++) {
            require(iq_bit_read(&reader, &model) == (word_of(seed, 1 + i / 40) & 1), "another bit");
            require(iq_bit_read_even(&reader, 16) == (word_of(seed, 1 + i / 60) & 2 ? 0xffff : 0u), "other even bits");
        }
        require(iq_bit_read_end(&reader), "not the end");
    }
}
END_TEST

/* What does not fit is said, and nothing is written behind the room. */
START_TEST(test_room)
{
    uint8_t memory[64];
    for (size_t room = 0; room < 40; room++) {
        memset(memory, 0xaa, sizeof(memory));
        iq_bit_writer_t writer = iq_bit_writer_of(memory, room);
        for (uint64_t i = 0; i < 40; i++)
            iq_bit_write_even(&writer, word_of(1, i) & 0xff, 8);
        size_t bytes = iq_bit_write_end(&writer, memory);
        ck_assert(writer.full);
        ck_assert_uint_le(bytes, room);
        for (size_t i = room; i < sizeof(memory); i++)
            ck_assert_uint_eq(memory[i], 0xaa);
    }
}
END_TEST

/* Codes of every width, with zeros that depend on the column: back as they were, and shorter than packed. */
START_TEST(test_codes)
{
    static int16_t codes[ROWS][ROW], back[ROW];
    static uint8_t memory[ROWS * ROW * 2];
    static iq_bit_model_t columns[ROW];
    for (unsigned width = 2; width <= 8; width++)
        for (int is_signed = 0; is_signed < 2; is_signed++) {
            iq_symbol_row_t row = {.count = ROW, .octaves = width - (unsigned)is_signed, .is_signed = is_signed, .plane = true};
            int most = (1 << row.octaves) - 1;
            iq_symbols_t symbols;
            iq_bit_writer_t writer = iq_bit_writer_of(memory, sizeof(memory));
            iq_symbols_open(&symbols, ROW, columns);
            for (size_t r = 0; r < ROWS; r++) {
                for (size_t i = 0; i < ROW; i++) {
                    double y = normal(width, r * ROW + i) * most / 4;
                    int code = (int)floor((is_signed ? y : fabs(y)) + 0.5);
                    bool absent = word_of(7, r * ROW + i) % 100 < 95 * (i % 3) / 2; /* columns that are never 0, and others that mostly are */
                    codes[r][i] = (int16_t)(absent ? IQ_CODE_ABSENT : code > most ? most : code < -most ? -most : code);
                }
                iq_symbols_write(&symbols, &row, codes[r], &writer);
            }
            size_t bytes = iq_bit_write_end(&writer, memory), packed = ROWS * (ROW + ROW * width / 2) / 8;
            ck_assert(!writer.full);
            ck_assert_msg(bytes < packed * 9 / 10, "width %u: %zu bytes, packed %zu", width, bytes, packed);
            iq_bit_reader_t reader = iq_bit_reader_of(memory, bytes);
            iq_symbols_open(&symbols, ROW, columns);
            for (size_t r = 0; r < ROWS; r++) {
                iq_symbols_read(&symbols, &row, &reader, back);
                ck_assert_mem_eq(back, codes[r], sizeof(back));
            }
            ck_assert(iq_bit_read_end(&reader));
        }
}
END_TEST

START_TEST(test_levels)
{
    static uint16_t row[ROW], back[ROW];
    static uint8_t memory[ROW * 2];
    static iq_bit_model_t columns[ROW];
    for (unsigned levels = 2; levels <= 8; levels *= 2) {
        iq_symbols_t symbols;
        iq_bit_writer_t writer = iq_bit_writer_of(memory, sizeof(memory));
        iq_symbols_open(&symbols, ROW, columns);
        for (size_t i = 0; i < ROW; i++)
            row[i] = (uint16_t)(word_of(levels, i) % (levels + 1));
        iq_symbols_write_levels(&symbols, row, ROW, levels, &writer);
        iq_bit_reader_t reader = iq_bit_reader_of(memory, iq_bit_write_end(&writer, memory));
        iq_symbols_open(&symbols, ROW, columns);
        iq_symbols_read_levels(&symbols, ROW, levels, &reader, back);
        ck_assert_mem_eq(back, row, sizeof(back));
        ck_assert(iq_bit_read_end(&reader));
    }
}
END_TEST

/* Any bytes are some codes, within their range. */
START_TEST(test_rubbish)
{
    int16_t codes[64];
    uint8_t memory[64];
    iq_bit_model_t columns[64];
    for (uint64_t seed = 0; seed < 3000; seed++) {
        size_t bytes = word_of(seed, 0) % sizeof(memory);
        for (size_t i = 0; i < sizeof(memory); i++)
            memory[i] = (uint8_t)(seed % 3 == 0 ? 0xff : word_of(seed, 1 + i));
        iq_bit_reader_t reader = iq_bit_reader_of(memory, bytes);
        iq_symbols_t symbols;
        iq_symbol_row_t row = {.count = 64, .octaves = 1 + seed % 8, .is_signed = seed % 2, .plane = seed % 5 != 0};
        iq_symbols_open(&symbols, 64, columns);
        for (int r = 0; r < 4; r++) {
            iq_symbols_read(&symbols, &row, &reader, codes);
            for (size_t i = 0; i < 64; i++)
                require(codes[i] == IQ_CODE_ABSENT ? row.plane : abs(codes[i]) < 1 << row.octaves && (row.is_signed || codes[i] >= 0),
                        "a code out of range");
        }
    }
}
END_TEST

/* The rough logarithm that budgets are planned with. */
START_TEST(test_logarithm)
{
    for (double p = 1; p > 1e-6; p *= 0.997)
        ck_assert_double_eq_tol(iq_bits_of(p), -log2(p), 0.011);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("bit_coder");
    TCase *bits = tcase_create("bits"), *codes = tcase_create("codes");
    tcase_add_test(bits, test_bits);
    tcase_add_test(bits, test_carries);
    tcase_add_test(bits, test_room);
    tcase_add_test(bits, test_logarithm);
    tcase_add_test(codes, test_codes);
    tcase_add_test(codes, test_levels);
    tcase_add_test(codes, test_rubbish);
    suite_add_tcase(suite, bits);
    suite_add_tcase(suite, codes);
    return suite;
}
