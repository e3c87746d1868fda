/* SPDX-License-Identifier: Apache-2.0 */
/* base/: last error, log lines, configuration, nearest words, sizes, and modules that are not there. */
#include "support/check_main.h"

#include "base/config.h"
#include "base/log.h"
#include "base/module.h"
#include "base/status.h"
#include "base/util.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the log said, line after line. */
typedef struct transcript {
    int lines;
    char text[8192];
} transcript_t;

static void record_line(void *context, iq_log_level_t level, const char *line)
{
    transcript_t *transcript = context;
    size_t used = strlen(transcript->text);
    (void)level;
    snprintf(transcript->text + used, sizeof(transcript->text) - used, "%s\n", line);
    transcript->lines++;
}

static void expect_error(const char *expected) { ck_assert_str_eq(iq_last_error(), expected); }

/* ---- status ---- */

START_TEST(fail_records_the_text_without_the_place)
{
    expect_error("");
    ck_assert_int_eq(IQ_FAIL(ISGQ_ERR_REMOTE, "send to rank %d: %s", 3, "gone"), ISGQ_ERR_REMOTE);
    expect_error("send to rank 3: gone");
    ck_assert_int_eq(IQ_FAIL(ISGQ_ERR_SYSTEM, "again: %s", iq_last_error()), ISGQ_ERR_SYSTEM);
    expect_error("again: send to rank 3: gone");
    iq_set_last_error(iq_last_error() + 7);
    expect_error("send to rank 3: gone");
    iq_set_last_error(NULL);
    expect_error("");
}
END_TEST

START_TEST(long_text_is_cut)
{
    char text[2 * IQ_ERROR_TEXT_BYTES];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    iq_set_last_error(text);
    ck_assert_uint_eq(strlen(iq_last_error()), IQ_ERROR_TEXT_BYTES - 1);
    IQ_FAIL(ISGQ_ERR_SYSTEM, "%s", text);
    ck_assert_uint_eq(strlen(iq_last_error()), IQ_ERROR_TEXT_BYTES - 1);
}
END_TEST

static isgq_result_t forward(isgq_result_t result, bool *went_on)
{
    IQ_TRY(result);
    *went_on = true;
    return ISGQ_SUCCESS;
}

START_TEST(try_forwards)
{
    bool went_on = false;
    ck_assert_int_eq(forward(ISGQ_ERR_TIMEOUT, &went_on), ISGQ_ERR_TIMEOUT);
    ck_assert(!went_on);
    ck_assert_int_eq(forward(ISGQ_SUCCESS, &went_on), ISGQ_SUCCESS);
    ck_assert(went_on);
}
END_TEST

static void *fail_elsewhere(void *unused)
{
    (void)unused;
    IQ_FAIL(ISGQ_ERR_INTERNAL, "other thread");
    return NULL;
}

START_TEST(errors_belong_to_their_thread)
{
    pthread_t thread;
    IQ_FAIL(ISGQ_ERR_SYSTEM, "mine");
    ck_assert_int_eq(pthread_create(&thread, NULL, fail_elsewhere, NULL), 0);
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    expect_error("mine");
}
END_TEST

/* ---- log ---- */

static transcript_t heard;

static void listen_to_log(void)
{
    memset(&heard, 0, sizeof(heard));
    iq_log_set_sink(record_line, &heard);
}

static void stop_listening(void)
{
    iq_log_set_sink(NULL, NULL);
    iq_log_identity(0, 0);
    ck_assert_int_eq(iq_config_set("LOG", NULL), ISGQ_SUCCESS);
}

START_TEST(lines_say_who_and_how_bad)
{
    IQ_WARN("ucx not built, using %s", "shm");
    iq_log_identity(3, 8);
    IQ_ERROR("two\nlines\x1b");
    IQ_INFO("not shown at the default level");
    ck_assert_str_eq(heard.text, "isgq warn: ucx not built, using shm\nisgq 3/8 error: two?lines?\n");
}
END_TEST

