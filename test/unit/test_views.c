/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that other ranks map: what one writes the other reads, freed memory is empty, and foreign words are checked. */
#include "support/check_main.h"

#include "transport/views.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define START ((uint64_t)2 << 20)
#define BYTES ((size_t)3 << 16)

/* Two ranks' ends of one file. */
static void open_pair(iq_views_t *ends[2], int *file)
{
    *file = memfd_create("views", MFD_CLOEXEC);
    ck_assert_int_ge(*file, 0);
    ck_assert_int_eq(ftruncate(*file, (off_t)(START + 2 * IQ_VIEWS_REGION)), 0);
    for (int rank = 0; rank < 2; rank++) {
        ends[rank] = iq_views_open(dup(*file), START, 2, rank);
        ck_assert_ptr_nonnull(ends[rank]);
    }
}

static void close_pair(iq_views_t *ends[2], int file)
{
    iq_views_close(ends[0]);
    iq_views_close(ends[1]);
    close(file);
}

static iq_view_t whole(uint64_t base) { return (iq_view_t){.base = base, .bytes = BYTES}; }

START_TEST(others_see_it)
{
    iq_views_t *ends[2];
    int file;
    uint64_t base[2], again;
    unsigned char *own[2], *seen;
    open_pair(ends, &file);
    for (int rank = 0; rank < 2; rank++) {
        own[rank] = iq_views_alloc(ends[rank], BYTES, &base[rank]);
        ck_assert_ptr_nonnull(own[rank]);
        memset(own[rank], 1 + rank, BYTES);
    }
    for (int rank = 0; rank < 2; rank++) {
        iq_view_t view = whole(base[1 - rank]);
        view.at = 100;
        ck_assert_int_eq(iq_views_map(ends[rank], 1 - rank, &view, BYTES - 100, &seen), ISGQ_SUCCESS);
        ck_assert_int_eq(seen[0], 2 - rank);
        seen[BYTES - 101] = 77;
        ck_assert_int_eq(own[1 - rank][BYTES - 1], 77);
    }
    iq_views_free(ends[0], own[0], base[0], BYTES);
    own[0] = iq_views_alloc(ends[0], BYTES, &again);
    ck_assert_uint_ge(again, base[0] + BYTES); /* a place is given out once */
    close_pair(ends, file);
}
END_TEST

/* What is freed takes no memory, although another rank still maps it. */
START_TEST(freed_memory_is_gone)
{
    iq_views_t *ends[2];
    struct stat before, after;
    uint64_t base;
    unsigned char *seen;
    int file;
    open_pair(ends, &file);
    unsigned char *own = iq_views_alloc(ends[0], BYTES, &base);
    memset(own, 1, BYTES);
    iq_view_t view = whole(base);
    ck_assert_int_eq(iq_views_map(ends[1], 0, &view, BYTES, &seen), ISGQ_SUCCESS);
    ck_assert_int_eq(fstat(file, &before), 0);
    iq_views_free(ends[0], own, base, BYTES);
    ck_assert_int_eq(fstat(file, &after), 0);
    ck_assert_int_eq(seen[0], 0);
    ck_assert_int_eq((before.st_blocks - after.st_blocks) * 512, BYTES);
    close_pair(ends, file);
}
END_TEST

static const iq_view_t bad[] = {
    {.base = 0, .bytes = 0, .at = 0},
    {.base = 1, .bytes = BYTES, .at = 0},
    {.base = 0, .bytes = BYTES - 1, .at = 0},
    {.base = 0, .bytes = BYTES, .at = BYTES - 99},
    {.base = 0, .bytes = BYTES, .at = BYTES + 1},
    {.base = 0, .bytes = BYTES, .at = UINT64_MAX - 50},
    {.base = IQ_VIEWS_REGION, .bytes = BYTES, .at = 0},
    {.base = IQ_VIEWS_REGION - BYTES / 3, .bytes = BYTES, .at = 0},
    {.base = 0, .bytes = 2 * IQ_VIEWS_REGION, .at = 0},
    {.base = UINT64_MAX - BYTES + 1, .bytes = BYTES, .at = 0},
};

START_TEST(foreign_words_are_checked)
{
    iq_views_t *ends[2];
    int file;
    unsigned char *seen;
    open_pair(ends, &file);
    ck_assert_int_eq(iq_views_map(ends[0], 1, &bad[_i], 100, &seen), ISGQ_ERR_CORRUPT);
    close_pair(ends, file);
}
END_TEST

/* More buffers than mappings are kept: each is found, and the same one is not mapped twice. */
START_TEST(many_come_round)
{
    enum { MANY = 100 };
    iq_views_t *ends[2];
    uint64_t base[MANY];
    unsigned char *seen, *again;
    int file;
    open_pair(ends, &file);
    for (int i = 0; i < MANY; i++)
        memset(iq_views_alloc(ends[1], BYTES, &base[i]), i, 8);
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < MANY; i++) {
            iq_view_t view = whole(base[i]), next = whole(base[(i + 1) % MANY]);
            ck_assert_int_eq(iq_views_map(ends[0], 1, &view, BYTES, &seen), ISGQ_SUCCESS);
            ck_assert_int_eq(iq_views_map(ends[0], 1, &next, BYTES, &again), ISGQ_SUCCESS);
            ck_assert_int_eq(seen[0], i); /* still mapped */
            ck_assert_int_eq(again[0], (i + 1) % MANY);
            ck_assert_int_eq(iq_views_map(ends[0], 1, &view, BYTES, &again), ISGQ_SUCCESS);
            ck_assert_ptr_eq(seen, again);
        }
    close_pair(ends, file);
}
END_TEST

/* Without a file there is nothing, and more than a region is refused. */
START_TEST(limits)
{
    iq_views_t *ends[2];
    uint64_t base;
    int file;
    ck_assert_ptr_null(iq_views_open(-1, START, 2, 0));
    iq_views_close(NULL);
    open_pair(ends, &file);
    ck_assert_ptr_null(iq_views_alloc(ends[0], IQ_VIEWS_REGION + 1, &base));
    ck_assert_ptr_null(iq_views_alloc(ends[0], SIZE_MAX / 4, &base));
    ck_assert_ptr_nonnull(iq_views_alloc(ends[0], 1, &base));
    ck_assert_ptr_null(iq_views_alloc(ends[0], IQ_VIEWS_REGION, &base)); /* not beyond its end */
    close_pair(ends, file);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("views");
    TCase *tcase = tcase_create("views");
    tcase_add_test(tcase, others_see_it);
    tcase_add_test(tcase, freed_memory_is_gone);
    tcase_add_loop_test(tcase, foreign_words_are_checked, 0, (int)(sizeof(bad) / sizeof(bad[0])));
    tcase_add_test(tcase, many_come_round);
    tcase_add_test(tcase, limits);
    suite_add_tcase(suite, tcase);
    return suite;
}
