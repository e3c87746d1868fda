/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search for the rank at fault. A report goes to rank 0, which asks everybody what they are doing and what their arguments
 * were, waits a second at most, and lets control_judge.c decide. If rank 0 does not even say that it got the report, it is at
 * fault itself.
 */
#include "transport/control_internal.h"

#include "base/util.h"

#include <stdio.h>
#include <string.h>

#define ANSWER_NS IQ_SECOND
#define ASK_AGAIN_NS (200 * IQ_MILLISECOND)
#define ROOT_SILENT_NS (2 * IQ_SECOND)

static iq_control_events_t listener_of(iq_control_t *control)
{
    pthread_mutex_lock(&control->lock);
    iq_control_events_t events = control->listening ? control->events : (iq_control_events_t){0};
    pthread_mutex_unlock(&control->lock);
    return events;
}

/* What this rank answers. */
static void describe_self(iq_control_t *control, uint64_t sequence, iq_answer_t *answer)
{
    iq_control_events_t events = listener_of(control);

    memset(answer, 0, sizeof(*answer));
    answer->answered = true;
    answer->status.awaited = -1;
    if (events.status != NULL)
        events.status(events.context, &answer->status);
    if (events.arguments != NULL)
        answer->has_arguments = events.arguments(events.context, sequence, answer->arguments);
    answer->status.text[sizeof(answer->status.text) - 1] = '\0';
    answer->arguments[sizeof(answer->arguments) - 1] = '\0';
}

void iq_search_query(iq_control_t *control, const iq_control_frame_t *frame)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    uint64_t sequence = iq_unpack_u64(&unpack);
    iq_pack_t pack = {.used = 0};
    iq_answer_t answer;

    describe_self(control, sequence, &answer);
    iq_pack_u64(&pack, sequence);
    iq_pack_u64(&pack, answer.status.completed);
    iq_pack_u64(&pack, answer.status.current);
    iq_pack_u32(&pack, (uint32_t)answer.status.awaited);
    iq_pack_text(&pack, answer.status.text);
    iq_pack_u32(&pack, answer.has_arguments);
    iq_pack_text(&pack, answer.has_arguments ? answer.arguments : "");
    iq_conn_send(&control->members[0].conn, IQ_FRAME_ANSWER, &pack, NULL, 0);
}

void iq_search_answer(iq_control_t *control, int rank, const iq_control_frame_t *frame)
{
    iq_search_t *search = &control->search;
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    uint64_t sequence = iq_unpack_u64(&unpack);
    iq_answer_t answer = {.answered = true};

    answer.status.completed = iq_unpack_u64(&unpack);
    answer.status.current = iq_unpack_u64(&unpack);
    answer.status.awaited = (int32_t)iq_unpack_u32(&unpack);
    iq_unpack_text(&unpack, answer.status.text, sizeof(answer.status.text));
    answer.has_arguments = iq_unpack_u32(&unpack) != 0;
    iq_unpack_text(&unpack, answer.arguments, sizeof(answer.arguments));
    if (unpack.bad)
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, rank, "control channel: rank %d sent a broken answer", rank);
    else if (search->active && sequence == search->report.sequence)
        search->answers[rank] = answer;
}

/* Ask all whose answer is still of interest: in a mismatch, whoever has not made the call may make it yet. */
static void ask(iq_control_t *control)
{
    iq_search_t *search = &control->search;
    iq_pack_t pack = {.used = 0};

    iq_pack_u64(&pack, search->report.sequence);
    for (int rank = 0; rank < control->nranks; rank++) {
        iq_answer_t *answer = &search->answers[rank];
        if (answer->answered && (answer->has_arguments || search->report.kind == IQ_REPORT_STALL))
            continue;
        if (rank == 0)
            describe_self(control, search->report.sequence, answer);
        else if (control->members[rank].conn.fd >= 0)
            iq_conn_send(&control->members[rank].conn, IQ_FRAME_QUERY, &pack, NULL, 0);
    }
    bool again = search->report.kind == IQ_REPORT_MISMATCH;
    search->ask_again_ns = again ? iq_now_ns() + ASK_AGAIN_NS : UINT64_MAX;
}

static bool is_complete(const iq_control_t *control)
{
    const iq_search_t *search = &control->search;
    for (int rank = 0; rank < control->nranks; rank++) {
        const iq_answer_t *answer = &search->answers[rank];
        if (!answer->answered || (search->report.kind == IQ_REPORT_MISMATCH && !answer->has_arguments))
            return false;
    }
    return true;
}

/* The call's arguments agree: look at the next. */
static void next_call(iq_control_t *control)
{
    iq_search_t *search = &control->search;
    search->report.sequence++;
    search->end_ns = iq_now_ns() + ANSWER_NS;
    memset(search->answers, 0, (size_t)control->nranks * sizeof(*search->answers));
    ask(control);
}

