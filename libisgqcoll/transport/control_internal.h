/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the control channel. The files, bottom up:
 *
 *     control_wire.c    frames, non-blocking connections with an output queue
 *     control_socket.c  listening, connecting, who is on the other side
 *     control_hello.c   what ranks say when they meet, and their proofs
 *     control_meet.c    the meeting as rank 0 sees it; control_join.c as the others see it
 *     control_gather.c  allgather and goodbye
 *     control_judge.c   who is at fault: pure functions over the ranks' answers
 *     control_search.c  asks the ranks for those answers
 *     control_thread.c  the thread in poll that owns all sockets after the meeting
 *     control.c         the public functions: they leave a request and wake the thread
 *
 * Numbers travel little-endian. Nothing read from a socket is trusted before its length and range are checked.
 */
#ifndef ISGQ_TRANSPORT_CONTROL_INTERNAL_H
#define ISGQ_TRANSPORT_CONTROL_INTERNAL_H

#include "base/status.h"
#include "transport/control.h"

#include <poll.h>
#include <pthread.h>
#include <sys/types.h>

#define IQ_MILLISECOND ((uint64_t)1000000)
#define IQ_SECOND ((uint64_t)1000000000)

/* ---- frames and connections (control_wire.c) ---- */

/*
 *  0        4         6      8        12
 *  | magic  | version | type | length | payload ...
 */
#define IQ_CONTROL_MAGIC 0x43515349u
#define IQ_FRAME_VERSION 1
#define IQ_FRAME_HEADER_BYTES 12
#define IQ_GATHER_BYTES ((size_t)65536)       /* most bytes of one rank in an allgather, and of one piece of its result */
#define IQ_FRAME_BYTES (IQ_GATHER_BYTES + 64) /* longest payload */
#define IQ_GUEST_FRAME_BYTES ((size_t)256)    /* longest payload before the sender has proved who it is */

typedef enum iq_frame_type {
    IQ_FRAME_HELLO = 1, /* rank -> 0: iq_hello_t */
    IQ_FRAME_CHALLENGE, /* 0 -> rank: iq_hello_t */
    IQ_FRAME_PROOF,     /* rank -> 0: proof */
    IQ_FRAME_WELCOME,   /* 0 -> rank: proof */
    IQ_FRAME_WAITING,   /* 0 -> rank: text, the ranks that have not come yet */
    IQ_FRAME_START,     /* 0 -> rank: all have come */
    IQ_FRAME_ABORT,     /* both ways: result, culprit, text */
    IQ_FRAME_GATHER,    /* rank -> 0: round, kind, data */
    IQ_FRAME_RESULT,    /* 0 -> rank: round, total, offset, data */
    IQ_FRAME_LATE,      /* rank -> 0: round whose deadline has passed */
    IQ_FRAME_STALL,     /* rank -> 0: sequence, awaited, step */
    IQ_FRAME_MISMATCH,  /* rank -> 0: sequence, peer, text, last */
    IQ_FRAME_RECEIVED,  /* 0 -> rank: your report is being looked into */
    IQ_FRAME_QUERY,     /* 0 -> rank: sequence; asks for status and arguments */
    IQ_FRAME_ANSWER,    /* rank -> 0: status, arguments */
    IQ_FRAME_PING,      /* 0 -> rank */
    IQ_FRAME_PONG       /* rank -> 0 */
} iq_frame_type_t;

/* A message being written. Small ones only: all but the data of an allgather. */
typedef struct iq_pack {
    uint8_t data[1024];
    size_t used;
} iq_pack_t;

void iq_pack_u32(iq_pack_t *pack, uint32_t value);
void iq_pack_u64(iq_pack_t *pack, uint64_t value);
void iq_pack_bytes(iq_pack_t *pack, const void *data, size_t bytes);
void iq_pack_text(iq_pack_t *pack, const char *text); /* length, characters */

/* A message being read; `bad` once it was shorter than what was asked of it. */
typedef struct iq_unpack {
    const uint8_t *data;
    size_t left;
    bool bad;
} iq_unpack_t;

