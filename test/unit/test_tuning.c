/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning tables as files, and the numbers that isgq_tune finds for them: exact where times follow the model. */
#include "support/check_main.h"

#include "base/status.h"
#include "base/util.h"
#include "plan/cost.h"
#include "tools/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[64];

static void set_up(void)
{
    snprintf(path, sizeof(path), "/tmp/isgq-tuning-XXXXXX");
    int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    close(file);
}

static void tear_down(void) { unlink(path); }

static isgqx_tuning_t sample(void)
{
    return (isgqx_tuning_t){.size = sizeof(isgqx_tuning_t), .library = "0.1.0", .cpu = "Some (R) CPU = 2 GHz", .transport = "shm+ucx", .cores = 2,
                            .hosts = 4, .ranks_per_host = 2, .host_latency = 2.5e-6, .host_rate = 3e9, .network_latency = 0, .network_rate = 1.25e7,
                            .copy_rate = 5e9, .sum_rate = 4e9, .product_rate = 2e10, .factor_rate = 1e7, .correction = {1, 2, 3, 0.5}, .ncodecs = 2,
                            .codecs = {{"uniform:bits=4", 1e9, 2e9, {1, 1, 1, 1.25}}, {"bf16", 3e9, 4e9, {2, 4, 0.5, 0.75}}}};
}

START_TEST(comes_back)
{
    isgqx_tuning_t written = sample(), read = {.size = sizeof(read)};
    isgqx_machine_t machine = {.size = sizeof(machine)};
    ck_assert_int_eq(isgqx_tuning_write(path, &written), ISGQ_SUCCESS);
    ck_assert_int_eq(isgqx_tuning_read(path, &read), ISGQ_SUCCESS);
    ck_assert_str_eq(read.cpu, written.cpu);
    ck_assert_str_eq(read.codecs[1].quantizer, "bf16");
    ck_assert_int_eq(read.hosts, 4);
    ck_assert_int_eq(isgqx_tuning_machine(&read, "bf16", &machine), ISGQ_SUCCESS);
    ck_assert_double_eq(machine.decode_rate, 4e9);
    ck_assert_int_eq(isgqx_tuning_machine(&read, "uniform:bits=3", &machine), ISGQ_SUCCESS);
    ck_assert_double_eq(machine.decode_rate, 2e9);
    ck_assert_int_eq(isgqx_tuning_machine(&read, NULL, &machine), ISGQ_SUCCESS);
    ck_assert_uint_eq(machine.nlevels, 2);
    ck_assert_double_eq(machine.levels[0].latency, 2.5e-6);
    ck_assert_double_eq(machine.levels[1].rate, 1.25e7);
    ck_assert_double_eq(machine.decode_rate, 2e9);
    ck_assert_double_eq(isgqx_tuning_correction(&read, "bf16", 100), 2);
    ck_assert_double_eq(isgqx_tuning_correction(&read, "bf16", 65536), 4);
    ck_assert_double_eq(isgqx_tuning_correction(&read, "bf16", (65536 + (1 << 20)) / 2), 2.25);
    ck_assert_double_eq(isgqx_tuning_correction(&read, "bf16", 1e12), 0.75);
    ck_assert_double_eq(isgqx_tuning_correction(&read, "none", 16 << 20), 0.5);
    ck_assert_double_eq(isgqx_tuning_correction(&read, "uniform:bits=2", 1 << 24), 1.25);
    written.copy_rate = 0;
    ck_assert_int_eq(isgqx_tuning_write(path, &written), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

/* The whole of a good file with one place changed. */
static isgq_result_t read_changed(const char *what, const char *by)
{
    static char text[4096], changed[4096];
    isgqx_tuning_t table = sample();
    ck_assert_int_eq(isgqx_tuning_write(path, &table), ISGQ_SUCCESS);
    FILE *file = fopen(path, "r");
    size_t length = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[length] = '\0';
    char *at = strstr(text, what);
    ck_assert_msg(at != NULL, "no \"%s\" in a table", what);
    snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - text), text, by, at + strlen(what));
    file = fopen(path, "w");
    fputs(changed, file);
    fclose(file);
    return isgqx_tuning_read(path, &table);
}

