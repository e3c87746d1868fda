/* SPDX-License-Identifier: Apache-2.0 */
/* The policy at work: which rules name a communicator, which rule a call falls under. Nothing here allocates or asks the system. */
#include "bindings/preload/policy.h"

#include <fnmatch.h>

uint32_t iq_policy_named(const iq_policy_t *policy, const char *comm, int nranks)
{
    uint32_t named = 0;
    for (size_t i = 0; i < policy->nrules; i++) {
        const iq_policy_rule_t *rule = &policy->rules[i];
        if (nranks >= rule->least_ranks && nranks <= rule->most_ranks && fnmatch(rule->comm, comm, 0) == 0)
            named |= 1u << i;
    }
    return named;
}

static bool names_operation(const iq_policy_rule_t *rule, const iq_policy_seen_t *seen)
{
    return seen->call == IQ_POLICY_ALLGATHER || (rule->ops & seen->op) != 0;
}

static bool fits(const iq_policy_rule_t *rule, const iq_policy_seen_t *seen)
{
    return (rule->calls & seen->call) != 0 && (rule->types & seen->type) != 0 && names_operation(rule, seen) &&
           seen->bytes >= rule->least_bytes && seen->bytes <= rule->most_bytes;
}

/* The reason nearest to being quantized: a call of the right type on a named communicator failed by its size alone. */
static const char *reason(const iq_policy_t *policy, uint32_t named, const iq_policy_seen_t *seen)
{
    const char *why = "no rule names its communicator";
    for (size_t i = 0; i < policy->nrules; i++) {
        const iq_policy_rule_t *rule = &policy->rules[i];
        if (rule->exclude || (named >> i & 1) == 0)
            continue;
        bool call = (rule->calls & seen->call) != 0, type = (rule->types & seen->type) != 0, op = names_operation(rule, seen);
        if (call && type && op)
            return "no rule names its size";
        why = !call ? "no rule names this kind of call" : type ? "no rule names its operation" : "no rule names its type";
    }
    return why;
}

const iq_policy_rule_t *iq_policy_match(const iq_policy_t *policy, uint32_t named, const iq_policy_seen_t *seen, const char **why)
{
    const iq_policy_rule_t *found = NULL;
    for (size_t i = 0; i < policy->nrules && named >> i != 0; i++) {
        const iq_policy_rule_t *rule = &policy->rules[i];
        if ((named >> i & 1) == 0 || !fits(rule, seen))
            continue;
        if (rule->exclude) {
            *why = "a rule excludes it";
            return NULL;
        }
        if (found == NULL)
            found = rule;
    }
    *why = found != NULL ? found->with : reason(policy, named, seen);
    return found;
}