uint32_t iq_unpack_u32(iq_unpack_t *unpack);
uint64_t iq_unpack_u64(iq_unpack_t *unpack);
void iq_unpack_bytes(iq_unpack_t *unpack, void *data, size_t bytes);
/* At most room - 1 characters; what cannot be printed becomes '?', newlines stay. */
void iq_unpack_text(iq_unpack_t *unpack, char *text, size_t room);

typedef struct iq_frame {
    iq_frame_type_t type;
    const uint8_t *payload; /* valid until the connection is read or closed */
    size_t bytes;
} iq_control_frame_t;

typedef struct iq_conn {
    int fd; /* non-blocking; -1: none */
    size_t frame_limit;
    uint8_t *in;
    size_t in_begin, in_end;
    uint8_t *out;
    size_t out_begin, out_end, out_room;
} iq_conn_t;

typedef enum iq_read { IQ_READ_EMPTY, IQ_READ_MORE, IQ_READ_CLOSED } iq_read_t;
typedef enum iq_next { IQ_NEXT_NONE, IQ_NEXT_FRAME, IQ_NEXT_BAD } iq_next_t;

/* The connection owns fd from now on; a forked child closes its copy. */
void iq_conn_open(iq_conn_t *conn, int fd, size_t frame_limit);
void iq_conn_close(iq_conn_t *conn);
/* Allow longer frames from now on. false: out of memory. */
bool iq_conn_widen(iq_conn_t *conn, size_t frame_limit);
/* Read what has arrived. EMPTY: all of it; MORE: call again after iq_conn_next; CLOSED: nothing more will come, but frames may be
 * left. */
iq_read_t iq_conn_read(iq_conn_t *conn);
iq_next_t iq_conn_next(iq_conn_t *conn, iq_control_frame_t *frame);
/* Queue a frame whose payload is head and then body. false: out of memory. */
bool iq_conn_send(iq_conn_t *conn, iq_frame_type_t type, const iq_pack_t *head, const void *body, size_t body_bytes);
/* Write what the socket takes now. false: the connection is broken. */
bool iq_conn_flush(iq_conn_t *conn);
static inline bool iq_conn_pending(const iq_conn_t *conn) { return conn->out_end > conn->out_begin; }

/* Milliseconds from now to `time_ns` for poll: rounded up, at least 0. */
int iq_poll_ms(uint64_t time_ns);

/* ---- sockets (control_socket.c) ---- */

/* "unix:NAME" or "tcp:ADDRESS:PORT" */
#define IQ_ADDRESS_NAME_BYTES (IQ_ADDRESS_TEXT_BYTES + 16)
const char *iq_address_name(const iq_rendezvous_t *rendezvous, char name[IQ_ADDRESS_NAME_BYTES]);

/* Bind and listen at the rendezvous (TCP: on `interface` if it is not ""); a port of 0 is replaced by the one that was found. */
isgq_result_t iq_socket_listen(iq_rendezvous_t *rendezvous, const char *interface, int *fd);
/* The next connection, non-blocking, from our own user where the kernel can tell; -1: none now. */
int iq_socket_accept(int listen_fd, iq_address_kind_t kind);
/* Connect before the deadline; -1 with the cause in `reason`. */
int iq_socket_connect(const iq_rendezvous_t *rendezvous, uint64_t deadline_ns, char *reason, size_t reason_bytes);
/* Process id on the other side of a unix socket as seen from here, else 0. */
pid_t iq_socket_peer_pid(int fd);
/* Numeric address of an interface name or host name ("eth0", "10.0.0.1", "node1"). */
isgq_result_t iq_interface_address(const char *interface, char text[IQ_ADDRESS_TEXT_BYTES]);
bool iq_address_is_loopback(const char *text);

/* ---- meeting (control_hello.c, control_meet.c, control_join.c) ---- */

#define IQ_NONCE_BYTES 32

/* What both sides say of themselves, before any proof; the proofs cover it. */
typedef struct iq_hello {
    int32_t rank, nranks, version, pid;
    uint64_t process_space; /* process ids mean the same where it is equal */
    uint8_t nonce[IQ_NONCE_BYTES];
} iq_hello_t;