static void judge_mismatch(iq_control_t *control, bool final)
{
    iq_search_t *search = &control->search;
    iq_verdict_t verdict;

    bool agree = is_complete(control) && search->report.sequence < search->report.last;
    if (iq_judge_arguments(search->answers, control->nranks, search->report.sequence, &verdict))
        iq_control_fail(control, false, verdict.result, verdict.culprit, "%s", verdict.text);
    else if (agree)
        next_call(control);
    else if (final)
        iq_control_fail(
            control, false, ISGQ_ERR_CORRUPT, search->report.peer,
            "call %llu: rank %d got a frame of rank %d that belongs to no call both are in, though their arguments agree",
            (unsigned long long)search->report.sequence, search->report.rank, search->report.peer);
    else
        return;
    search->active = agree && !iq_control_failed(control);
}

static void judge_stall(iq_control_t *control)
{
    iq_search_t *search = &control->search;
    iq_verdict_t verdict;

    iq_judge_stall(search->answers, control->nranks, &search->report, &verdict);
    iq_control_fail(control, false, verdict.result, verdict.culprit, "%s", verdict.text);
    search->active = false;
}

static void rank0_is_silent(iq_control_t *control)
{
    pthread_mutex_lock(&control->lock);
    iq_report_t report = control->report;
    pthread_mutex_unlock(&control->lock);
    control->verdict_due_ns = 0;
    iq_control_fail(control, false, ISGQ_ERR_TIMEOUT, 0,
                    "call %llu: rank 0 does not answer: stopped or cut off? (rank %d waited for rank %d: %s)",
                    (unsigned long long)report.sequence, control->rank, report.peer, report.step);
}

void iq_search_tick(iq_control_t *control, uint64_t now_ns)
{
    iq_search_t *search = &control->search;

    if (control->verdict_due_ns > 0 && now_ns >= control->verdict_due_ns)
        rank0_is_silent(control);
    if (!search->active)
        return;
    bool final = now_ns >= search->end_ns || is_complete(control);
    if (search->report.kind == IQ_REPORT_MISMATCH)
        judge_mismatch(control, final);
    else if (final)
        judge_stall(control);
    if (search->active && now_ns >= search->ask_again_ns)
        ask(control);
}

uint64_t iq_search_next_ns(const iq_control_t *control)
{
    const iq_search_t *search = &control->search;
    uint64_t next_ns = UINT64_MAX;

    if (search->active)
        next_ns = search->ask_again_ns < search->end_ns ? search->ask_again_ns : search->end_ns;
    if (control->verdict_due_ns > 0 && control->verdict_due_ns < next_ns)
        next_ns = control->verdict_due_ns;
    return next_ns;
}

static void send_report(iq_control_t *control, const iq_report_t *report)
{
    iq_pack_t pack = {.used = 0};
    if (control->verdict_due_ns > 0) /* one report is enough, and more must not put off the verdict */
        return;
    iq_pack_u64(&pack, report->sequence);
    iq_pack_u32(&pack, (uint32_t)report->peer);
    iq_pack_text(&pack, report->step);
    iq_pack_u64(&pack, report->last);
    control->verdict_due_ns = iq_now_ns() + ROOT_SILENT_NS;
    if (control->members[0].conn.fd >= 0)
        iq_conn_send(&control->members[0].conn, report->kind == IQ_REPORT_STALL ? IQ_FRAME_STALL : IQ_FRAME_MISMATCH, &pack, NULL,
                     0);
}

void iq_search_report(iq_control_t *control, const iq_report_t *report)
{
    iq_search_t *search = &control->search;

    if (iq_control_failed(control))
        return;
    if (!iq_control_is_root(control)) {
        send_report(control, report);
        return;
    }
    if (search->active) /* several ranks notice the same trouble */
        return;
    search->active = true;
    search->report = *report;
    search->end_ns = iq_now_ns() + ANSWER_NS;
    memset(search->answers, 0, (size_t)control->nranks * sizeof(*search->answers));
    ask(control);
}

void iq_search_report_frame(iq_control_t *control, int rank, const iq_control_frame_t *frame)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    iq_report_t report = {.kind = frame->type == IQ_FRAME_STALL ? IQ_REPORT_STALL : IQ_REPORT_MISMATCH, .rank = rank};

    report.sequence = iq_unpack_u64(&unpack);
    report.peer = (int32_t)iq_unpack_u32(&unpack);
    iq_unpack_text(&unpack, report.step, sizeof(report.step));
    report.last = iq_unpack_u64(&unpack);
    if (unpack.bad || report.peer < -1 || report.peer >= control->nranks) {
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, rank, "control channel: rank %d sent a broken report", rank);
        return;
    }
    iq_search_report(control, &report);
}
