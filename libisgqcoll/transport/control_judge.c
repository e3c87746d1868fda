/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who is at fault? Pure functions over the answers of all ranks, so that tests can put every situation on the table.
 *
 * A stalled rank points at the rank it awaits, that one at the next; the end of the chain is to blame: a rank that does not
 * answer, has not made the call, has gone on to the next one, or awaits nobody. If the ranks disagree on the call's arguments,
 * that is the cause of it all.
 */
#include "transport/control_internal.h"

#include "base/util.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LINE_BYTES 160

static void blame(iq_verdict_t *verdict, isgq_result_t result, int culprit, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static void blame(iq_verdict_t *verdict, isgq_result_t result, int culprit, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(verdict->text, sizeof(verdict->text), format, arguments);
    va_end(arguments);
    verdict->result = result;
    verdict->culprit = culprit;
}

/* One line "name value" out of the arguments. */
typedef struct line {
    char name[LINE_BYTES], value[LINE_BYTES];
} line_t;

static const char *next_line(const char *text, line_t *line)
{
    size_t length = strcspn(text, "\n");
    size_t name_length = iq_min(strcspn(text, " \n"), length);
    size_t value_start = iq_min(name_length + 1, length);

    snprintf(line->name, sizeof(line->name), "%.*s", (int)iq_min(name_length, LINE_BYTES - 1), text);
    snprintf(line->value, sizeof(line->value), "%.*s", (int)iq_min(length - value_start, LINE_BYTES - 1), text + value_start);
    return text[length] == '\n' ? text + length + 1 : text + length;
}

static const char *or_nothing(const char *text) { return text[0] != '\0' ? text : "nothing"; }

static bool compare_pair(const char *a, int a_rank, const char *b, int b_rank, uint64_t sequence, iq_verdict_t *verdict)
{
    unsigned long long call = sequence;
    line_t x, y;

    while (*a != '\0' || *b != '\0') {
        a = next_line(a, &x);
        b = next_line(b, &y);
        if (strcmp(x.name, y.name) != 0) {
            blame(verdict, ISGQ_ERR_MISMATCH, b_rank, "call %llu: %s is %s on rank %d where rank %d has %s %s", call, or_nothing(x.name),
                  or_nothing(x.value), a_rank, b_rank, or_nothing(y.name), or_nothing(y.value));
            return true;
        }
        if (strcmp(x.value, y.value) != 0) {
            blame(verdict, ISGQ_ERR_MISMATCH, b_rank, "call %llu: %s is %s on rank %d and %s on rank %d", call, x.name, x.value,
                  a_rank, y.value, b_rank);
            return true;
        }
    }
    return false;
}

bool iq_judge_arguments(const iq_answer_t *answers, int nranks, uint64_t sequence, iq_verdict_t *verdict)
{
    int first = 0;
    while (first < nranks && !answers[first].has_arguments)
        first++;
    for (int rank = first + 1; rank < nranks; rank++)
        if (answers[rank].has_arguments &&
            compare_pair(answers[first].arguments, first, answers[rank].arguments, rank, sequence, verdict))
            return true;
    return false;
}

/* One step along the chain: is `rank`, awaited in call `call`, its end? */
static bool is_end_of_chain(const iq_answer_t *answer, int rank, uint64_t call, iq_verdict_t *verdict)
{
    const iq_rank_status_t *status = &answer->status;
    unsigned long long wanted = call, completed = status->completed, current = status->current;

    if (!answer->answered)
        blame(verdict, ISGQ_ERR_TIMEOUT, rank, "rank %d does not answer: stopped or cut off?", rank);
    else if (completed >= wanted)
        blame(verdict, ISGQ_ERR_TIMEOUT, rank, "rank %d has moved on: it finished call %llu", rank, completed);
    else if (current > wanted)
        blame(verdict, ISGQ_ERR_TIMEOUT, rank, "rank %d has moved on to call %llu", rank, current);
    else if (current == 0)
        blame(verdict, ISGQ_ERR_TIMEOUT, rank, "rank %d has not made call %llu (it finished %llu)", rank, wanted, completed);
    else if (status->awaited < 0)
        blame(verdict, ISGQ_ERR_TIMEOUT, rank, "rank %d awaits nobody in call %llu (%s)", rank, current, status->text);
    else
        return false;
    return true;
}

static void walk_chain(const iq_answer_t *answers, int nranks, const iq_report_t *report, iq_verdict_t *verdict)
{
    int waiting = report->rank, awaited = report->peer;
    uint64_t call = report->sequence;

    for (int steps = 0; steps < nranks; steps++) {
        if (awaited < 0 || awaited >= nranks || awaited == waiting) {
            blame(verdict, ISGQ_ERR_TIMEOUT, waiting, "rank %d makes no progress", waiting);
            return;
        }
        if (is_end_of_chain(&answers[awaited], awaited, call, verdict))
            return;
        waiting = awaited;
        call = answers[waiting].status.current;
        awaited = answers[waiting].status.awaited;
    }
    blame(verdict, ISGQ_ERR_TIMEOUT, report->peer, "rank %d and others wait for each other", report->peer);
}

void iq_judge_stall(const iq_answer_t *answers, int nranks, const iq_report_t *report, iq_verdict_t *verdict)
{
    iq_verdict_t end;

    if (iq_judge_arguments(answers, nranks, report->sequence, verdict))
        return;
    walk_chain(answers, nranks, report, &end);
    if (report->peer >= 0)
        blame(verdict, end.result, end.culprit, "call %llu: %.200s (rank %d waited for rank %d: %s)",
              (unsigned long long)report->sequence, end.text, report->rank, report->peer, report->step);
    else
        blame(verdict, end.result, end.culprit, "call %llu: %.200s (rank %d: %s)", (unsigned long long)report->sequence, end.text,
              report->rank, report->step);
}
