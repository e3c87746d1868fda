/* SPDX-License-Identifier: Apache-2.0 */
/* The plan simulator. One function per step kind, as in the executor; a rank that cannot move is asked again later. After the first error everything stops. */
#include "support/plan_sim.h"

#include "base/util.h"
#include "support/plan_sim_rounds.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum message_kind { PARTIAL, RESULT, SIGNAL } message_kind_t;

/* A symbolic sum: whose contributions, in the order of addition. */
typedef struct value {
    uint8_t count;
    uint8_t ranks[IQ_SIM_MAX_RANKS];
} value_t;

/* A message, or what the accumulator or the kept result holds. */
typedef struct message {
    message_kind_t kind;
    uint32_t block, chunk;
    size_t first, count;
    uint64_t known; /* signals: ranks whose arrival the sender knows of; parts: the rank that they are for */
    value_t value;
} message_t;

typedef struct link {
    message_t *items;
    size_t head, count, room;
} link_t;

typedef struct rank_state {
    iq_plan_cursor_t cursor;
    iq_action_t action;
    bool busy, done;
    bool received; /* half of the action is done: `in` was taken off the link */
    message_t in;
    message_t acc, kept;
    bool has_acc, has_kept;
    uint64_t known;
    uint8_t *written; /* [count] times that each output element was written */
} rank_state_t;

typedef struct sim {
    const iq_plan_t *plans;
    int nranks;
    const iq_sim_options_t *options;
    iq_sim_report_t *report;
    rank_state_t ranks[IQ_SIM_MAX_RANKS];
    link_t *links; /* [from * nranks + to] */
    iq_sim_rounds_t rounds;
    uint64_t random;
} sim_t;

static bool failed(const sim_t *sim) { return sim->report->error[0] != '\0'; }

/* Keeps the first error. */
__attribute__((format(printf, 3, 4))) static void fail(sim_t *sim, int rank, const char *format, ...)
{
    char what[128], where[160] = "";
    va_list args;
    if (failed(sim))
        return;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    if (sim->ranks[rank].busy)
        iq_action_format(&sim->plans[rank], &sim->ranks[rank].action, where, sizeof(where));
    snprintf(sim->report->error, sizeof(sim->report->error), "rank %d: %.110s [%.110s]", rank, what, where);
}

/* ---- links ---- */

static link_t *link_of(sim_t *sim, int from, int to) { return &sim->links[from * sim->nranks + to]; }

static bool has_room(sim_t *sim, int from, int to)
{
    return sim->options->capacity == 0 || link_of(sim, from, to)->count < sim->options->capacity;
}

static void push(sim_t *sim, int from, int to, const message_t *message)
{
    link_t *link = link_of(sim, from, to);
    if (link->count == link->room) { /* grow, with the oldest message first again */
        size_t room = link->room == 0 ? 4 : 2 * link->room;
        message_t *items = malloc(room * sizeof(*items));
        for (size_t i = 0; i < link->count; i++)
            items[i] = link->items[(link->head + i) % link->room];
        free(link->items);
        *link = (link_t){items, 0, link->count, room};
    }
    link->items[(link->head + link->count++) % link->room] = *message;
    if (link->count > sim->report->peak)
        sim->report->peak = (unsigned)link->count;
}

static void pop(sim_t *sim, int from, int to, message_t *message)
{
    link_t *link = link_of(sim, from, to);
    *message = link->items[link->head];
    link->head = (link->head + 1) % link->room;
    link->count--;
}

static void send(sim_t *sim, int rank, int to, message_t message)
{
    iq_sim_traffic_t *sent = &sim->report->sent[rank];
    if (message.kind == PARTIAL)
        sent->partial[message.value.count] += message.count;
    else
        sent->result += message.count;
    sent->messages++;
    push(sim, rank, to, &message);
    if (sim->options->rounds)
        iq_sim_rounds_sent(&sim->rounds, rank, to, sim->ranks[rank].action.send_round);
}

