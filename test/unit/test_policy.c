/* SPDX-License-Identifier: Apache-2.0 */
/* Policies of the preloads: what a text means, what is wrong with a wrong one, and which calls a policy names. */
#include "bindings/preload/policy.h"
#include "bindings/preload/record.h"

#include "support/check_main.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static iq_policy_t policy;
static char error[IQ_POLICY_ERROR];

static uint32_t call_kind = IQ_POLICY_ALLREDUCE;

static const char *match(const char *comm, int nranks, uint32_t type, uint32_t op, uint64_t bytes)
{
    const char *why = NULL;
    iq_policy_seen_t seen = {.call = call_kind, .type = type, .op = op, .bytes = bytes};
    const iq_policy_rule_t *rule = iq_policy_match(&policy, iq_policy_named(&policy, comm, nranks), &seen, &why);
    ck_assert_ptr_nonnull(why);
    return rule != NULL ? rule->with : why;
}

START_TEST(modes)
{
    static const char *const off[] = {NULL, "", "off"};
    for (size_t i = 0; i < 3; i++) {
        ck_assert(iq_policy_parse(&policy, off[i], error));
        ck_assert_int_eq(policy.mode, IQ_POLICY_OFF);
    }
    uint64_t hash_off = policy.hash;
    ck_assert(iq_policy_parse(&policy, "record", error));
    ck_assert_int_eq(policy.mode, IQ_POLICY_RECORD);
    ck_assert_str_eq(policy.record, "isgq-policy");
    uint64_t hash_record = policy.hash;
    ck_assert(iq_policy_parse(&policy, "record:/tmp/x", error));
    ck_assert_str_eq(policy.record, "/tmp/x");
    ck_assert(policy.hash == hash_record && hash_record != hash_off); /* where to is each rank's own business */
}
END_TEST

START_TEST(rules)
{
    ck_assert_msg(iq_policy_parse(&policy,
                                  "quantize comm=grad* type=f32,bf16 bytes=64k-1m with=uniform:bits=4;\n"
                                  "quantize comm=* type=f32 op=avg bytes=1- ranks=3-4 with=isgq:bits=2 # all the others\n;"
                                  "exclude comm=*small bytes=0-128k",
                                  error),
                  "%s", error);
    ck_assert_int_eq((int)policy.nrules, 3);
    ck_assert_str_eq(match("gradients", 2, IQ_POLICY_F32, IQ_POLICY_SUM, 65536), "uniform:bits=4");
    ck_assert_str_eq(match("gradients", 2, IQ_POLICY_BF16, IQ_POLICY_AVG, 1 << 20), "uniform:bits=4");
    ck_assert_str_eq(match("gradients", 2, IQ_POLICY_F32, IQ_POLICY_SUM, 65535), "no rule names its size");
    ck_assert_str_eq(match("gradients", 2, IQ_POLICY_F32, IQ_POLICY_SUM, (1 << 20) + 1), "no rule names its size");
    ck_assert_str_eq(match("gradients", 2, IQ_POLICY_F64, IQ_POLICY_SUM, 65536), "no rule names its type");
    ck_assert_str_eq(match("gradients", 2, 0, IQ_POLICY_SUM, 65536), "no rule names its type");
    ck_assert_str_eq(match("other", 2, IQ_POLICY_F32, IQ_POLICY_AVG, 65536), "no rule names its communicator");
    ck_assert_str_eq(match("other", 3, IQ_POLICY_F32, IQ_POLICY_AVG, 65536), "isgq:bits=2");
    ck_assert_str_eq(match("other", 5, IQ_POLICY_F32, IQ_POLICY_AVG, 65536), "no rule names its communicator");
    ck_assert_str_eq(match("other", 3, IQ_POLICY_F32, IQ_POLICY_SUM, 65536), "no rule names its operation");
    ck_assert_str_eq(match("other", 3, IQ_POLICY_F32, IQ_POLICY_AVG, 0), "no rule names its size"); /* zero is never quantized */
    ck_assert_str_eq(match("grad small", 2, IQ_POLICY_F32, IQ_POLICY_SUM, 128 << 10), "a rule excludes it");
    ck_assert_str_eq(match("grad small", 2, IQ_POLICY_F32, IQ_POLICY_SUM, 129 << 10), "uniform:bits=4");
    ck_assert_str_eq(match("gradients", 1, IQ_POLICY_F32, IQ_POLICY_SUM, 65536), "no rule names its communicator"); /* alone */
}
END_TEST