START_TEST(damage)
{
    static const char *const changes[][2] = {
        {"complete = yes\n", ""},        {"hosts = 4\n", ""},           {"hosts = 4", "hosts = 4.5"},     {"hosts = 4", "hosts = 4\nhosts = 4"},
        {"host_rate = 3", "host_rate = -3"}, {"host_rate = 3", "host_rate = nan"}, {"copy_rate = ", "copy_rate "}, {"decode_rate bf16 = 4e+09\n", ""},
        {"version = 1", "version = one"}, {"correction = 1 2 3 0.5", "correction = 1 2 3"}, {"correction = 1 2 3 0.5", "correction = 1 2 3 0.5 1"}, {"correction = 1 2 3 0.5", "correction = 1 -2 3 0.5"},
        {"correction bf16 = 2 4 0.5 0.75\n", ""}, {"correction bf16", "correction uniform:bits=4"}, {"host_latency = 2.5e-06", "host_latency = 2,5e-06"}, {"version = 1\n", ""},       {"cpu = Some", "what = Some"},    {"decode_rate bf16", "decode_rate fp16"},
        {"complete = yes", "complete = yes\ncores = 2"},
    };
    for (size_t i = 0; i < IQ_ARRAY_SIZE(changes); i++)
        ck_assert_msg(read_changed(changes[i][0], changes[i][1]) == ISGQ_ERR_CORRUPT, "\"%s\" instead of \"%s\" was taken: %s", changes[i][1],
                      changes[i][0], iq_last_error());
    ck_assert_int_eq(read_changed("complete", "# a remark\n\ncomplete"), ISGQ_SUCCESS);
    ck_assert_int_eq(read_changed("version = 1", "version = 2"), ISGQ_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "is of format 2, this library reads 1"));
    isgqx_tuning_t table = {.size = sizeof(table)};
    ck_assert_int_eq(isgqx_tuning_read("/nowhere/table", &table), ISGQ_ERR_SYSTEM);
    ck_assert_int_eq(isgqx_tuning_read("/tmp", &table), ISGQ_ERR_SYSTEM);
}
END_TEST

/* ---- fitting ---- */

static iq_tune_line_t line_of(double alpha, double beta)
{
    iq_tune_line_t line = {.count = 6};
    for (size_t i = 0; i < line.count; i++) {
        line.bytes[i] = 4096.0 * pow(4, (double)i);
        line.seconds[i] = alpha + beta * line.bytes[i];
    }
    return line;
}

static void near(double value, double expected) { ck_assert_msg(fabs(value / expected - 1) < 1e-9, "%.12g instead of %.12g", value, expected); }

START_TEST(lines)
{
    iq_tune_line_t line = line_of(3e-6, 1e-9);
    iq_tune_fit(&line);
    near(line.alpha, 3e-6);
    near(line.beta, 1e-9);
    line = line_of(0, 4e-8); /* a network at 200 Mbit/s that lets the first kilobytes pass at once */
    line.seconds[0] = 6e-5;
    line.seconds[1] = 7e-5;
    iq_tune_fit(&line);
    ck_assert_double_eq(line.alpha, 6e-5);
    ck_assert_msg(fabs(line.beta / 4e-8 - 1) < 0.05, "%g seconds a byte", line.beta);
    line = line_of(1e-5, 0); /* as fast as the clock can tell */
    line.seconds[5] = 0.9e-5;
    iq_tune_fit(&line);
    ck_assert_double_eq(line.beta, 0);
    double values[] = {5, 1, 4, 2};
    ck_assert_double_eq(iq_tune_median(values, 3), 4);
    ck_assert_double_eq(iq_tune_median(values, 4), 3);
}
END_TEST

