/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The meeting as rank 0 sees it: guests connect, prove that they know the secret and become members; the rest are dropped.
 *
 * Whoever has not proved anything (a guest) costs a slot and a small buffer for five seconds at most and can spoil nothing.
 * Whoever has, is believed: if its rank, rank count or version is wrong, that is the job's mistake and all ranks are told, also
 * those still to come.
 */
#include "transport/control_internal.h"

#include "base/log.h"
#include "base/util.h"
#include "transport/auth.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GUESTS 64
#define GUEST_NS (5 * IQ_SECOND)       /* a guest must have proved itself by then */
#define GUEST_SAFE_NS (1 * IQ_SECOND)  /* and is not pushed out by newer ones before */
#define TELL_NS (100 * IQ_MILLISECOND) /* how often waiting ranks hear who is missing */
#define AFTERMATH_NS (3 * IQ_SECOND)   /* how long late ranks are told of a failed meeting */
#define POLL_BROKEN_MS 100             /* between turns if poll fails */

typedef struct guest {
    iq_conn_t conn; /* fd -1: free */
    uint64_t since_ns;
    bool greeted;
    bool ready; /* what the last poll said */
    iq_hello_t theirs, ours;
} guest_t;

typedef struct meeting {
    iq_control_t *control;
    const iq_rendezvous_t *rendezvous;
    int version, listen_fd;
    uint64_t end_ns;
    guest_t guests[GUESTS];
    bool *present;        /* [nranks] */
    struct pollfd *polls; /* room for 1 + GUESTS + nranks */
    bool knocking;        /* what the last poll said of the listener */
    int joined;           /* members, rank 0 included */
    int told, must_tell;  /* of a failure */
    bool changed;         /* since the ranks were last told who is missing */
    uint64_t tell_ns;
    unsigned dropped; /* guests since the last line about them */
    int accept_error; /* why the last connection could not be taken, an errno */
    uint64_t log_ns;
    iq_verdict_t failure; /* result ISGQ_SUCCESS: none */
} meeting_t;

static void drop_guest(meeting_t *meeting, guest_t *guest, const char *why)
{
    iq_conn_close(&guest->conn);
    meeting->dropped++;
    if (iq_now_ns() < meeting->log_ns)
        return;
    IQ_DEBUG("rendezvous: dropped %u connection%s; the last one %s", meeting->dropped, meeting->dropped == 1 ? "" : "s", why);
    meeting->dropped = 0;
    meeting->log_ns = iq_now_ns() + IQ_SECOND;
}

/* Errors of the socket are left to the next read. */
static void tell(iq_conn_t *conn, iq_frame_type_t type, const iq_pack_t *pack)
{
    if (iq_conn_send(conn, type, pack, NULL, 0))
        iq_conn_flush(conn);
}

static void tell_members(meeting_t *meeting, iq_frame_type_t type, const iq_pack_t *pack)
{
    for (int rank = 1; rank < meeting->control->nranks; rank++)
        if (meeting->control->members[rank].conn.fd >= 0)
            tell(&meeting->control->members[rank].conn, type, pack);
}

/* The first failure wins; it is told to all that have come, and to those that come within the aftermath. */
static void fail_meeting(meeting_t *meeting, isgq_result_t result, int culprit, const char *text)
{
    iq_pack_t pack = {.used = 0};

    if (meeting->failure.result != ISGQ_SUCCESS)
        return;
    meeting->failure.result = result;
    meeting->failure.culprit = culprit;
    snprintf(meeting->failure.text, sizeof(meeting->failure.text), "%s", text);
    meeting->told += meeting->joined - 1;
    uint64_t end_ns = iq_now_ns() + AFTERMATH_NS;
    if (end_ns < meeting->end_ns)
        meeting->end_ns = end_ns;
    iq_abort_pack(&pack, result, culprit, meeting->failure.text);
    tell_members(meeting, IQ_FRAME_ABORT, &pack);
}

