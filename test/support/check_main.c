/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main function of every test program: runs iq_suite(), or the one test case that CK_RUN_CASE names.
 *
 * A run without a single check is a failure: a misspelt CK_RUN_CASE would otherwise pass.
 */
#include "support/check_main.h"

#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    setenv("CK_DEFAULT_TIMEOUT", "100", 0); /* Check's own 4 s would measure the machine; ctest has the last word */
#ifdef ISGQ_TEST_MODULE_DIR
    setenv("ISGQ_MODULE_DIR", ISGQ_TEST_MODULE_DIR,
           0); /* the internals are linked in, so no library says where the modules are */
#endif
    SRunner *runner = srunner_create(iq_suite());
    srunner_run_all(runner, CK_NORMAL);
    int ran = srunner_ntests_run(runner);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    if (ran == 0)
        fprintf(stderr, "no check ran: is CK_RUN_CASE the name of a test case?\n");
    return ran == 0 || failed > 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
