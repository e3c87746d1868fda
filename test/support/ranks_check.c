/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks for tests of Check, apart from ranks.c so that tests of GPUs build without that library. */
#include "support/ranks.h"

#include <check.h>

void iq_ranks_run(const iq_ranks_t *ranks, iq_ranks_values_t *values)
{
    static char failures[IQ_RANKS_MOST * IQ_RANK_FAILURE_BYTES];
    bool fine = iq_ranks_try(ranks, values, failures, sizeof(failures));
    ck_assert_msg(fine, "%s", failures);
}