/* Is there anything wrong with a rank that knows the secret? Then the meeting fails. */
static void check_member(meeting_t *meeting, const iq_hello_t *hello)
{
    int nranks = meeting->control->nranks;
    char text[IQ_ERROR_TEXT_BYTES];

    if (hello->version != meeting->version) {
        snprintf(text, sizeof(text), "library version is %d.%d.%d on rank 0 and %d.%d.%d on rank %d", meeting->version / 10000,
                 meeting->version / 100 % 100, meeting->version % 100, hello->version / 10000, hello->version / 100 % 100,
                 hello->version % 100, hello->rank);
        fail_meeting(meeting, ISGQ_ERR_MISMATCH, hello->rank, text);
    } else if (hello->nranks != nranks) {
        snprintf(text, sizeof(text), "nranks is %d on rank 0 and %d on rank %d", nranks, hello->nranks, hello->rank);
        meeting->must_tell =
            hello->nranks > meeting->must_tell && hello->nranks <= 65536 ? hello->nranks - 1 : meeting->must_tell;
        fail_meeting(meeting, ISGQ_ERR_MISMATCH, hello->rank, text);
    } else if (hello->rank < 0 || hello->rank >= nranks) {
        snprintf(text, sizeof(text), "process %d calls itself rank %d, which is not in 0..%d", hello->pid, hello->rank,
                 nranks - 1);
        fail_meeting(meeting, ISGQ_ERR_INVALID_ARGUMENT, hello->rank, text);
    } else if (meeting->present[hello->rank]) {
        int other = hello->rank == 0 ? (int)getpid() : meeting->control->members[hello->rank].pid;
        snprintf(text, sizeof(text), "processes %d and %d both call themselves rank %d", other, hello->pid, hello->rank);
        fail_meeting(meeting, ISGQ_ERR_INVALID_ARGUMENT, hello->rank, text);
    }
}

/* A guest has proved that it knows the secret. */
static void admit(meeting_t *meeting, guest_t *guest)
{
    uint8_t proof[IQ_PROOF_BYTES];
    iq_pack_t welcome = {.used = 0}, abort_text = {.used = 0};

    iq_hello_prove(meeting->rendezvous, "root", &guest->theirs, &guest->ours, proof);
    iq_pack_bytes(&welcome, proof, sizeof(proof));
    tell(&guest->conn, IQ_FRAME_WELCOME, &welcome);
    check_member(meeting, &guest->theirs);
    if (meeting->failure.result == ISGQ_SUCCESS && !iq_conn_widen(&guest->conn, IQ_FRAME_BYTES))
        fail_meeting(meeting, ISGQ_ERR_NO_MEMORY, 0, "rank 0 has no memory for its connections");
    if (meeting->failure.result != ISGQ_SUCCESS) {
        iq_abort_pack(&abort_text, meeting->failure.result, meeting->failure.culprit, meeting->failure.text);
        tell(&guest->conn, IQ_FRAME_ABORT, &abort_text);
        iq_conn_close(&guest->conn);
        meeting->told++;
        return;
    }
    iq_member_open(&meeting->control->members[guest->theirs.rank], &guest->conn, &guest->theirs, &guest->ours);
    meeting->present[guest->theirs.rank] = true;
    meeting->joined++;
    meeting->changed = true;
}

static bool greet(meeting_t *meeting, guest_t *guest, const iq_control_frame_t *frame)
{
    iq_pack_t pack = {.used = 0};

    if (!iq_hello_unpack(frame, &guest->theirs) ||
        iq_hello_init(&guest->ours, 0, meeting->control->nranks, meeting->version) != ISGQ_SUCCESS)
        return false;
    guest->greeted = true;
    iq_hello_pack(&pack, &guest->ours);
    return iq_conn_send(&guest->conn, IQ_FRAME_CHALLENGE, &pack, NULL, 0) && iq_conn_flush(&guest->conn);
}

