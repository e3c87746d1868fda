/* SPDX-License-Identifier: Apache-2.0 */
/* What calls are spared of, and that nobody can tell: decisions made before, the floating-point environment, the process's number. */
#include "support/check_main.h"

#include "base/process.h"
#include "codec/dense.h"
#include "core/float_env.h"
#include "core/run.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- decisions ---- */

static isgq_comm_t lonely_comm(void)
{
    isgq_comm_t comm = NULL;
    iq_origin_t origin = {.device = IQ_CURRENT_DEVICE};
    ck_assert_int_eq(iq_comm_new(4, 1, origin, NULL, &comm), ISGQ_SUCCESS);
    comm->nhosts = 1;
    comm->host_size = 4;
    return comm;
}

static void same_decision(const iq_call_t *a, const iq_call_t *b)
{
    ck_assert_ptr_eq(a->algorithm, b->algorithm);
    ck_assert_ptr_eq(a->codec.ops, b->codec.ops);
    ck_assert_uint_eq(a->codec.bits, b->codec.bits);
    ck_assert_uint_eq(a->codec.bucket, b->codec.bucket);
    ck_assert_int_eq(a->fallback, b->fallback);
    ck_assert_int_eq(a->may_fuse, b->may_fuse);
    ck_assert_str_eq(a->why, b->why);
}

/* Every call twice, between calls that differ in one thing each and often fall on the same place: as decided by a communicator that remembers nothing. */
START_TEST(decisions_are_remembered)
{
    static const char *const texts[] = {"none", "uniform:bits=4", "uniform:bits=8,scale=local", "fp16"};
    static const size_t counts[] = {0, 1, 2, 1000, 1024, 100000, 8u << 20};
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_INT32, ISGQ_BFLOAT16};
    static const iq_call_kind_t kinds[] = {IQ_CALL_ALLREDUCE, IQ_CALL_REDUCE_SCATTER, IQ_CALL_ALLGATHER};
    isgq_comm_t comm = lonely_comm();
    for (size_t i = 0; i < 2 * 4 * 7 * 3 * 3; i++) {
        isgq_quantizer_t quantizer = NULL; /* each time another one, often where the last one was */
        size_t k = i % (4 * 7 * 3 * 3);
        ck_assert_int_eq(isgq_quantizer_create(&quantizer, texts[k % 4]), ISGQ_SUCCESS);
        iq_call_t call = {.kind = kinds[k / 84], .datatype = types[k / 28 % 3], .op = ISGQ_SUM, .count = counts[k / 4 % 7], .quantizer = quantizer};
        iq_call_t again = call, fresh = call;
        isgq_comm_t forgetful = lonely_comm();
        isgq_result_t expected = iq_decide(forgetful, &fresh, NULL);
        ck_assert_int_eq(iq_decide(comm, &call, NULL), expected);
        ck_assert_int_eq(iq_decide(comm, &again, NULL), expected);
        if (expected == ISGQ_SUCCESS) {
            same_decision(&call, &fresh);
            same_decision(&again, &fresh);
        }
        iq_comm_release(forgetful);
        isgq_quantizer_destroy(quantizer);
    }
    iq_comm_release(comm);
}
END_TEST

/* What is asked for by name or remembered by a tensor is decided anew. */
START_TEST(names_are_not_remembered)
{
    isgq_comm_t comm = lonely_comm();
    iq_call_t call = {.kind = IQ_CALL_ALLREDUCE, .datatype = ISGQ_INT32, .op = ISGQ_SUM, .count = 100, .quantizer = comm->quantizer};
    iq_call_t named = call;
    ck_assert_int_eq(iq_decide(comm, &call, NULL), ISGQ_SUCCESS);
    ck_assert_str_ne(call.algorithm->name, "ring");
    ck_assert_int_eq(iq_decide(comm, &named, "ring"), ISGQ_SUCCESS);
    ck_assert_str_eq(named.algorithm->name, "ring");
    ck_assert_int_eq(iq_decide(comm, &named, NULL), ISGQ_SUCCESS);
    ck_assert_str_eq(named.algorithm->name, call.algorithm->name);
    iq_comm_release(comm);
}
END_TEST

/* ---- what travels together ---- */

static iq_call_t small_call(isgq_comm_t comm, float *values, size_t count)
{
    iq_call_t call = {.kind = IQ_CALL_ALLREDUCE, .datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .count = count, .send = values, .recv = values,
                      .input_bytes = count * sizeof(float), .quantizer = comm->quantizer};
    ck_assert_int_eq(iq_decide(comm, &call, NULL), ISGQ_SUCCESS);
    ck_assert_int_eq(call.may_fuse, count > 0);
    return call;
}

/* Twice, as the second decision is remembered. */
START_TEST(small_calls_travel_together)
{
    float values[64] = {0};
    isgq_comm_t comm = lonely_comm();
    iq_call_t first = small_call(comm, values, 8), second = small_call(comm, values + 8, 8), *calls[] = {&first, &second};
    ck_assert_int_eq(iq_fuse(comm, calls, 2), ISGQ_SUCCESS);
    ck_assert(first.fused == 2 && second.carried);
    iq_comm_release(comm);
}
END_TEST

