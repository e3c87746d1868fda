/* SPDX-License-Identifier: Apache-2.0 */
/* What a test file must define. Its test cases are made with literal names, tcase_create("name"): the build reads them. */
#ifndef ISGQ_TEST_SUPPORT_CHECK_MAIN_H
#define ISGQ_TEST_SUPPORT_CHECK_MAIN_H

#include <check.h>

/* One suite, made anew. */
Suite *iq_suite(void);

#endif