/* ---- values ---- */
static message_t own_message(sim_t *sim, int rank)
{
    const rank_state_t *state = &sim->ranks[rank];
    const iq_action_t *a = &state->action;
    message_t message = {PARTIAL, a->block, a->chunk, a->first, a->count, 0, {1, {(uint8_t)rank}}};
    for (size_t e = a->first; e < a->first + a->count; e++)
        if (state->written[e] != 0)
            fail(sim, rank, "own element %zu is read after it was written", e);
    return message;
}

static void add(sim_t *sim, int rank, value_t *sum, const value_t *more)
{
    if (sum->count + more->count > sim->nranks) {
        fail(sim, rank, "a sum of more than %d contributions", sim->nranks);
        return;
    }
    memcpy(sum->ranks + sum->count, more->ranks, more->count);
    sum->count = (uint8_t)(sum->count + more->count);
}

static bool same_place(const message_t *message, const iq_action_t *a)
{
    return message->block == a->block && message->chunk == a->chunk && message->first == a->first && message->count == a->count;
}

/* The value that is due in the output of `block`. */
static void due_value(const sim_t *sim, const iq_plan_t *plan, uint32_t block, value_t *due)
{
    int n = sim->nranks;
    if (plan->collective == IQ_ALLGATHER || plan->collective == IQ_BROADCAST || plan->collective == IQ_ALLTOALL) {
        due->count = 1;
        due->ranks[0] = (uint8_t)(plan->collective == IQ_BROADCAST ? plan->root : (int)block);
        return;
    }
    due->count = (uint8_t)n;
    for (int i = 0; i < n; i++)
        due->ranks[i] = (uint8_t)(sim->options->ring_order ? ((int)block + 1 + i) % n : i);
}

static void write_output(sim_t *sim, int rank, const message_t *message)
{
    rank_state_t *state = &sim->ranks[rank];
    value_t due;
    due_value(sim, &sim->plans[rank], message->block, &due);
    if (message->value.count != due.count || memcmp(message->value.ranks, due.ranks, due.count) != 0)
        fail(sim, rank, "output has %d contributions, the first from rank %d", message->value.count, message->value.ranks[0]);
    for (size_t e = message->first; e < message->first + message->count; e++)
        if (state->written[e]++ != 0)
            fail(sim, rank, "element %zu is written twice", e);
}

/* The message that the action takes must be the one that its place in the plan calls for. */
static void expect(sim_t *sim, int rank, message_kind_t kind, int parts)
{
    const rank_state_t *state = &sim->ranks[rank];
    const message_t *in = &state->in;
    if (in->kind != kind || !same_place(in, &state->action))
        fail(sim, rank, "message is of kind %d block %u chunk %u elements %zu+%zu", (int)in->kind, in->block, in->chunk,
             in->first, in->count);
    else if (kind == PARTIAL && in->value.count != parts)
        fail(sim, rank, "message sums %d contributions, %d were due", in->value.count, parts);
}

/* ---- steps: the message that is to be sent comes back in *out ---- */

static void do_send_own(sim_t *sim, int rank, message_t *out)
{
    *out = own_message(sim, rank);
    if (sim->ranks[rank].action.parts != 1)
        fail(sim, rank, "own contribution counts as %d", sim->ranks[rank].action.parts);
}

static void do_reduce(sim_t *sim, int rank, message_t *out)
{
    rank_state_t *state = &sim->ranks[rank];
    const iq_action_t *a = &state->action;
    (void)out;
    if (a->peer == rank)
        state->in = own_message(sim, rank);
    expect(sim, rank, PARTIAL, 1);
    if (a->parts == 1) {
        state->acc = state->in;
    } else {
        if (!state->has_acc || !same_place(&state->acc, a) || state->acc.value.count != a->parts - 1)
            fail(sim, rank, "accumulator does not hold %d contributions to this span", a->parts - 1);
        add(sim, rank, &state->acc.value, &state->in.value);
    }
    state->has_acc = true;
}