/* A rule is for allreduce unless it says otherwise; an exclude rule for everything. */
START_TEST(kinds_of_calls)
{
    ck_assert(iq_policy_parse(&policy,
                              "quantize comm=a type=f32 bytes=1- with=fp16; quantize comm=a type=f32 bytes=1- with=bf16 "
                              "op=sum,avg call=reduce_scatter,allgather; exclude comm=a bytes=9-",
                              error));
    static const struct {
        uint32_t kind, op;
        const char *with;
    } due[] = {{IQ_POLICY_ALLREDUCE, IQ_POLICY_SUM, "fp16"},
               {IQ_POLICY_REDUCE_SCATTER, IQ_POLICY_AVG, "bf16"},
               {IQ_POLICY_ALLGATHER, 0, "bf16"},
               {0, IQ_POLICY_SUM, "no rule names this kind of call"}};
    for (size_t i = 0; i < sizeof(due) / sizeof(due[0]); i++) {
        call_kind = due[i].kind;
        ck_assert_str_eq(match("a", 2, IQ_POLICY_F32, due[i].op, 8), due[i].with);
        if (due[i].kind != 0)
            ck_assert_str_eq(match("a", 2, IQ_POLICY_F32, due[i].op, 9), "a rule excludes it");
    }
    call_kind = IQ_POLICY_ALLREDUCE;
    ck_assert(iq_policy_parse(&policy, "quantize comm=a type=f32 bytes=1- with=fp16 call=allgather", error));
    ck_assert_str_eq(match("a", 2, IQ_POLICY_F32, IQ_POLICY_SUM, 8), "no rule names this kind of call");
}
END_TEST

/* Equal rules have equal hashes however they are written; any difference in meaning makes another. */
START_TEST(hashes)
{
    static const char *const differing[] = {
        "quantize comm=a type=f32 bytes=1k- with=fp16",
        "quantize comm=b type=f32 bytes=1k- with=fp16",
        "quantize comm=a type=f64 bytes=1k- with=fp16",
        "quantize comm=a type=f32 bytes=1025- with=fp16",
        "quantize comm=a type=f32 bytes=1k-2k with=fp16",
        "quantize comm=a type=f32 bytes=1k- with=bf16",
        "quantize comm=a type=f32 bytes=1k- with=fp16 op=sum",
        "quantize comm=a type=f32 bytes=1k- ranks=3- with=fp16",
        "quantize comm=a type=f32 bytes=1k- with=fp16;exclude comm=z",
        "quantize comm=a type=f32 bytes=1k- with=fp16 call=allgather",
    };
    uint64_t seen[sizeof(differing) / sizeof(differing[0])];
    for (size_t i = 0; i < sizeof(differing) / sizeof(differing[0]); i++) {
        ck_assert_msg(iq_policy_parse(&policy, differing[i], error), "%s", error);
        seen[i] = policy.hash;
        for (size_t k = 0; k < i; k++)
            ck_assert(seen[k] != seen[i]);
    }
    ck_assert(iq_policy_parse(&policy, " # rules\n  quantize with=fp16   bytes=1024- type=f32\tcomm=a ;;", error));
    ck_assert(policy.hash == seen[0]);
}
END_TEST

