/* SPDX-License-Identifier: Apache-2.0 */
/* What became of a program's calls, told at its end. */
#ifndef ISGQ_PRELOAD_TALLY_H
#define ISGQ_PRELOAD_TALLY_H

#include "bindings/preload/policy.h"

/* One call done here, or passed through for a reason (a text that stays). Any thread. */
void iq_tally_done(void);
void iq_tally_passed(const char *why);

void iq_tally_bytes(uint64_t input, uint64_t wire);

/* One line of level info, and the record to FILE.RANK if that is what the policy is for. */
void iq_tally_report(const iq_policy_t *policy, int rank);

#endif