static void do_deliver(sim_t *sim, int rank, message_t *out)
{
    rank_state_t *state = &sim->ranks[rank];
    (void)out;
    if (!state->has_acc || !same_place(&state->acc, &state->action))
        fail(sim, rank, "accumulator does not hold this span");
    else
        write_output(sim, rank, &state->acc);
    state->has_acc = false;
}

static void do_finish(sim_t *sim, int rank, message_t *out)
{
    rank_state_t *state = &sim->ranks[rank];
    do_deliver(sim, rank, out);
    state->kept = state->acc;
    state->kept.kind = RESULT;
    state->has_kept = true;
}

static void do_send_result(sim_t *sim, int rank, message_t *out)
{
    const rank_state_t *state = &sim->ranks[rank];
    if (!state->has_kept || !same_place(&state->kept, &state->action))
        fail(sim, rank, "the kept result is not of this span");
    *out = state->kept;
}

static void do_send_part(sim_t *sim, int rank, message_t *out)
{
    const iq_action_t *a = &sim->ranks[rank].action;
    *out = (message_t){RESULT, a->block, a->chunk, a->first, a->count, (uint64_t)a->peer, {1, {(uint8_t)rank}}};
}

static void do_recv_result(sim_t *sim, int rank, message_t *out)
{
    (void)out;
    expect(sim, rank, RESULT, 0);
    if (sim->plans[rank].collective == IQ_ALLTOALL && sim->ranks[rank].in.known != (uint64_t)rank)
        fail(sim, rank, "a part that is rank %d's", (int)sim->ranks[rank].in.known);
    write_output(sim, rank, &sim->ranks[rank].in);
}

static void do_forward(sim_t *sim, int rank, message_t *out)
{
    do_recv_result(sim, rank, out);
    *out = sim->ranks[rank].in;
    sim->ranks[rank].has_kept = false; /* an executor may use that memory */
}

static void do_hop(sim_t *sim, int rank, message_t *out)
{
    rank_state_t *state = &sim->ranks[rank];
    message_t own = own_message(sim, rank);
    expect(sim, rank, PARTIAL, state->action.parts - 1);
    *out = state->in;
    add(sim, rank, &out->value, &own.value);
    state->has_acc = false;
}

static void do_last_hop(sim_t *sim, int rank, message_t *out)
{
    do_hop(sim, rank, out);
    write_output(sim, rank, out);
    out->kind = RESULT;
    sim->ranks[rank].has_kept = false;
}

static void do_signal(sim_t *sim, int rank, message_t *out)
{
    *out = (message_t){.kind = SIGNAL, .known = sim->ranks[rank].known};
}

static void do_await(sim_t *sim, int rank, message_t *out)
{
    (void)out;
    expect(sim, rank, SIGNAL, 0);
    sim->ranks[rank].known |= sim->ranks[rank].in.known;
}

/* Posting and summing have all others at their other ends: a board is as many links, which fill alike. */
static void do_post(sim_t *sim, int rank, message_t *out)
{
    iq_sim_traffic_t *sent = &sim->report->sent[rank];
    do_send_own(sim, rank, out);
    sent->partial[1] += out->count;
    sent->messages++;
    for (int to = 0; to < sim->nranks; to++)
        if (to != rank)
            push(sim, rank, to, out);
}

static void do_sum(sim_t *sim, int rank, message_t *out)
{
    rank_state_t *state = &sim->ranks[rank];
    *out = own_message(sim, rank);
    out->value.count = 0;
    for (int from = 0; from < sim->nranks && !failed(sim); from++) {
        if (from == rank)
            state->in = own_message(sim, rank);
        else
            pop(sim, from, rank, &state->in);
        expect(sim, rank, PARTIAL, 1);
        add(sim, rank, &out->value, &state->in.value);
    }
    if (state->action.parts != out->value.count)
        fail(sim, rank, "a sum of %d counts as %d", out->value.count, state->action.parts);
    write_output(sim, rank, out);
}

static bool boards_ready(sim_t *sim, int rank)
{
    for (int peer = 0; peer < sim->nranks; peer++) {
        if (peer == rank)
            continue;
        if (sim->ranks[rank].action.kind == IQ_STEP_POST ? !has_room(sim, rank, peer) : link_of(sim, peer, rank)->count == 0)
            return false;
    }
    return true;
}

