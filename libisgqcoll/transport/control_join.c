/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The meeting as the ranks other than 0 see it: connect to rank 0, prove and demand proof, wait for the start. Rank 0 may not be
 * there yet, and something else may answer in its place, so every failure before rank 0 has proved itself is only a reason to try
 * again.
 */
#include "transport/control_internal.h"

#include "base/util.h"
#include "transport/auth.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAUSE_MIN_NS (1 * IQ_MILLISECOND)
#define PAUSE_MAX_NS (100 * IQ_MILLISECOND)
#define ANSWER_NS (30 * IQ_SECOND)    /* for rank 0 to take notice of us, */
#define ANSWER_ANY_NS (2 * IQ_SECOND) /* and where it may be elsewhere */

typedef enum outcome { OUTCOME_DONE, OUTCOME_RETRY, OUTCOME_FAILED } outcome_t;

typedef struct joining {
    iq_control_t *control;
    iq_rendezvous_t place; /* with the port being tried */
    iq_hello_t ours, theirs;
    uint64_t deadline_ns;
    bool elsewhere; /* several ports: rank 0 may be on another */
    iq_conn_t conn;
    char reason[192]; /* why the last attempt failed */
    iq_verdict_t failure;
} joining_t;

typedef enum arrival { ARRIVAL_FRAME, ARRIVAL_CLOSED, ARRIVAL_TIMEOUT } arrival_t;

static arrival_t wait_frame(iq_conn_t *conn, uint64_t deadline_ns, iq_control_frame_t *frame)
{
    iq_read_t state = IQ_READ_EMPTY;

    for (;;) {
        iq_next_t next = iq_conn_next(conn, frame);
        if (next == IQ_NEXT_FRAME)
            return ARRIVAL_FRAME;
        if (next == IQ_NEXT_BAD || state == IQ_READ_CLOSED)
            return ARRIVAL_CLOSED;
        struct pollfd poll_fd = {.fd = conn->fd, .events = POLLIN};
        int ready = poll(&poll_fd, 1, iq_poll_ms(deadline_ns));
        if (ready == 0)
            return ARRIVAL_TIMEOUT;
        if (ready < 0 && errno != EINTR)
            return ARRIVAL_CLOSED;
        if (ready > 0)
            state = iq_conn_read(conn);
    }
}

static outcome_t retry(joining_t *joining, const char *reason)
{
    snprintf(joining->reason, sizeof(joining->reason), "%s", reason);
    return OUTCOME_RETRY;
}

/* Cut short by the deadline, an attempt knows less than the one before it. */
static outcome_t retry_unanswered(joining_t *joining)
{
    if (joining->reason[0] != '\0' && iq_now_ns() >= joining->deadline_ns)
        return OUTCOME_RETRY;
    return retry(joining, "somebody listens there but does not answer");
}

static outcome_t fail(joining_t *joining, isgq_result_t result, int culprit, const char *text)
{
    joining->failure.result = result;
    joining->failure.culprit = culprit;
    snprintf(joining->failure.text, sizeof(joining->failure.text), "%s", text);
    return OUTCOME_FAILED;
}

static outcome_t say_hello(joining_t *joining)
{
    iq_pack_t hello = {.used = 0};
    iq_control_frame_t frame;
    uint64_t answer_ns = iq_now_ns() + (joining->elsewhere ? ANSWER_ANY_NS : ANSWER_NS);

    iq_hello_pack(&hello, &joining->ours);
    if (!iq_conn_send(&joining->conn, IQ_FRAME_HELLO, &hello, NULL, 0) || !iq_conn_flush(&joining->conn))
        return retry(joining, "the connection broke");
    arrival_t arrival = wait_frame(&joining->conn, answer_ns < joining->deadline_ns ? answer_ns : joining->deadline_ns, &frame);
    if (arrival == ARRIVAL_TIMEOUT)
        return retry_unanswered(joining);
    if (arrival == ARRIVAL_CLOSED || frame.type != IQ_FRAME_CHALLENGE || !iq_hello_unpack(&frame, &joining->theirs))
        return retry(joining, "somebody listens there who does not speak our protocol, or has just left");
    return OUTCOME_DONE;
}

static outcome_t exchange_proofs(joining_t *joining)
{
    uint8_t proof[IQ_PROOF_BYTES];
    iq_pack_t pack = {.used = 0};
    iq_control_frame_t frame;

    iq_hello_prove(&joining->place, "rank", &joining->ours, &joining->theirs, proof);
    iq_pack_bytes(&pack, proof, sizeof(proof));
    if (!iq_conn_send(&joining->conn, IQ_FRAME_PROOF, &pack, NULL, 0) || !iq_conn_flush(&joining->conn))
        return retry(joining, "the connection broke");
    arrival_t arrival = wait_frame(&joining->conn, joining->deadline_ns, &frame);
    if (arrival == ARRIVAL_TIMEOUT)
        return retry_unanswered(joining);
    if (arrival == ARRIVAL_CLOSED)
        return retry(joining, "it did not accept this rank's proof: do all ranks have the same secret?");
    iq_hello_prove(&joining->place, "root", &joining->ours, &joining->theirs, proof);
    if (frame.type != IQ_FRAME_WELCOME || frame.bytes != sizeof(proof) || !iq_auth_equal(proof, frame.payload))
        return retry(joining, "who listens there does not know the secret");
    return OUTCOME_DONE;
}