/* A tuning table has decided to send one of them as it is: bits are those of single calls. */
START_TEST(calls_of_other_codecs_do_not)
{
    float values[64] = {0};
    isgq_comm_t comm = lonely_comm();
    iq_call_t first = small_call(comm, values, 8), second = small_call(comm, values + 8, 8), *calls[] = {&first, &second};
    second.codec.ops = &iq_codec_bf16_ops;
    ck_assert_int_eq(iq_fuse(comm, calls, 2), ISGQ_SUCCESS);
    ck_assert(first.fused == 0 && !second.carried);
    second.algorithm = iq_algorithm_find(IQ_ALLREDUCE, "levels");
    ck_assert(!iq_fuse_may(comm, &second, NULL));
    iq_comm_release(comm);
}
END_TEST

/* The last rank's part ends where the tensor does, and nothing has no place. */
START_TEST(neighbours_do_not_overlap)
{
    float values[64] = {0};
    isgq_comm_t comm = lonely_comm();
    iq_call_t first = small_call(comm, values, 8), none = small_call(comm, values + 42, 0), last = small_call(comm, values + 40, 8);
    iq_call_t scatter = {.kind = IQ_CALL_REDUCE_SCATTER, .datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .count = 32, .send = values + 8,
                         .recv = values + 32, .input_bytes = 32 * sizeof(float), .quantizer = comm->quantizer};
    iq_call_t *calls[] = {&first, &scatter, &none, &last};
    ck_assert_int_eq(iq_fuse(comm, calls, 4), ISGQ_SUCCESS);
    ck_assert(first.fused == 2 && last.carried);
    last = small_call(comm, values + 39, 8);
    first = small_call(comm, values, 8);
    ck_assert_int_eq(iq_fuse(comm, calls, 4), ISGQ_ERR_INVALID_USAGE);
    iq_comm_release(comm);
}
END_TEST

/* ---- the floating-point environment ---- */

static volatile double one = 1.0, three = 3.0;

#if defined(__x86_64__)
/* Flushing, rounding up, and one flag already raised. */
static const unsigned environments[] = {0x1f80, 0x1f80 | 0x8000 | 0x40, 0x1f80 | 0x4000, 0x1f80 | 0x20, 0x1f80 | 0x2000 | 0x04};

START_TEST(callers_keep_their_environment)
{
    unsigned before = _mm_getcsr();
    bool x87 = _i % 2 != 0; /* rounds differently there too: all of the environment changes */
    iq_float_env_t env;
    if (x87)
        fesetround(FE_DOWNWARD);
    _mm_setcsr(environments[_i / 2]);
    iq_float_env_enter(&env);
    ck_assert_uint_eq(_mm_getcsr() & ~IQ_MXCSR_FLAGS, IQ_MXCSR_DEFAULT);
    ck_assert_int_eq(fegetround(), FE_TONEAREST);
    volatile double inexact = one / three;
    (void)inexact;
    iq_float_env_leave(&env);
    ck_assert_uint_eq(_mm_getcsr(), environments[_i / 2]);
    ck_assert_int_eq(iq_float_env_needs_whole(), x87);
    _mm_setcsr(before);
    fesetenv(FE_DFL_ENV);
}
END_TEST
#else
START_TEST(callers_keep_their_environment)
{
    iq_float_env_t env;
    fesetround(_i % 2 == 0 ? FE_TONEAREST : FE_UPWARD);
    feclearexcept(FE_ALL_EXCEPT);
    iq_float_env_enter(&env);
    ck_assert_int_eq(fegetround(), FE_TONEAREST);
    volatile double inexact = one / three;
    (void)inexact;
    iq_float_env_leave(&env);
    ck_assert_int_eq(fegetround(), _i % 2 == 0 ? FE_TONEAREST : FE_UPWARD);
    ck_assert_int_eq(fetestexcept(FE_INEXACT), 0);
    fesetenv(FE_DFL_ENV);
}
END_TEST
#endif

/* ---- processes ---- */

/* Children know that they are others, also those that the C library has not heard of. */
START_TEST(children_are_others)
{
    ck_assert_int_eq(iq_process_id(), getpid());
    ck_assert_int_eq(iq_process_id(), getpid());
#ifdef SYS_fork
    pid_t child = _i == 0 ? fork() : (pid_t)syscall(SYS_fork);
#else
    pid_t child = fork();
#endif
    ck_assert_int_ge(child, 0);
    if (child == 0)
        _exit(iq_process_id() == (pid_t)syscall(SYS_getpid) && iq_process_id() == (pid_t)syscall(SYS_getpid) ? 0 : 1);
    int status = -1;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert_int_eq(iq_process_id(), getpid());
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("small_calls");
    TCase *together = tcase_create("together");
    tcase_add_test(together, small_calls_travel_together);
    tcase_add_test(together, calls_of_other_codecs_do_not);
    tcase_add_test(together, neighbours_do_not_overlap);
    suite_add_tcase(suite, together);
    TCase *decisions = tcase_create("decisions"), *float_env = tcase_create("float_env"), *processes = tcase_create("processes");
    tcase_add_test(decisions, decisions_are_remembered);
    tcase_add_test(decisions, names_are_not_remembered);
    tcase_add_loop_test(float_env, callers_keep_their_environment, 0, 10);
    tcase_add_loop_test(processes, children_are_others, 0, 2);
    suite_add_tcase(suite, decisions);
    suite_add_tcase(suite, float_env);
    suite_add_tcase(suite, processes);
    return suite;
}