/* Which ends a step has, and what it does. */
static const struct {
    bool from_peer, to_peer, to_target, boards;
    void (*run)(sim_t *sim, int rank, message_t *out);
} steps[IQ_STEP_KIND_COUNT] = {
    [IQ_STEP_SEND_OWN] = {.to_peer = true, .run = do_send_own}, [IQ_STEP_REDUCE] = {.from_peer = true, .run = do_reduce},
    [IQ_STEP_FINISH] = {.run = do_finish}, [IQ_STEP_DELIVER] = {.run = do_deliver},
    [IQ_STEP_SEND_RESULT] = {.to_peer = true, .run = do_send_result},
    [IQ_STEP_SEND_PART] = {.to_peer = true, .run = do_send_part},
    [IQ_STEP_RECV_RESULT] = {.from_peer = true, .run = do_recv_result},
    [IQ_STEP_HOP] = {.from_peer = true, .to_target = true, .run = do_hop},
    [IQ_STEP_LAST_HOP] = {.from_peer = true, .to_target = true, .run = do_last_hop},
    [IQ_STEP_FORWARD] = {.from_peer = true, .to_target = true, .run = do_forward},
    [IQ_STEP_SIGNAL] = {.to_peer = true, .run = do_signal}, [IQ_STEP_AWAIT] = {.from_peer = true, .run = do_await},
    [IQ_STEP_POST] = {.boards = true, .run = do_post}, [IQ_STEP_SUM] = {.boards = true, .run = do_sum},
};

/* ---- the loop ---- */

/* The ranks that the action receives from and sends to, or -1. */
static void find_ends(sim_t *sim, int rank, int *from, int *to)
{
    const iq_action_t *a = &sim->ranks[rank].action;
    *from = steps[a->kind].from_peer && !(a->kind == IQ_STEP_REDUCE && a->peer == rank) ? a->peer : -1;
    *to = steps[a->kind].to_peer ? a->peer : steps[a->kind].to_target ? a->to : -1;
    if (*from == rank || *to == rank || *from >= sim->nranks || *to >= sim->nranks || a->block >= sim->plans[rank].nblocks)
        fail(sim, rank, "sends to %d, receives from %d, block %u", *to, *from, a->block);
    else if (steps[a->kind].to_peer && *to < 0)
        fail(sim, rank, "sends to nobody");
    else if (steps[a->kind].from_peer && a->peer < 0)
        fail(sim, rank, "receives from nobody");
    else if ((a->kind == IQ_STEP_HOP || a->kind == IQ_STEP_FORWARD) && *to < 0)
        fail(sim, rank, "passes on to nobody");
}

/* In a plan of rounds: false if the rank waits in a group that must be over before it goes on. */
static bool reach_round(sim_t *sim, int rank, bool *progress)
{
    const rank_state_t *state = &sim->ranks[rank];
    bool reached = iq_sim_rounds_reach(&sim->rounds, rank, state->done ? NULL : &state->action, state->cursor, progress);
    if (sim->rounds.error[0] != '\0')
        fail(sim, rank, "%s", sim->rounds.error);
    sim->report->peak = sim->rounds.peak;
    return reached;
}

/* Let one rank do something; false if it cannot. */
static bool move(sim_t *sim, int rank)
{
    rank_state_t *state = &sim->ranks[rank];
    message_t out;
    int from, to;
    bool progress = false;
    if (!state->busy && !state->done) {
        state->done = !iq_plan_next(&sim->plans[rank], &state->cursor, &state->action);
        state->busy = !state->done;
        state->received = false;
    }
    if (sim->options->rounds && !reach_round(sim, rank, &progress))
        return progress;
    if (state->done)
        return progress;
    find_ends(sim, rank, &from, &to);
    if (failed(sim))
        return false;
    if (from >= 0 && !state->received) {
        if (sim->options->rounds && !iq_sim_rounds_take(&sim->rounds, from, rank))
            fail(sim, rank, "no message from %d arrived in round %u", from, state->action.receive_round);
        if (link_of(sim, from, rank)->count == 0 || (to >= 0 && !sim->options->releases_early && !has_room(sim, rank, to)))
            return false;
        pop(sim, from, rank, &state->in);
        state->received = progress = true;
    }
    if ((to >= 0 && !has_room(sim, rank, to)) || (steps[state->action.kind].boards && !boards_ready(sim, rank)))
        return progress;
    steps[state->action.kind].run(sim, rank, &out);
    if (to >= 0 && !failed(sim))
        send(sim, rank, to, out);
    state->busy = failed(sim); /* the error text shows the action */
    return true;
}