/* Rank 0 loses the others' deadline together with its own, so it is told why we go. */
static outcome_t give_up(joining_t *joining, const char *missing)
{
    char text[IQ_ERROR_TEXT_BYTES];
    iq_pack_t pack = {.used = 0};

    snprintf(text, sizeof(text), "%s of %d never came", missing, joining->ours.nranks);
    iq_abort_pack(&pack, ISGQ_ERR_TIMEOUT, -1, text);
    if (iq_conn_send(&joining->conn, IQ_FRAME_ABORT, &pack, NULL, 0))
        iq_conn_flush(&joining->conn);
    return fail(joining, ISGQ_ERR_TIMEOUT, -1, text);
}

static outcome_t wait_for_start(joining_t *joining)
{
    char missing[256] = "some ranks", text[IQ_ERROR_TEXT_BYTES];
    iq_control_frame_t frame;

    for (;;) {
        arrival_t arrival = wait_frame(&joining->conn, joining->deadline_ns, &frame);
        if (arrival == ARRIVAL_TIMEOUT)
            return give_up(joining, missing);
        if (arrival == ARRIVAL_CLOSED) {
            snprintf(text, sizeof(text), "rank 0 (pid %d) died before all ranks had met", joining->theirs.pid);
            return fail(joining, ISGQ_ERR_REMOTE, 0, text);
        }
        if (frame.type == IQ_FRAME_START)
            return OUTCOME_DONE;
        if (frame.type == IQ_FRAME_WAITING) {
            iq_unpack_t unpack = {.data = frame.payload, .left = frame.bytes};
            iq_unpack_text(&unpack, missing, sizeof(missing));
        } else if (frame.type == IQ_FRAME_ABORT && iq_abort_unpack(&frame, &joining->failure)) {
            return OUTCOME_FAILED;
        } else
            return fail(joining, ISGQ_ERR_CORRUPT, 0, "rank 0 sent rubbish while the ranks met");
    }
}

static outcome_t attempt(joining_t *joining)
{
    uint64_t limit_ns = iq_now_ns() + (joining->elsewhere ? ANSWER_ANY_NS : ANSWER_NS);
    int fd = iq_socket_connect(&joining->place, limit_ns < joining->deadline_ns ? limit_ns : joining->deadline_ns,
                               joining->reason, sizeof(joining->reason));
    if (fd < 0)
        return OUTCOME_RETRY;
    if (iq_random_bytes(joining->ours.nonce, sizeof(joining->ours.nonce)) != ISGQ_SUCCESS)
        return fail(joining, ISGQ_ERR_SYSTEM, joining->ours.rank, iq_last_error());

    iq_conn_open(&joining->conn, fd, IQ_FRAME_BYTES);
    outcome_t outcome = say_hello(joining);
    if (outcome == OUTCOME_DONE)
        outcome = exchange_proofs(joining);
    if (outcome == OUTCOME_DONE)
        outcome = wait_for_start(joining);
    if (outcome == OUTCOME_DONE)
        iq_member_open(&joining->control->members[0], &joining->conn, &joining->theirs, &joining->ours);
    else
        iq_conn_close(&joining->conn);
    return outcome;
}

isgq_result_t iq_join(iq_control_t *control, const iq_rendezvous_t *rendezvous, int version, uint64_t deadline_ns)
{
    joining_t joining = {
        .control = control, .place = *rendezvous, .deadline_ns = deadline_ns, .elsewhere = rendezvous->port_count > 1};
    uint64_t pause_ns = PAUSE_MIN_NS;
    char name[IQ_ADDRESS_NAME_BYTES];
    outcome_t outcome = OUTCOME_RETRY;
    unsigned tries = 0;

    IQ_TRY(iq_hello_init(&joining.ours, control->rank, control->nranks, version));
    for (;;) {
        if (joining.elsewhere)
            joining.place.port = (uint16_t)(rendezvous->port + tries % rendezvous->port_count);
        outcome = attempt(&joining);
        uint64_t now_ns = iq_now_ns();
        if (outcome != OUTCOME_RETRY || now_ns >= deadline_ns)
            break;
        tries++;
        if (joining.elsewhere && tries % rendezvous->port_count != 0)
            continue;
        uint64_t wait_ns = deadline_ns - now_ns < pause_ns ? deadline_ns - now_ns : pause_ns;
        poll(NULL, 0, (int)(wait_ns / IQ_MILLISECOND) + 1);
        pause_ns = 2 * pause_ns < PAUSE_MAX_NS ? 2 * pause_ns : PAUSE_MAX_NS;
    }
    iq_auth_wipe(joining.place.secret, sizeof(joining.place.secret));
    if (outcome == OUTCOME_DONE)
        return ISGQ_SUCCESS;
    if (outcome == OUTCOME_FAILED)
        return IQ_FAIL(joining.failure.result, "%s", joining.failure.text);
    return IQ_FAIL(ISGQ_ERR_TIMEOUT, "rank 0 never answered rank %d at %s: %s", control->rank,
                   iq_address_name(&joining.place, name), joining.reason);
}