START_TEST(level_comes_from_the_configuration)
{
    ck_assert_int_eq(iq_config_set("LOG", "trace"), ISGQ_SUCCESS);
    ck_assert(iq_log_enabled(IQ_LOG_TRACE));
    ck_assert_int_eq(iq_config_set("LOG", "none"), ISGQ_SUCCESS);
    ck_assert(!iq_log_enabled(IQ_LOG_ERROR));
    ck_assert_int_eq(iq_config_set("LOG", "loud"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert(!iq_log_enabled(IQ_LOG_ERROR));
    ck_assert_int_eq(iq_config_set("LOG", NULL), ISGQ_SUCCESS);
    ck_assert(iq_log_enabled(IQ_LOG_WARN));
    ck_assert(!iq_log_enabled(IQ_LOG_INFO));
}
END_TEST

static int evaluations;
static int evaluated(void) { return ++evaluations; }

START_TEST(messages_below_the_level_are_not_built)
{
    IQ_DEBUG("%d", evaluated());
    ck_assert_int_eq(evaluations, 0);
    IQ_WARN("%d", evaluated());
    ck_assert_int_eq(evaluations, 1);
}
END_TEST

START_TEST(place_of_an_error_is_in_the_debug_log)
{
    ck_assert_int_eq(iq_config_set("LOG", "debug"), ISGQ_SUCCESS);
    IQ_FAIL(ISGQ_ERR_SYSTEM, "disk on fire");
    ck_assert_ptr_nonnull(strstr(heard.text, "isgq debug: disk on fire (status 2, "));
    ck_assert_ptr_nonnull(strstr(heard.text, "test_base.c:"));
    expect_error("disk on fire");
}
END_TEST

START_TEST(long_lines_are_cut)
{
    char text[4096];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    IQ_WARN("%s", text);
    ck_assert_int_eq(heard.lines, 1);
    ck_assert_uint_lt(strlen(heard.text), 1100);
}
END_TEST

/* ---- configuration ---- */

START_TEST(sizes)
{
    static const struct {
        const char *text;
        size_t bytes;
    } right[] = {{"0", 0},
                 {"512", 512},
                 {"64k", 64u << 10},
                 {"64K", 64u << 10},
                 {"1m", 1u << 20},
                 {"2g", 2ul << 30},
                 {"17179869183g", 17179869183ul << 30}};
    static const char *const wrong[] = {
        "", "k", "-1", "+1", " 1", "1 ", "1kb", "1.5k", "0x10", "17179869184g", "99999999999999999999"};
    size_t bytes;
    for (size_t i = 0; i < IQ_ARRAY_SIZE(right); i++) {
        ck_assert_msg(iq_parse_bytes(right[i].text, &bytes), "%s", right[i].text);
        ck_assert_uint_eq(bytes, right[i].bytes);
    }
    bytes = 77;
    for (size_t i = 0; i < IQ_ARRAY_SIZE(wrong); i++)
        ck_assert_msg(!iq_parse_bytes(wrong[i], &bytes) && bytes == 77, "\"%s\"", wrong[i]);
    ck_assert(!iq_parse_bytes(NULL, &bytes));
}
END_TEST

START_TEST(every_kind_is_set_and_checked)
{
    const iq_config_t *config = iq_config();
    ck_assert_int_eq(iq_config_set("CHUNK_BYTES", "128k"), ISGQ_SUCCESS);
    ck_assert_uint_eq(config->chunk_bytes, 128u << 10);
    ck_assert_int_eq(iq_config_set("CHUNK_BYTES", "1k"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(iq_config_set("CHUNK_BYTES", "32m"), ISGQ_ERR_INVALID_ARGUMENT);
    expect_error("configuration: \"32m\" is no valid value of ISGQ_CHUNK_BYTES");
    ck_assert_uint_eq(config->chunk_bytes, 128u << 10);
    ck_assert_int_eq(iq_config_set("CHUNK_BYTES", NULL), ISGQ_SUCCESS);
    ck_assert_uint_eq(config->chunk_bytes, 64u << 10);

    ck_assert_int_eq(iq_config_set("SEED", "0xffffffffffffffff"), ISGQ_SUCCESS);
    ck_assert_uint_eq(config->seed, UINT64_MAX);
    ck_assert_int_eq(iq_config_set("SEED", "-1"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(iq_config_set("SEED", "18446744073709551616"), ISGQ_ERR_INVALID_ARGUMENT);

    ck_assert_int_eq(iq_config_set("TIMEOUT_MS", "4294967295"), ISGQ_SUCCESS);
    ck_assert_uint_eq(config->timeout_ms, UINT32_MAX);
    ck_assert_int_eq(iq_config_set("TIMEOUT_MS", "4294967296"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(iq_config_set("TIMEOUT_MS", "0"), ISGQ_ERR_INVALID_ARGUMENT);

    ck_assert_int_eq(iq_config_set("INSECURE", "1"), ISGQ_SUCCESS);
    ck_assert(config->insecure);
    ck_assert_int_eq(iq_config_set("INSECURE", "yes"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(iq_config_set("INSECURE", NULL), ISGQ_SUCCESS);
    ck_assert(!config->insecure);

    ck_assert_int_eq(iq_config_set("QUANTIZER", "uniform:bits=4"), ISGQ_SUCCESS);
    ck_assert_str_eq(config->quantizer, "uniform:bits=4");
}
END_TEST

START_TEST(unknown_names_are_refused_with_the_nearest)
{
    ck_assert_int_eq(iq_config_set("CHUNK_BYTE", "64k"), ISGQ_ERR_INVALID_ARGUMENT);
    expect_error("configuration: no variable is named ISGQ_CHUNK_BYTE; the nearest is ISGQ_CHUNK_BYTES");
    ck_assert_int_eq(iq_config_set("BANANA", "1"), ISGQ_ERR_INVALID_ARGUMENT);
    expect_error("configuration: no variable is named ISGQ_BANANA");
}
END_TEST

START_TEST(every_variable_is_described)
{
    isgq_config_var_t var = {.size = sizeof(var)};
    size_t count = 0;
    while (iq_config_describe(count, &var) == ISGQ_SUCCESS) {
        ck_assert_int_eq(strncmp(var.name, "ISGQ_", 5), 0);
        ck_assert_ptr_nonnull(var.default_value);
        ck_assert_ptr_nonnull(var.value);
        ck_assert_uint_gt(strlen(var.help), 10);
        ck_assert_int_eq(iq_config_set(var.name + 5, NULL), ISGQ_SUCCESS); /* every default is a valid value */
        count++;
    }
    ck_assert_uint_gt(count, 10);
    ck_assert_int_eq(iq_config_describe(SIZE_MAX, &var), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(iq_config_describe(0, NULL), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

START_TEST(description_respects_the_callers_size)
{
    isgq_config_var_t var = {.size = offsetof(isgq_config_var_t, value), .value = "untouched", .help = "untouched"};
    ck_assert_int_eq(iq_config_describe(0, &var), ISGQ_SUCCESS);
    ck_assert_str_eq(var.name, "ISGQ_LOG");
    ck_assert_str_eq(var.value, "untouched");
    ck_assert_str_eq(var.help, "untouched");
    ck_assert_uint_eq(var.size, offsetof(isgq_config_var_t, value));
    var.size = 0;
    ck_assert_int_eq(iq_config_describe(0, &var), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

START_TEST(secrets_are_not_shown)
{
    isgq_config_var_t var = {.size = sizeof(var)};
    ck_assert_int_eq(iq_config_set("SECRET", "swordfish"), ISGQ_SUCCESS);
    ck_assert_str_eq(iq_config()->secret, "swordfish");
    for (size_t i = 0; iq_config_describe(i, &var) == ISGQ_SUCCESS; i++) {
        ck_assert_ptr_null(strstr(var.value, "swordfish"));
        if (strcmp(var.name, "ISGQ_SECRET") == 0)
            ck_assert_str_eq(var.value, "(hidden)");
    }
}
END_TEST

/* A child process that reads a new environment: only there the first call of iq_config is still to come. */
static void read_in_child(char *const environment[], transcript_t *said, iq_config_t *config)
{
    struct report {
        transcript_t said;
        iq_config_t config;
    } report;
    int ends[2], status;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        ssize_t sent = -1;
        listen_to_log();
        clearenv();
        for (; *environment != NULL; environment++)
            putenv(*environment);
        report.config = *iq_config();
        (void)iq_config();
        report.said = heard;
        sent = write(ends[1], &report, sizeof(report));
        _exit(sent == (ssize_t)sizeof(report) ? 0 : 1);
    }
    close(ends[1]);
    size_t received = 0;
    for (ssize_t step; (step = read(ends[0], (char *)&report + received, sizeof(report) - received)) > 0;)
        received += (size_t)step;
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_int_eq(status, 0);
    ck_assert_uint_eq(received, sizeof(report));
    *said = report.said;
    *config = report.config;
}

START_TEST(environment_is_read)
{
    transcript_t said;
    iq_config_t config;
    read_in_child((char *[]){"ISGQ_CHUNK_BYTES=1m", "ISGQ_SEED=", "ISGQ_INSECURE=1", "OTHER=x", NULL}, &said, &config);
    ck_assert_uint_eq(config.chunk_bytes, 1u << 20);
    ck_assert_uint_eq(config.seed, 1);
    ck_assert(config.insecure);
    ck_assert_str_eq(said.text, "");
}
END_TEST

START_TEST(bad_values_warn_and_give_the_default)
{
    transcript_t said;
    iq_config_t config;
    read_in_child((char *[]){"ISGQ_CHUNK_BYTES=lots", "ISGQ_LOG=loud", "ISGQ_PLAN_CACHE=1", NULL}, &said, &config);
    ck_assert_int_eq(said.lines, 3);
    ck_assert_ptr_nonnull(strstr(said.text, "isgq warn: ISGQ_CHUNK_BYTES: \"lots\" is no valid value, using \"64k\" instead."));
    ck_assert_ptr_nonnull(strstr(said.text, "ISGQ_LOG: \"loud\""));
    ck_assert_ptr_nonnull(strstr(said.text, "ISGQ_PLAN_CACHE: \"1\""));
    ck_assert_uint_eq(config.chunk_bytes, 64u << 10);
    ck_assert_uint_eq(config.plan_cache, 256);
}
END_TEST

START_TEST(unknown_variables_warn_once)
{
    transcript_t said;
    iq_config_t config;
    read_in_child((char *[]){"ISGQ_CHUNKBYTES=1m", "ISGQ_WHATEVER=1", "ISGQ_NCCL_DEBUG=1", "ISGQ_MPI_DEBUG=1", "ISGQ_PYTHON_LIBRARY=x", NULL}, &said,
                  &config);
    ck_assert_int_eq(said.lines, 2);
    ck_assert_ptr_nonnull(strstr(said.text, "ISGQ_CHUNKBYTES is unknown and ignored; did you mean ISGQ_CHUNK_BYTES?\n"));
    ck_assert_ptr_nonnull(strstr(said.text, "ISGQ_WHATEVER is unknown and ignored; isgq_info --config lists"));
}
END_TEST

START_TEST(log_none_silences_warnings)
{
    transcript_t said;
    iq_config_t config;
    read_in_child((char *[]){"ISGQ_LOG=none", "ISGQ_WHATEVER=1", "ISGQ_SEED=x", NULL}, &said, &config);
    ck_assert_str_eq(said.text, "");
}
END_TEST

/* ---- nearest words ---- */

START_TEST(nearest_words)
{
    static const char *const words[] = {"none", "fp16", "bf16", "uniform", "exponential", "factor", NULL};
    static const struct {
        const char *word, *nearest;
    } pairs[] = {{"uniform", "uniform"}, {"unifrom", "uniform"}, {"UNIFORM", "uniform"}, {"unform", "uniform"}, {"fp61", "fp16"},
                 {"exp", "exponential"}, {"factors", "factor"},  {"fcator", "factor"},   {"banana", NULL},      {"", NULL},
                 {"xy", NULL},           {"none", "none"}};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(pairs); i++) {
        const char *nearest = iq_nearest_word(pairs[i].word, words);
        if (pairs[i].nearest == NULL)
            ck_assert_msg(nearest == NULL, "%s: %s", pairs[i].word, nearest);
        else
            ck_assert_str_eq(nearest, pairs[i].nearest);
    }
}
END_TEST

START_TEST(overlong_words_are_near_nothing)
{
    char text[1000];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    ck_assert_ptr_null(iq_nearest_word(text, (const char *const[]){"aaa", text, NULL}));
    ck_assert_str_eq(iq_nearest_word("aaaa", (const char *const[]){text, "aaa", NULL}), "aaa");
    ck_assert_ptr_null(iq_nearest_word("aaaa", (const char *const[]){NULL}));
}
END_TEST

/* ---- modules ---- */

/* A folder that the user names is looked into for modules that this build does not have, too. */
START_TEST(missing_modules_say_why_every_time)
{
    ck_assert_int_eq(iq_config_set("MODULE_DIR", "/nonexistent/folder"), ISGQ_SUCCESS);
    for (int attempt = 0; attempt < 2; attempt++) {
        iq_set_last_error("");
        ck_assert_ptr_null(iq_module_load("blas"));
        ck_assert_int_eq(strncmp(iq_last_error(), "module blas: ", 13), 0);
        ck_assert_msg(strstr(iq_last_error(), "/nonexistent/folder/isgqcoll-blas.so") != NULL, "%s", iq_last_error());
    }
}
END_TEST

START_TEST(unknown_modules_are_refused)
{
    ck_assert_ptr_null(iq_module_load("../../evil"));
    expect_error("module ../../evil: there is no such module");
}
END_TEST

static void add_log_case(Suite *suite)
{
    TCase *log = tcase_create("log");
    tcase_add_checked_fixture(log, listen_to_log, stop_listening);
    tcase_add_test(log, lines_say_who_and_how_bad);
    tcase_add_test(log, level_comes_from_the_configuration);
    tcase_add_test(log, messages_below_the_level_are_not_built);
    tcase_add_test(log, place_of_an_error_is_in_the_debug_log);
    tcase_add_test(log, long_lines_are_cut);
    suite_add_tcase(suite, log);
}

/* First of all cases, and the order inside matters where Check does not fork: the children need a configuration that nobody has read. */
static void add_environment_case(Suite *suite)
{
    TCase *environment = tcase_create("environment");
    tcase_add_test(environment, environment_is_read);
    tcase_add_test(environment, bad_values_warn_and_give_the_default);
    tcase_add_test(environment, unknown_variables_warn_once);
    tcase_add_test(environment, log_none_silences_warnings);
    suite_add_tcase(suite, environment);
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("base");
    add_environment_case(suite);
    TCase *status = tcase_create("status");
    tcase_add_test(status, fail_records_the_text_without_the_place);
    tcase_add_test(status, long_text_is_cut);
    tcase_add_test(status, try_forwards);
    tcase_add_test(status, errors_belong_to_their_thread);
    suite_add_tcase(suite, status);
    add_log_case(suite);
    TCase *config = tcase_create("config");
    tcase_add_test(config, sizes);
    tcase_add_test(config, every_kind_is_set_and_checked);
    tcase_add_test(config, unknown_names_are_refused_with_the_nearest);
    tcase_add_test(config, every_variable_is_described);
    tcase_add_test(config, description_respects_the_callers_size);
    tcase_add_test(config, secrets_are_not_shown);
    suite_add_tcase(suite, config);
    TCase *words = tcase_create("words");
    tcase_add_test(words, nearest_words);
    tcase_add_test(words, overlong_words_are_near_nothing);
    suite_add_tcase(suite, words);
    TCase *module = tcase_create("module");
    tcase_add_test(module, missing_modules_say_why_every_time);
    tcase_add_test(module, unknown_modules_are_refused);
    suite_add_tcase(suite, module);
    return suite;
}