static uint64_t next_random(sim_t *sim)
{
    sim->random ^= sim->random << 13;
    sim->random ^= sim->random >> 7;
    sim->random ^= sim->random << 17;
    return sim->random;
}

/* Some rank moves; false if none can. */
static bool move_any(sim_t *sim)
{
    bool reverse = sim->options->schedule == IQ_SIM_HIGHEST_FIRST;
    int start = sim->options->schedule == IQ_SIM_RANDOM ? (int)(next_random(sim) % (uint64_t)sim->nranks) : 0;
    for (int i = 0; i < sim->nranks; i++) {
        int rank = (start + i) % sim->nranks;
        if (move(sim, reverse ? sim->nranks - 1 - rank : rank))
            return true;
        if (failed(sim))
            return false;
    }
    return false;
}

/* ---- before and after ---- */

static bool must_write(const iq_plan_t *plan, size_t element)
{
    size_t first, count;
    if (plan->collective != IQ_REDUCE_SCATTER)
        return plan->collective != IQ_BARRIER;
    iq_plan_block(plan, (uint32_t)plan->rank, &first, &count);
    return element >= first && element < first + count;
}

static void check_end(sim_t *sim)
{
    for (int rank = 0; rank < sim->nranks; rank++) {
        const rank_state_t *state = &sim->ranks[rank];
        const iq_plan_t *plan = &sim->plans[rank];
        if (!state->done)
            fail(sim, rank, "deadlock");
        for (int to = 0; to < sim->nranks; to++)
            if (link_of(sim, rank, to)->count > 0)
                fail(sim, rank, "%zu messages to rank %d are left over", link_of(sim, rank, to)->count, to);
        for (size_t e = 0; e < plan->count; e++)
            if (state->written[e] != must_write(plan, e))
                fail(sim, rank, "element %zu is written %d times", e, state->written[e]);
        if (plan->collective == IQ_BARRIER && state->known != (1ull << sim->nranks) - 1)
            fail(sim, rank, "leaves the barrier, knowing only of %llx", (unsigned long long)state->known);
    }
}

static void clean_up(sim_t *sim)
{
    for (int i = 0; i < sim->nranks * sim->nranks; i++)
        free(sim->links[i].items);
    for (int rank = 0; rank < sim->nranks; rank++)
        free(sim->ranks[rank].written);
    free(sim->links);
    free(sim);
}

bool iq_sim_run(const iq_plan_t *plans, int nranks, const iq_sim_options_t *options, iq_sim_report_t *report)
{
    sim_t *sim = calloc(1, sizeof(*sim));
    memset(report, 0, sizeof(*report));
    sim->plans = plans;
    sim->nranks = nranks;
    sim->options = options;
    sim->report = report;
    sim->rounds.plans = plans;
    sim->rounds.nranks = nranks;
    sim->random = options->seed * 0x9e3779b97f4a7c15ull + 1;
    sim->links = calloc((size_t)(nranks * nranks), sizeof(*sim->links));
    for (int rank = 0; rank < nranks; rank++) {
        sim->ranks[rank].written = calloc(iq_max(plans[rank].count, 1), 1);
        sim->ranks[rank].known = 1ull << rank;
    }
    while (move_any(sim))
        ;
    check_end(sim);
    clean_up(sim);
    return report->error[0] == '\0';
}
