/* SPDX-License-Identifier: Apache-2.0 */
/* Counters, and the two things made of them. */
#include "bindings/preload/tally.h"

#include "bindings/preload/record.h"
#include "bindings/preload/say.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { REASONS = 16 };

static _Atomic uint64_t done, input_bytes, wire_bytes;
static const char *_Atomic reasons[REASONS];
static _Atomic uint64_t passed[REASONS]; /* the last one takes what has no place */

void iq_tally_done(void) { atomic_fetch_add_explicit(&done, 1, memory_order_relaxed); }

/* Reasons are few and their texts constant: compared by address. */
void iq_tally_passed(const char *why)
{
    int i = 0;
    for (; i < REASONS - 1; i++) {
        const char *none = NULL;
        if (reasons[i] == why || (reasons[i] == NULL && (atomic_compare_exchange_strong(&reasons[i], &none, why) || none == why)))
            break;
    }
    atomic_fetch_add_explicit(&passed[i], 1, memory_order_relaxed);
}

void iq_tally_bytes(uint64_t input, uint64_t wire)
{
    input_bytes += input;
    wire_bytes += wire;
}

static void say_totals(void)
{
    char line[512];
    int used = snprintf(line, sizeof(line), "%llu calls quantized (%llu bytes in, %llu sent)", (unsigned long long)done,
                        (unsigned long long)input_bytes, (unsigned long long)wire_bytes);
    for (int i = 0; i < REASONS && used < (int)sizeof(line); i++)
        if (passed[i] > 0)
            used += snprintf(line + used, sizeof(line) - (size_t)used, "; %llu passed through: %s", (unsigned long long)passed[i],
                             reasons[i] != NULL ? reasons[i] : "other reasons");
    iq_say(IQ_SAY_INFO, "%s", line);
}

void iq_tally_report(const iq_policy_t *policy, int rank)
{
    if (iq_says(IQ_SAY_INFO))
        say_totals();
    if (policy->mode == IQ_POLICY_RECORD && !iq_record_write(policy->record, rank))
        iq_say(IQ_SAY_WARN, "%s.%d cannot be written: %s", policy->record, rank, strerror(errno));
    else if (policy->mode == IQ_POLICY_RECORD && rank == 0)
        iq_say(IQ_SAY_WARN, "what the program did, and a policy for it, is in %s.RANK", policy->record);
}