isgq_result_t iq_hello_init(iq_hello_t *hello, int rank, int nranks, int version);
isgq_result_t iq_random_bytes(void *data, size_t bytes);
uint64_t iq_process_space(void); /* of host and pid namespace */
void iq_hello_pack(iq_pack_t *pack, const iq_hello_t *hello);
bool iq_hello_unpack(const iq_control_frame_t *frame, iq_hello_t *hello);
/* The proof of "root" or "rank": covers the role, both hellos and the address. */
void iq_hello_prove(const iq_rendezvous_t *rendezvous, const char *role, const iq_hello_t *rank, const iq_hello_t *root,
                    uint8_t *proof);

/* "rank 3" or "ranks 1, 3 and 5", "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 12 more": those with flag false. Returns how many. */
int iq_name_missing(const bool *present, int nranks, char *text, size_t bytes);

/* ---- the channel ---- */

typedef struct iq_member {
    iq_conn_t conn;
    int rank;
    int pid;             /* as it told; for texts */
    int pidfd;           /* readable once that process is dead; -1: cannot be watched */
    bool left;           /* has called goodbye: its end is no death */
    bool ready, ended;   /* what the last poll said of its connection and its process */
    unsigned unanswered; /* pings */
} iq_member_t;

typedef enum iq_round_kind { IQ_ROUND_GATHER, IQ_ROUND_GOODBYE } iq_round_kind_t;

/* The allgather (or goodbye) that a caller of this rank waits for. Under the lock. */
typedef struct iq_round {
    uint64_t number;
    bool active, done;
    iq_round_kind_t kind;
    const void *send;
    uint8_t *recv;
    size_t bytes, received;
} iq_round_t;

/* What rank 0 has of the round that all ranks are in. The thread's own. */
typedef struct iq_collection {
    uint64_t number; /* last one begun */
    iq_round_kind_t kind;
    size_t bytes;
    int count, first; /* ranks that are in, the first of them */
    bool *present;    /* [nranks] */
    uint8_t *data;    /* [nranks * bytes] */
} iq_collection_t;

/* The first failure wins. Under the lock. */
typedef struct iq_failure {
    bool set, sent, told; /* sent to the other ranks, told to the listener */
    isgq_result_t result;
    int culprit;
    char text[IQ_ERROR_TEXT_BYTES];
} iq_failure_t;

typedef enum iq_report_kind { IQ_REPORT_STALL, IQ_REPORT_MISMATCH } iq_report_kind_t;

typedef struct iq_report {
    iq_report_kind_t kind;
    int rank;          /* who reports */
    int peer;          /* whom it awaits, or whose frame was strange */
    uint64_t sequence; /* the call it is in */
    uint64_t last;     /* mismatch: the last of the calls that may differ */
    char step[96];
} iq_report_t;

/* A rank's answer to a query. */
typedef struct iq_answer {
    bool answered, has_arguments;
    iq_rank_status_t status;
    char arguments[IQ_ARGUMENTS_TEXT_BYTES];
} iq_answer_t;

typedef struct iq_verdict {
    isgq_result_t result;
    int culprit;
    char text[IQ_ERROR_TEXT_BYTES];
} iq_verdict_t;

/* Rank 0's search for the rank at fault. The thread's own; there is at most one in a channel's life, for it ends in failure. */
typedef struct iq_search {
    bool active;
    iq_report_t report;
    iq_answer_t *answers; /* [nranks] */
    uint64_t end_ns, ask_again_ns;
} iq_search_t;

/* What callers ask the thread to do. */
#define IQ_REQUEST_ROUND 1u
#define IQ_REQUEST_LATE 2u
#define IQ_REQUEST_REPORT 4u
#define IQ_REQUEST_STOP 8u

struct iq_control {
    int rank, nranks;
    iq_member_t *members; /* rank 0: [nranks], its own entry unused; other ranks: one, which is rank 0 */
    int nmembers;
    struct pollfd *polls; /* room for 1 + 2 * nmembers */
    int wake_fd;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;

    /* under the lock */
    unsigned requests;
    bool listening;
    iq_control_events_t events;
    iq_failure_t failure;
    iq_round_t round;
    iq_report_t report;

    /* the thread's own */
    iq_collection_t collection;
    iq_search_t search;
    bool left;               /* goodbye is complete */
    uint64_t next_ping_ns;   /* rank 0 */
    uint64_t verdict_due_ns; /* other ranks: rank 0 must have spoken by then; 0: nothing is due */
};