static bool has_proved(const meeting_t *meeting, const guest_t *guest, const iq_control_frame_t *frame)
{
    uint8_t proof[IQ_PROOF_BYTES];
    iq_hello_prove(meeting->rendezvous, "rank", &guest->theirs, &guest->ours, proof);
    return frame->bytes == sizeof(proof) && iq_auth_equal(proof, frame->payload);
}

static void serve_guest(meeting_t *meeting, guest_t *guest)
{
    iq_read_t state = iq_conn_read(&guest->conn);
    iq_control_frame_t frame;

    while (guest->conn.fd >= 0) {
        iq_next_t next = iq_conn_next(&guest->conn, &frame);
        if (next == IQ_NEXT_NONE)
            break;
        if (next == IQ_NEXT_BAD)
            drop_guest(meeting, guest, "does not speak our protocol");
        else if (frame.type == IQ_FRAME_HELLO && !guest->greeted) {
            if (!greet(meeting, guest, &frame))
                drop_guest(meeting, guest, "sent no proper hello");
        } else if (frame.type == IQ_FRAME_PROOF && guest->greeted) {
            if (!has_proved(meeting, guest, &frame))
                drop_guest(meeting, guest, "does not know the secret");
            else
                admit(meeting, guest);
        } else
            drop_guest(meeting, guest, "spoke out of turn");
    }
    if (guest->conn.fd >= 0 && state == IQ_READ_CLOSED)
        drop_guest(meeting, guest, "went away");
}

/* A free slot, or that of the oldest guest that has had its chance. */
static guest_t *find_slot(meeting_t *meeting, uint64_t now_ns)
{
    guest_t *oldest = &meeting->guests[0];
    for (int i = 0; i < GUESTS; i++) {
        guest_t *guest = &meeting->guests[i];
        if (guest->conn.fd < 0)
            return guest;
        if (guest->since_ns < oldest->since_ns)
            oldest = guest;
    }
    if (now_ns - oldest->since_ns < GUEST_SAFE_NS)
        return NULL;
    drop_guest(meeting, oldest, "was too slow");
    return oldest;
}

static void accept_guests(meeting_t *meeting)
{
    uint64_t now_ns = iq_now_ns();
    guest_t *guest;
    int fd;

    while ((guest = find_slot(meeting, now_ns)) != NULL &&
           (fd = iq_socket_accept(meeting->listen_fd, meeting->rendezvous->kind)) >= 0) {
        memset(guest, 0, sizeof(*guest));
        iq_conn_open(&guest->conn, fd, IQ_GUEST_FRAME_BYTES);
        guest->since_ns = now_ns;
    }
    if (guest == NULL || errno == EAGAIN || errno == EWOULDBLOCK)
        return;
    if (meeting->accept_error == 0)
        IQ_WARN("rank 0 cannot take connections while the ranks meet: %s", strerror(errno));
    meeting->accept_error = errno;
    poll(NULL, 0, 10); /* out of descriptors, say: the listener stays readable, and this must not spin */
}

/* Members have nothing to say before the start, unless they give up. */
static void serve_member(meeting_t *meeting, iq_member_t *member)
{
    iq_read_t state = iq_conn_read(&member->conn);
    char text[IQ_ERROR_TEXT_BYTES];
    iq_verdict_t verdict;
    iq_control_frame_t frame;

    iq_next_t next = iq_conn_next(&member->conn, &frame);
    if (next == IQ_NEXT_FRAME && frame.type == IQ_FRAME_ABORT && iq_abort_unpack(&frame, &verdict)) {
        fail_meeting(meeting, verdict.result, verdict.culprit, verdict.text);
    } else if (next != IQ_NEXT_NONE) {
        snprintf(text, sizeof(text), "rank %d (pid %d) sent rubbish while the ranks met", member->rank, member->pid);
        fail_meeting(meeting, ISGQ_ERR_CORRUPT, member->rank, text);
    } else if (state == IQ_READ_CLOSED) {
        snprintf(text, sizeof(text), "rank %d (pid %d) died before all ranks had met", member->rank, member->pid);
        fail_meeting(meeting, ISGQ_ERR_REMOTE, member->rank, text);
    } else
        return;
    iq_member_close(member);
}

