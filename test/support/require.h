/* SPDX-License-Identifier: Apache-2.0 */
/* As ck_assert, but free while all is well: ck_assert notes every call, which is too slow for loops over millions of values. */
#ifndef ISGQ_TEST_SUPPORT_REQUIRE_H
#define ISGQ_TEST_SUPPORT_REQUIRE_H

#include <check.h>

#define REQUIRE(condition)                          \
    do {                                            \
        if (!(condition))                           \
            ck_abort_msg("not so: %s", #condition); \
    } while (0)

#endif
