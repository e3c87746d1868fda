/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The channel's thread: asleep in poll over the sockets, the pidfds and the wake descriptor, and the only one that touches them
 * after the meeting. Callers leave requests under the lock; the listener is called without it.
 *
 * One turn: read and handle frames, notice deaths, serve requests, run timers, announce a failure, write what can be written.
 */
#include "transport/control_internal.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PING_NS IQ_SECOND
#define PINGS_UNANSWERED 3  /* more would only fill the socket of a stopped rank */
#define LINGER_NS IQ_SECOND /* for the last frames to leave at close */
#define DEATH_CERTAIN_MS 50 /* between a process's end of file and its end */
#define POLL_BROKEN_MS 100  /* between turns if poll fails */

/* A process that can be watched from here: a member of another process that shares our process ids. */
static pid_t watchable_pid(int fd, const iq_hello_t *theirs, const iq_hello_t *ours)
{
    pid_t pid = theirs->process_space == ours->process_space ? (pid_t)theirs->pid : iq_socket_peer_pid(fd);
    return pid > 0 && pid != getpid() ? pid : 0;
}

void iq_member_open(iq_member_t *member, iq_conn_t *conn, const iq_hello_t *theirs, const iq_hello_t *ours)
{
    pid_t pid = watchable_pid(conn->fd, theirs, ours);
    *member = (iq_member_t){.conn = *conn, .rank = theirs->rank, .pid = theirs->pid, .pidfd = -1};
    if (pid > 0)
        member->pidfd =
            (int)syscall(SYS_pidfd_open, pid, 0); /* close-on-exec by itself; -1 on old kernels: end of file remains */
    *conn = (iq_conn_t){.fd = -1};
}

void iq_member_close(iq_member_t *member)
{
    iq_conn_close(&member->conn);
    if (member->pidfd >= 0)
        close(member->pidfd);
    member->pidfd = -1;
}

void iq_control_wake(iq_control_t *control)
{
    uint64_t one = 1;
    ssize_t written = write(control->wake_fd, &one, sizeof(one));
    (void)written; /* fails only if the counter is full, and then the thread is awake */
}

void iq_control_fail(iq_control_t *control, bool sent, isgq_result_t result, int culprit, const char *format, ...)
{
    va_list arguments;

    pthread_mutex_lock(&control->lock);
    if (!control->failure.set) {
        control->failure = (iq_failure_t){.set = true, .sent = sent, .result = result, .culprit = culprit};
        va_start(arguments, format);
        vsnprintf(control->failure.text, sizeof(control->failure.text), format, arguments);
        va_end(arguments);
        pthread_cond_broadcast(&control->changed);
    }
    pthread_mutex_unlock(&control->lock);
    iq_control_wake(control);
}

bool iq_control_failed(iq_control_t *control)
{
    pthread_mutex_lock(&control->lock);
    bool set = control->failure.set;
    pthread_mutex_unlock(&control->lock);
    return set;
}

void iq_abort_pack(iq_pack_t *pack, isgq_result_t result, int culprit, const char *text)
{
    iq_pack_u32(pack, (uint32_t)result);
    iq_pack_u32(pack, (uint32_t)culprit);
    iq_pack_text(pack, text);
}

bool iq_abort_unpack(const iq_control_frame_t *frame, iq_verdict_t *verdict)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    verdict->result = (isgq_result_t)iq_unpack_u32(&unpack);
    verdict->culprit = (int32_t)iq_unpack_u32(&unpack);
    iq_unpack_text(&unpack, verdict->text, sizeof(verdict->text));
    if (verdict->result == ISGQ_SUCCESS || verdict->result == ISGQ_IN_PROGRESS)
        verdict->result = ISGQ_ERR_REMOTE; /* whatever it means, it is a failure */
    return !unpack.bad;
}

static void handle_abort(iq_control_t *control, const iq_member_t *member, const iq_control_frame_t *frame)
{
    iq_verdict_t verdict;
    if (iq_abort_unpack(frame, &verdict))
        iq_control_fail(control, !iq_control_is_root(control), verdict.result, verdict.culprit, "%s", verdict.text);
    else
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, member->rank, "rank %d sent a broken abort", member->rank);
}

static void handle_at_root(iq_control_t *control, iq_member_t *member, const iq_control_frame_t *frame)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};

    switch (frame->type) {
    case IQ_FRAME_ABORT: handle_abort(control, member, frame); break;
    case IQ_FRAME_GATHER: iq_gather_contribution(control, member->rank, frame); break;
    case IQ_FRAME_LATE: iq_gather_late(control, iq_unpack_u64(&unpack)); break;
    case IQ_FRAME_STALL:
    case IQ_FRAME_MISMATCH:
        iq_conn_send(&member->conn, IQ_FRAME_RECEIVED, NULL, NULL, 0);
        iq_search_report_frame(control, member->rank, frame);
        break;
    case IQ_FRAME_ANSWER: iq_search_answer(control, member->rank, frame); break;
    case IQ_FRAME_PONG: member->unanswered = 0; break;
    default:
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, member->rank, "control channel: rank %d sent a frame of type %d",
                        member->rank, (int)frame->type);
    }
}