/* What the model says of `ranks` with a call each, on one machine: times that give its own links back. */
static iq_tune_line_t predicted(const isgqx_tuning_t *truth, double latency, double rate, double ranks)
{
    const iq_cost_machine_t machine = {.nlevels = 1, .levels = {{ranks, latency, rate}}, .copy_rate = truth->copy_rate, .sum_rate = truth->sum_rate,
                                       .encode_rate = 1, .decode_rate = 1, .product_rate = 1};
    iq_tune_line_t line = line_of(0, 0);
    for (size_t i = 0; i < line.count; i++) {
        const iq_cost_dense_t dense = {.elements = line.bytes[i] / 4, .partial_bits = 32, .result_bits = 32};
        line.seconds[i] = iq_cost_dense(&machine, IQ_COST_DIRECT, &dense).total;
    }
    iq_tune_fit(&line);
    return line;
}

START_TEST(links)
{
    isgqx_tuning_t truth = sample(), found = truth;
    /* ranks_per_host ranks share a host's link, so that each has its part of it */
    iq_tune_line_t inside = predicted(&truth, 2.5e-6, 1e9, 2), across = predicted(&truth, 4e-5, 1.25e7 / 2, 4);
    iq_tune_links(&found, &inside, &across);
    near(found.host_latency, 2.5e-6);
    near(found.host_rate, 1e9);
    near(found.network_latency, 4e-5);
    near(found.network_rate, 1.25e7);
    near(found.copy_rate, truth.copy_rate);
    truth.copy_rate *= 4; /* calls that copy faster than the loop that was timed */
    truth.sum_rate *= 4;
    inside = predicted(&truth, 0, 1e12, 2);
    iq_tune_links(&found, &inside, NULL);
    truth = found;
    truth.size = 0;
    iq_tune_line_t again = predicted(&truth, found.host_latency, found.host_rate, 2);
    near(again.beta, inside.beta);
    near(found.network_rate, found.host_rate);
}
END_TEST

START_TEST(speeds)
{
    near(iq_tune_speedup(9, 5, 1), 0.5); /* 4 s of codes took 8 */
    near(iq_tune_speedup(3, 5, 1), 2);
    near(iq_tune_speedup(1.2, 5, 1), 10); /* hidden by the wire, but never all of it */
    ck_assert_double_eq(iq_tune_speedup(3, 1, 1), 1);
    double holes[] = {0, 3, 0, 0, 5, 0};
    iq_tune_fill(holes, 6);
    ck_assert_double_eq(holes[0], 3);
    ck_assert_double_eq(holes[3], 3);
    ck_assert_double_eq(holes[5], 5);
    const double sides[] = {100, 300}, seconds[] = {100 * 2e-6 + 1e4 * 3e-9, 300 * 2e-6 + 9e4 * 3e-9}, codes[] = {1, 3};
    near(iq_tune_product(10, sides, seconds), 10 / 3e-9);
    near(iq_tune_product(10, sides, codes), 10 * 300 * 200 / 0.3);
}
END_TEST

/* What is no file of a sensible length is refused, not waited for and not read to its end. */
START_TEST(strange_files)
{
    isgqx_tuning_t table = {.size = sizeof(table)};
    ck_assert_int_eq(isgqx_tuning_read("/dev/zero", &table), ISGQ_ERR_SYSTEM);
    unlink(path);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(isgqx_tuning_read(path, &table), ISGQ_ERR_SYSTEM);
    unlink(path);
    FILE *file = fopen(path, "w");
    for (int i = 0; i < 20000; i++)
        fputc('#', file);
    fclose(file);
    ck_assert_int_eq(isgqx_tuning_read(path, &table), ISGQ_ERR_CORRUPT);
    ck_assert_int_eq(truncate(path, 0), 0);
    ck_assert_int_eq(isgqx_tuning_read(path, &table), ISGQ_ERR_CORRUPT);
    ck_assert_int_eq(truncate(path, 100), 0); /* zeros */
    ck_assert_int_eq(isgqx_tuning_read(path, &table), ISGQ_ERR_CORRUPT);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "zeros"));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("tuning");
    TCase *tcase = tcase_create("file");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, comes_back);
    tcase_add_test(tcase, damage);
    tcase_add_test(tcase, strange_files);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("fit");
    tcase_add_test(tcase, lines);
    tcase_add_test(tcase, links);
    tcase_add_test(tcase, speeds);
    suite_add_tcase(suite, tcase);
    return suite;
}