static void tell_who_is_missing(meeting_t *meeting, uint64_t now_ns)
{
    char text[IQ_ERROR_TEXT_BYTES];
    iq_pack_t pack = {.used = 0};

    if (!meeting->changed || now_ns < meeting->tell_ns || meeting->failure.result != ISGQ_SUCCESS)
        return;
    iq_name_missing(meeting->present, meeting->control->nranks, text, sizeof(text));
    iq_pack_text(&pack, text);
    tell_members(meeting, IQ_FRAME_WAITING, &pack);
    meeting->changed = false;
    meeting->tell_ns = now_ns + TELL_NS;
}

static uint64_t next_wake_ns(meeting_t *meeting, bool has_room)
{
    uint64_t wake_ns = has_room ? meeting->end_ns : iq_now_ns() + TELL_NS;

    for (int i = 0; i < GUESTS; i++) {
        const guest_t *guest = &meeting->guests[i];
        if (guest->conn.fd >= 0 && guest->since_ns + GUEST_NS < wake_ns)
            wake_ns = guest->since_ns + GUEST_NS;
    }
    return meeting->changed && meeting->tell_ns < wake_ns ? meeting->tell_ns : wake_ns;
}

/* Only what is open is listed: poll counts every entry against the limit on descriptors. */
static nfds_t list_polls(const meeting_t *meeting, bool has_room)
{
    struct pollfd *next = meeting->polls;

    *next++ = (struct pollfd){.fd = has_room ? meeting->listen_fd : -1, .events = POLLIN};
    for (int i = 0; i < GUESTS; i++)
        if (meeting->guests[i].conn.fd >= 0)
            *next++ = (struct pollfd){.fd = meeting->guests[i].conn.fd, .events = POLLIN};
    for (int rank = 1; rank < meeting->control->nranks; rank++)
        if (meeting->control->members[rank].conn.fd >= 0)
            *next++ = (struct pollfd){.fd = meeting->control->members[rank].conn.fd, .events = POLLIN};
    return (nfds_t)(next - meeting->polls);
}

static void note_polls(meeting_t *meeting)
{
    const struct pollfd *next = meeting->polls;

    meeting->knocking = next++->revents != 0;
    for (int i = 0; i < GUESTS; i++)
        meeting->guests[i].ready = meeting->guests[i].conn.fd >= 0 && next++->revents != 0;
    for (int rank = 1; rank < meeting->control->nranks; rank++) {
        iq_member_t *member = &meeting->control->members[rank];
        member->ready = member->conn.fd >= 0 && next++->revents != 0;
    }
}

static void wait_for_events(meeting_t *meeting)
{
    bool has_room = find_slot(meeting, iq_now_ns()) != NULL;
    nfds_t polls = list_polls(meeting, has_room);
    char text[IQ_ERROR_TEXT_BYTES];

    if (poll(meeting->polls, polls, iq_poll_ms(next_wake_ns(meeting, has_room))) < 0) {
        int error = errno;
        memset(meeting->polls, 0, sizeof(*meeting->polls) * polls);
        if (error != EINTR) {
            snprintf(text, sizeof(text), "rank 0 cannot poll %zu descriptors while the ranks meet: %s", (size_t)polls,
                     strerror(error));
            fail_meeting(meeting, ISGQ_ERR_SYSTEM, 0, text);
            poll(NULL, 0, POLL_BROKEN_MS); /* the aftermath must not spin */
        }
    }
    note_polls(meeting);
}