static void handle_at_rank(iq_control_t *control, iq_member_t *member, const iq_control_frame_t *frame)
{
    switch (frame->type) {
    case IQ_FRAME_ABORT: handle_abort(control, member, frame); break;
    case IQ_FRAME_RESULT: iq_gather_result(control, frame); break;
    case IQ_FRAME_RECEIVED: control->verdict_due_ns += control->verdict_due_ns > 0 ? 800 * IQ_MILLISECOND : 0; break;
    case IQ_FRAME_QUERY: iq_search_query(control, frame); break;
    case IQ_FRAME_PING: iq_conn_send(&member->conn, IQ_FRAME_PONG, NULL, NULL, 0); break;
    default:
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, 0, "control channel: rank 0 sent a frame of type %d", (int)frame->type);
    }
}

/* Was it a death? Not if the rank, or all of us, had said goodbye. */
static void member_is_gone(iq_control_t *control, iq_member_t *member)
{
    if (!control->left && !member->left && !iq_control_failed(control)) {
        struct pollfd process = {.fd = member->pidfd, .events = POLLIN};
        bool died = member->pidfd >= 0 && poll(&process, 1, DEATH_CERTAIN_MS) > 0;
        iq_control_fail(control, false, ISGQ_ERR_REMOTE, member->rank, "rank %d (pid %d) died%s", member->rank, member->pid,
                        died ? "" : " or closed its connection");
    }
    iq_member_close(member);
}

/* Everything a dead rank still said counts: its abort or goodbye arrived before its end. */
static void serve_member(iq_control_t *control, iq_member_t *member, bool process_ended)
{
    iq_read_t state;
    iq_next_t next = IQ_NEXT_NONE;
    iq_control_frame_t frame;

    do {
        state = iq_conn_read(&member->conn);
        while ((next = iq_conn_next(&member->conn, &frame)) == IQ_NEXT_FRAME) {
            if (iq_control_is_root(control))
                handle_at_root(control, member, &frame);
            else
                handle_at_rank(control, member, &frame);
        }
    } while (state == IQ_READ_MORE && next != IQ_NEXT_BAD);
    if (next == IQ_NEXT_BAD) {
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, member->rank, "control channel: rank %d sent rubbish", member->rank);
        iq_member_close(member);
    } else if (state == IQ_READ_CLOSED || process_ended)
        member_is_gone(control, member);
}

static void serve_requests(iq_control_t *control)
{
    pthread_mutex_lock(&control->lock);
    unsigned requests = control->requests & ~IQ_REQUEST_STOP;
    iq_report_t report = control->report;
    uint64_t round = control->round.number;
    control->requests &= IQ_REQUEST_STOP;
    pthread_mutex_unlock(&control->lock);

    if (requests & IQ_REQUEST_ROUND)
        iq_gather_begin(control);
    if (requests & IQ_REQUEST_LATE)
        iq_gather_late(control, round);
    if (requests & IQ_REQUEST_REPORT)
        iq_search_report(control, &report);
}

static void send_abort(iq_control_t *control, const iq_failure_t *failure)
{
    iq_pack_t pack = {.used = 0};
    iq_abort_pack(&pack, failure->result, failure->culprit, failure->text);
    for (int i = 0; i < control->nmembers; i++)
        if (control->members[i].conn.fd >= 0 && iq_conn_send(&control->members[i].conn, IQ_FRAME_ABORT, &pack, NULL, 0))
            iq_conn_flush(&control->members[i].conn); /* now: the listener may end the process */
}

static void announce_failure(iq_control_t *control)
{
    pthread_mutex_lock(&control->lock);
    iq_failure_t failure = control->failure;
    iq_control_events_t events = control->events;
    bool send = failure.set && !failure.sent;
    bool tell = failure.set && !failure.told && control->listening;
    control->failure.sent |= send;
    control->failure.told |= tell;
    pthread_mutex_unlock(&control->lock);

    if (send)
        send_abort(control, &failure);
    if (tell && events.failed != NULL)
        events.failed(events.context, failure.result, failure.culprit, failure.text);
}