START_TEST(mistakes)
{
    static const char *const wrong[][2] = {
        {"on", "\"on\" begins no rule"},
        {"quantize", "comm= is missing"},
        {"quantize comm=* bytes=1k- with=fp16", "type= is missing"},
        {"quantize comm=* type=f32 with=fp16", "bytes= is missing"},
        {"quantize comm=* type=f32 bytes=1k-", "with= is missing"},
        {"exclude type=f32", "comm= is missing"},
        {"exclude comm=a with=fp16", "no quantizer"},
        {"quantize comm=* type=float bytes=1k- with=fp16", "type=float is not known"},
        {"quantize comm=* type=f32,f3 bytes=1k- with=fp16", "type=f3 is not known"},
        {"quantize comm=* type= bytes=1k- with=fp16", "names nothing"},
        {"quantize comm=* type=f32 op=max bytes=1k- with=fp16", "op=max is not known"},
        {"quantize comm=* type=f32 bytes=1k with=fp16", "is no range"},
        {"quantize comm=* type=f32 bytes=2k-1k with=fp16", "is no range"},
        {"quantize comm=* type=f32 bytes=-1k with=fp16", "is no range"},
        {"quantize comm=* type=f32 bytes=99999999999999999999- with=fp16", "is no range"},
        {"quantize comm=* type=f32 bytes=1k-2kk with=fp16", "is no range"},
        {"quantize comm=* type=f32 bytes=1k- ranks=2-3000000000 with=fp16", "is no range"},
        {"quantize comm= type=f32 bytes=1k- with=fp16", "wants 1 to 127 letters"},
        {"quantize comm=* type=f32 bytes=1k- with=fp16 call=broadcast", "call=broadcast is not known"},
        {"quantize com=* type=f32 bytes=1k- with=fp16", "\"com\" is no word"},
        {"quantize all", "has no ="},
        {"quantize comm=a comm=* type=f32 bytes=1k- with=fp16", "comm= is there twice"},
        {"exclude comm=a type=f32 type=f16", "type= is there twice"},
        {"exclude comm=a; quantize comm=*", "rule 2: type= is missing"},
        {"#", "there is no rule"},
        {"@/no/such/policy", "cannot be opened"},
        {"@/", "cannot be read"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        ck_assert_msg(!iq_policy_parse(&policy, wrong[i][0], error), "\"%s\" was taken", wrong[i][0]);
        ck_assert_msg(strstr(error, wrong[i][1]) != NULL, "\"%s\" says: %s", wrong[i][0], error);
        ck_assert_int_eq(policy.mode, IQ_POLICY_OFF);
        ck_assert_int_eq((int)policy.nrules, 0);
    }
}
END_TEST

START_TEST(many)
{
    char text[8192] = "";
    for (int i = 0; i < IQ_POLICY_RULES; i++)
        strcat(text, "exclude comm=x;");
    ck_assert_msg(iq_policy_parse(&policy, text, error), "%s", error);
    ck_assert_int_eq((int)policy.nrules, IQ_POLICY_RULES);
    ck_assert_uint_eq(iq_policy_named(&policy, "x", 2), UINT32_MAX);
    ck_assert_str_eq(match("x", 2, IQ_POLICY_F32, IQ_POLICY_SUM, 0), "a rule excludes it");
    strcat(text, "exclude comm=x");
    ck_assert(!iq_policy_parse(&policy, text, error));
}
END_TEST

/* More than a record keeps. */
#define LONG "0123456789012345678901234567890123456789012345678901234567890123456789"

/* A recorded program's proposal is a policy that names its large sums of floats and nothing else. */
/* What a C string cannot hold must not end the rules in silence. */
START_TEST(zero_byte)
{
    static const char text[] = "quantize comm=* type=f32 bytes=1k- with=fp16\n\0exclude comm=solver\n";
    char path[64];
    snprintf(path, sizeof(path), "@/tmp/isgq-test-zero-%d", (int)getpid());
    FILE *file = fopen(path + 1, "we");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, sizeof(text) - 1, file), sizeof(text) - 1);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert(!iq_policy_parse(&policy, path, error));
    ck_assert_ptr_nonnull(strstr(error, "zero byte"));
    ck_assert_int_eq(unlink(path + 1), 0);
}
END_TEST

START_TEST(records)
{
    static const iq_record_call_t calls[] = {
        {"allreduce", "big one", "f32", "sum", 4, 1 << 20}, {"allreduce", "big one", "f32", "sum", 4, 128 << 10},
        {"allreduce", "big one", "f32", "sum", 4, 8},       {"allreduce", "small", "f32", "sum", 4, 4096},
        {"allreduce", "ints", "<int>", "sum", 4, 1 << 20},  {"allreduce", "most", "f32", "<max>", 4, 1 << 20},
        {"allreduce", "alone", "f32", "sum", 1, 1 << 20},   {"allreduce", "two\nlines", "f32", "sum", 4, 1 << 20},
        {"allreduce", LONG "1", "f32", "sum", 4, 1 << 20},
    };
    char path[64], file[80];
    snprintf(path, sizeof(path), "/tmp/isgq-test-%d", (int)getpid());
    snprintf(file, sizeof(file), "@%s.7", path);
    for (int again = 0; again < 2; again++)
        for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
            iq_record_add(&calls[i]);
    ck_assert(iq_record_write(path, 7));
    ck_assert_msg(iq_policy_parse(&policy, file, error), "%s", error);
    ck_assert_int_eq(unlink(file + 1), 0);
    ck_assert_int_eq((int)policy.nrules, 3);
    ck_assert_str_eq(match("two\nlines", 4, IQ_POLICY_F32, IQ_POLICY_SUM, 1 << 20), "isgq:bits=4");
    ck_assert_str_eq(match(LONG "1", 4, IQ_POLICY_F32, IQ_POLICY_SUM, 1 << 20), "isgq:bits=4");
    ck_assert_str_eq(match("big one", 4, IQ_POLICY_F32, IQ_POLICY_SUM, 128 << 10), "isgq:bits=4");
    ck_assert_str_eq(match("big one", 4, IQ_POLICY_F32, IQ_POLICY_SUM, 100), "no rule names its size");
    ck_assert_str_eq(match("small", 4, IQ_POLICY_F32, IQ_POLICY_SUM, 1 << 20), "no rule names its communicator");
    ck_assert(!iq_record_write("/no/such/folder/x", 0));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("policy");
    TCase *test = tcase_create("texts");
    tcase_add_test(test, modes);
    tcase_add_test(test, hashes);
    tcase_add_test(test, mistakes);
    tcase_add_test(test, many);
    tcase_add_test(test, zero_byte);
    suite_add_tcase(suite, test);
    test = tcase_create("rules");
    tcase_add_test(test, rules);
    tcase_add_test(test, kinds_of_calls);
    tcase_add_test(test, records);
    suite_add_tcase(suite, test);
    return suite;
}
