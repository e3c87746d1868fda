/* SPDX-License-Identifier: Apache-2.0 */
/* How conformance tests enter the suite: a case of one test that runs `loops` times, with _i from 0. */
#ifndef ISGQ_TEST_SUPPORT_CASES_H
#define ISGQ_TEST_SUPPORT_CASES_H

#include <check.h>

#define IQ_CASE_SECONDS 110 /* below ctest's own limit, so that Check says which test it was */

static inline TCase *iq_add_case(Suite *suite, TCase *tcase, const TTest *test, int loops)
{
    tcase_set_timeout(tcase, IQ_CASE_SECONDS);
    tcase_add_loop_test(tcase, test, 0, loops);
    suite_add_tcase(suite, tcase);
    return tcase;
}

#endif