static inline bool iq_control_is_root(const iq_control_t *control) { return control->rank == 0; }

/* control_meet.c, control_join.c: fill in control->members. */
isgq_result_t iq_meet(iq_control_t *control, const iq_rendezvous_t *rendezvous, int version, uint64_t deadline_ns);
isgq_result_t iq_join(iq_control_t *control, const iq_rendezvous_t *rendezvous, int version, uint64_t deadline_ns);
/* iq_control_open for a library of another version: tests. */
isgq_result_t iq_control_open_version(const iq_control_params_t *params, int version, iq_control_t **control);

void iq_member_open(iq_member_t *member, iq_conn_t *conn, const iq_hello_t *theirs, const iq_hello_t *ours);
void iq_member_close(iq_member_t *member);

/* control_thread.c */
void *iq_control_main(void *control);
void iq_control_wake(iq_control_t *control);
/* The communicator has failed, unless it had before. `sent`: all who must know do know. Any thread, without the lock. */
void iq_control_fail(iq_control_t *control, bool sent, isgq_result_t result, int culprit, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
bool iq_control_failed(iq_control_t *control);
void iq_abort_pack(iq_pack_t *pack, isgq_result_t result, int culprit, const char *text);
bool iq_abort_unpack(const iq_control_frame_t *frame, iq_verdict_t *verdict);

/* control_gather.c, all on the thread */
void iq_gather_begin(iq_control_t *control);
void iq_gather_contribution(iq_control_t *control, int rank, const iq_control_frame_t *frame);
void iq_gather_result(iq_control_t *control, const iq_control_frame_t *frame);
void iq_gather_late(iq_control_t *control, uint64_t number);

/* control_judge.c */
/* Do the arguments of that call differ between ranks that have made it? */
bool iq_judge_arguments(const iq_answer_t *answers, int nranks, uint64_t sequence, iq_verdict_t *verdict);
void iq_judge_stall(const iq_answer_t *answers, int nranks, const iq_report_t *report, iq_verdict_t *verdict);

/* control_search.c, all on the thread */
void iq_search_report(iq_control_t *control, const iq_report_t *report); /* this rank's own, or rank 0 got it */
void iq_search_report_frame(iq_control_t *control, int rank, const iq_control_frame_t *frame);
void iq_search_query(iq_control_t *control, const iq_control_frame_t *frame);
void iq_search_answer(iq_control_t *control, int rank, const iq_control_frame_t *frame);
void iq_search_tick(iq_control_t *control, uint64_t now_ns);
uint64_t iq_search_next_ns(const iq_control_t *control); /* when to call tick; UINT64_MAX: never */

/* ---- launchers (environment.c, rendezvous_file.c) ---- */

/* Like getenv: NULL if not set. */
typedef const char *(*iq_lookup_fn)(void *context, const char *name);

typedef enum iq_meeting_place { IQ_PLACE_UNIX, IQ_PLACE_TCP, IQ_PLACE_FILE } iq_meeting_place_t;

/* What the environment says about this job. */
typedef struct iq_launch {
    const char *launcher; /* "torchrun" */
    int rank, nranks;
    char job[128]; /* the job key, "" where no launcher gives one that all hosts know */
    iq_meeting_place_t place;
    const char *path;  /* file store */
    char address[256]; /* unix name or address */
    uint16_t port, port_count;
} iq_launch_t;

/* Pure but for what `lookup` says and `parent`, the parent's process id. */
isgq_result_t iq_launch_parse(iq_lookup_fn lookup, void *context, int parent, iq_launch_t *launch);

/* The pass phrase from a file that only its owner may read, into room bytes; *bytes is its length. */
isgq_result_t iq_secret_read(const char *path, char *phrase, size_t room, size_t *bytes);

/* The file store: rank 0 writes, others wait for a file of this job and count. */
isgq_result_t iq_rendezvous_file_publish(const char *path, const char *job, unsigned count, const isgq_unique_id_t *id);
isgq_result_t iq_rendezvous_file_await(const char *path, const char *job, unsigned count, uint64_t deadline_ns,
                                       isgq_unique_id_t *id);

#endif