static void serve_all(meeting_t *meeting)
{
    uint64_t now_ns = iq_now_ns();

    for (int rank = 1; rank < meeting->control->nranks; rank++)
        if (meeting->control->members[rank].ready)
            serve_member(meeting, &meeting->control->members[rank]);
    for (int i = 0; i < GUESTS; i++) {
        guest_t *guest = &meeting->guests[i];
        if (guest->conn.fd >= 0 && guest->ready)
            serve_guest(meeting, guest);
        if (guest->conn.fd >= 0 && now_ns >= guest->since_ns + GUEST_NS)
            drop_guest(meeting, guest, "stayed silent");
    }
    if (meeting->knocking)
        accept_guests(meeting);
    tell_who_is_missing(meeting, now_ns);
}

static isgq_result_t hold_meeting(meeting_t *meeting)
{
    iq_control_t *control = meeting->control;
    char missing[256], text[IQ_ERROR_TEXT_BYTES], name[IQ_ADDRESS_NAME_BYTES];

    for (;;) {
        bool failed = meeting->failure.result != ISGQ_SUCCESS;
        if (!failed && meeting->joined == control->nranks)
            break;
        if ((failed && meeting->told >= meeting->must_tell) || iq_now_ns() >= meeting->end_ns)
            break;
        wait_for_events(meeting);
        serve_all(meeting);
    }
    if (meeting->failure.result == ISGQ_SUCCESS && meeting->joined < control->nranks) {
        int count = iq_name_missing(meeting->present, control->nranks, missing, sizeof(missing));
        snprintf(text, sizeof(text), "%s of %d never came to %s%s%s", missing, control->nranks, iq_address_name(meeting->rendezvous, name),
                 meeting->accept_error != 0 ? "; rank 0 could not take connections: " : "",
                 meeting->accept_error != 0 ? strerror(meeting->accept_error) : "");
        int first = 0;
        while (count > 0 && meeting->present[first])
            first++;
        fail_meeting(meeting, ISGQ_ERR_TIMEOUT, first, text);
    }
    if (meeting->failure.result != ISGQ_SUCCESS)
        return IQ_FAIL(meeting->failure.result, "%s", meeting->failure.text);
    return ISGQ_SUCCESS;
}

static isgq_result_t open_listener(const iq_rendezvous_t *rendezvous, int *listen_fd)
{
    iq_rendezvous_t copy = *rendezvous;
    if (rendezvous->listen_fd < 0)
        return iq_socket_listen(&copy, "", listen_fd);
    *listen_fd = rendezvous->listen_fd;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_meet(iq_control_t *control, const iq_rendezvous_t *rendezvous, int version, uint64_t deadline_ns)
{
    isgq_result_t result;
    int listen_fd;

    if (control->nranks == 1) {
        if (rendezvous->listen_fd >= 0)
            close(rendezvous->listen_fd);
        return ISGQ_SUCCESS;
    }
    IQ_TRY(open_listener(rendezvous, &listen_fd));
    meeting_t *meeting = calloc(1, sizeof(*meeting));
    bool *present = calloc((size_t)control->nranks, sizeof(*present));
    struct pollfd *polls = calloc((size_t)(1 + GUESTS + control->nranks), sizeof(*polls));
    if (meeting == NULL || present == NULL || polls == NULL) {
        result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "no memory to meet %d ranks", control->nranks);
        goto close_listener;
    }
    *meeting = (meeting_t){.control = control,
                           .rendezvous = rendezvous,
                           .version = version,
                           .listen_fd = listen_fd,
                           .end_ns = deadline_ns,
                           .present = present,
                           .polls = polls,
                           .joined = 1,
                           .must_tell = control->nranks - 1};
    present[0] = true;
    for (int i = 0; i < GUESTS; i++)
        meeting->guests[i].conn.fd = -1;

    result = hold_meeting(meeting);
    for (int i = 0; i < GUESTS; i++)
        iq_conn_close(&meeting->guests[i].conn);

close_listener:
    close(listen_fd);
    /* Only now the start: no rank can run into this listener with its next communicator. */
    if (result == ISGQ_SUCCESS)
        tell_members(meeting, IQ_FRAME_START, NULL);
    free(polls);
    free(present);
    free(meeting);
    return result;
}