/* Silence alone is no failure; the pings keep idle connections alive and let the kernel notice hosts that are gone. */
static void send_pings(iq_control_t *control, uint64_t now_ns)
{
    if (!iq_control_is_root(control) || control->left || now_ns < control->next_ping_ns)
        return;
    control->next_ping_ns = now_ns + PING_NS;
    for (int i = 1; i < control->nmembers; i++) {
        iq_member_t *member = &control->members[i];
        if (member->conn.fd < 0 || iq_conn_pending(&member->conn) || member->unanswered >= PINGS_UNANSWERED)
            continue;
        member->unanswered += iq_conn_send(&member->conn, IQ_FRAME_PING, NULL, NULL, 0);
    }
}

static void flush_members(iq_control_t *control)
{
    for (int i = 0; i < control->nmembers; i++) {
        iq_member_t *member = &control->members[i];
        if (member->conn.fd >= 0 && !iq_conn_flush(&member->conn))
            serve_member(control, member, true); /* what it said before it went may still wait to be read */
    }
}

static int poll_timeout(const iq_control_t *control)
{
    uint64_t wake_ns = iq_search_next_ns(control);
    if (iq_control_is_root(control) && control->nranks > 1 && !control->left && control->next_ping_ns < wake_ns)
        wake_ns = control->next_ping_ns;
    return wake_ns == UINT64_MAX ? -1 : iq_poll_ms(wake_ns);
}

/* Only what is open is listed: poll counts every entry against the limit on descriptors. */
static nfds_t list_polls(const iq_control_t *control)
{
    struct pollfd *next = control->polls;

    *next++ = (struct pollfd){.fd = control->wake_fd, .events = POLLIN};
    for (int i = 0; i < control->nmembers; i++) {
        const iq_member_t *member = &control->members[i];
        short events = (short)(iq_conn_pending(&member->conn) ? POLLIN | POLLOUT : POLLIN);
        if (member->conn.fd >= 0)
            *next++ = (struct pollfd){.fd = member->conn.fd, .events = events};
        if (member->pidfd >= 0)
            *next++ = (struct pollfd){.fd = member->pidfd, .events = POLLIN};
    }
    return (nfds_t)(next - control->polls);
}

static void note_polls(iq_control_t *control)
{
    const struct pollfd *next = control->polls + 1;

    for (int i = 0; i < control->nmembers; i++) {
        iq_member_t *member = &control->members[i];
        member->ready = member->conn.fd >= 0 && next++->revents != 0;
        member->ended = member->pidfd >= 0 && next++->revents != 0;
    }
}

static void wait_for_events(iq_control_t *control)
{
    uint64_t count;
    nfds_t polls = list_polls(control);

    if (poll(control->polls, polls, poll_timeout(control)) < 0) {
        int error = errno;
        memset(control->polls, 0, sizeof(*control->polls) * polls);
        if (error != EINTR) {
            iq_control_fail(control, false, ISGQ_ERR_SYSTEM, control->rank,
                            "rank %d: control channel: poll of %zu descriptors: %s", control->rank, (size_t)polls,
                            strerror(error));
            poll(NULL, 0, POLL_BROKEN_MS); /* there is still the failure to be told, but this must not spin */
        }
    }
    note_polls(control);
    if (control->polls[0].revents != 0) {
        ssize_t got = read(control->wake_fd, &count, sizeof(count));
        (void)got; /* only resets the counter */
    }
}

static bool turn(iq_control_t *control)
{
    wait_for_events(control);
    for (int i = 0; i < control->nmembers; i++) {
        iq_member_t *member = &control->members[i];
        if (member->conn.fd >= 0 && (member->ended || member->ready))
            serve_member(control, member, member->ended);
    }
    serve_requests(control);
    uint64_t now_ns = iq_now_ns();
    iq_search_tick(control, now_ns);
    send_pings(control, now_ns);
    announce_failure(control);
    flush_members(control);

    pthread_mutex_lock(&control->lock);
    bool stop = (control->requests & IQ_REQUEST_STOP) != 0 && (!control->failure.set || control->failure.sent);
    pthread_mutex_unlock(&control->lock);
    return !stop;
}

/* An abort or the end of the last round may still be queued. */
static void linger(iq_control_t *control)
{
    uint64_t end_ns = iq_now_ns() + LINGER_NS;
    bool pending = true;

    while (pending && iq_now_ns() < end_ns) {
        pending = false;
        for (int i = 0; i < control->nmembers; i++) {
            iq_conn_t *conn = &control->members[i].conn;
            pending |= conn->fd >= 0 && iq_conn_flush(conn) && iq_conn_pending(conn);
        }
        if (pending)
            poll(NULL, 0, 1);
    }
    for (int i = 0; i < control->nmembers; i++)
        if (control->members[i].conn.fd >= 0)
            shutdown(control->members[i].conn.fd, SHUT_WR);
}

void *iq_control_main(void *argument)
{
    iq_control_t *control = argument;

    iq_log_identity(control->rank, control->nranks);
    while (turn(control)) {
    }
    linger(control);
    return NULL;
}
