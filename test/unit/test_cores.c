/* SPDX-License-Identifier: Apache-2.0 */
/* Whether ranks can have a hardware thread each, with sets as data; and that a thread tells its own. */
#include "support/check_main.h"

#include "transport/cores.h"

#include <sched.h>

/* Bit c of word w: hardware thread 64 w + c. Ranks' sets, as words 0 and 15 of each. */
static const struct crowd {
    const char *what;
    int count;
    uint64_t sets[8][2];
    bool suffice;
} crowds[] = {
    {"nobody", 0, {{0}}, true},
    {"one rank", 1, {{0x1, 0}}, true},
    {"a rank without any", 1, {{0, 0}}, false},
    {"two ranks on two", 2, {{0x3, 0}, {0x3, 0}}, true},
    {"three ranks on two", 3, {{0x3, 0}, {0x3, 0}, {0x3, 0}}, false},
    {"bound one to each", 4, {{0x1, 0}, {0x2, 0}, {0x4, 0}, {0, 1ull << 63}}, true},
    {"bound to the same one", 2, {{0, 1ull << 63}, {0, 1ull << 63}}, false},
    {"two sockets", 4, {{0x3, 0}, {0x3, 0}, {0, 0x3}, {0, 0x3}}, true},
    {"two sockets, one of them crowded", 4, {{0x3, 0}, {0x3, 0}, {0x3, 0}, {0, 0x3}}, false},
    {"bound ones and a free one", 4, {{0xf, 0}, {0x1, 0}, {0x2, 0}, {0x4, 0}}, true},
    {"bound ones and no room for the free one", 3, {{0x3, 0}, {0x1, 0}, {0x2, 0}}, false},
    {"the free ones come first and have to move", 4, {{0x3, 0}, {0x6, 0}, {0x5, 0x1}, {0x1, 0}}, true},
    {"a chain of moves", 5, {{0x3, 0}, {0x6, 0}, {0xc, 0}, {0x18, 0}, {0x1, 0}}, true},
    {"a chain without an end", 6, {{0x3, 0}, {0x6, 0}, {0xc, 0}, {0x8, 0}, {0x1, 0}, {0xf, 0}}, false},
};

START_TEST(ranks_and_cores)
{
    const struct crowd *crowd = &crowds[_i];
    iq_core_set_t sets[8] = {{{0}}}, backwards[8] = {{{0}}};
    for (int i = 0; i < crowd->count; i++) {
        sets[i].words[0] = crowd->sets[i][0];
        sets[i].words[15] = crowd->sets[i][1];
        backwards[crowd->count - 1 - i] = sets[i];
    }
    ck_assert_msg(iq_cores_suffice(sets, crowd->count) == crowd->suffice, "%s", crowd->what);
    ck_assert_msg(iq_cores_suffice(backwards, crowd->count) == crowd->suffice, "%s, backwards", crowd->what);
}
END_TEST

/* As many ranks as there are bits, all of them free to go anywhere; and one more. */
START_TEST(large_hosts)
{
    static iq_core_set_t sets[IQ_CORES + 1];
    for (int i = 0; i <= IQ_CORES; i++)
        for (int word = 0; word < IQ_CORES / 64; word++)
            sets[i].words[word] = UINT64_MAX;
    ck_assert(iq_cores_suffice(sets, IQ_CORES));
    ck_assert(!iq_cores_suffice(sets, IQ_CORES + 1));
}
END_TEST

static int count_cores(const iq_core_set_t *set)
{
    int count = 0;
    for (int word = 0; word < IQ_CORES / 64; word++)
        count += __builtin_popcountll(set->words[word]);
    return count;
}

START_TEST(a_thread_tells_its_own)
{
    cpu_set_t before, one;
    iq_core_set_t all = iq_core_set();
    ck_assert_int_eq(sched_getaffinity(0, sizeof(before), &before), 0);
    ck_assert_int_eq(count_cores(&all), CPU_COUNT(&before));
    int last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &before))
        last--;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    ck_assert_int_eq(sched_setaffinity(0, sizeof(one), &one), 0);
    iq_core_set_t bound = iq_core_set();
    ck_assert_int_eq(sched_setaffinity(0, sizeof(before), &before), 0);
    ck_assert_int_eq(count_cores(&bound), 1);
    ck_assert_uint_eq(bound.words[last / 64], 1ull << last % 64);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cores");
    TCase *tcase = tcase_create("cores");
    tcase_add_loop_test(tcase, ranks_and_cores, 0, (int)(sizeof(crowds) / sizeof(crowds[0])));
    tcase_add_test(tcase, large_hosts);
    tcase_add_test(tcase, a_thread_tells_its_own);
    suite_add_tcase(suite, tcase);
    return suite;
}
