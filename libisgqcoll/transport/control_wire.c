/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames over non-blocking stream sockets. Input is read into one buffer that holds the longest frame allowed, so a sender can
 * make us neither wait nor allocate; output is queued and leaves when the socket takes it. A forked child keeps none of them.
 */
#include "transport/control_internal.h"

#include "base/util.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void store(uint8_t *p, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t load(const uint8_t *p, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)p[i] << (8 * i);
    return value;
}

void iq_pack_bytes(iq_pack_t *pack, const void *data, size_t bytes)
{
    iq_assert(bytes <= sizeof(pack->data) - pack->used);
    if (bytes > 0)
        memcpy(pack->data + pack->used, data, bytes);
    pack->used += bytes;
}

void iq_pack_u32(iq_pack_t *pack, uint32_t value)
{
    uint8_t bytes[4];
    store(bytes, value, 4);
    iq_pack_bytes(pack, bytes, sizeof(bytes));
}

void iq_pack_u64(iq_pack_t *pack, uint64_t value)
{
    uint8_t bytes[8];
    store(bytes, value, 8);
    iq_pack_bytes(pack, bytes, sizeof(bytes));
}

void iq_pack_text(iq_pack_t *pack, const char *text)
{
    size_t length = strnlen(text, IQ_ERROR_TEXT_BYTES - 1);
    iq_pack_u32(pack, (uint32_t)length);
    iq_pack_bytes(pack, text, length);
}

static const uint8_t *take(iq_unpack_t *unpack, size_t bytes)
{
    const uint8_t *p = unpack->data;
    if (bytes > unpack->left) {
        unpack->bad = true;
        unpack->left = 0;
        return NULL;
    }
    unpack->data += bytes;
    unpack->left -= bytes;
    return p;
}

uint32_t iq_unpack_u32(iq_unpack_t *unpack)
{
    const uint8_t *p = take(unpack, 4);
    return p == NULL ? 0 : (uint32_t)load(p, 4);
}

uint64_t iq_unpack_u64(iq_unpack_t *unpack)
{
    const uint8_t *p = take(unpack, 8);
    return p == NULL ? 0 : load(p, 8);
}

void iq_unpack_bytes(iq_unpack_t *unpack, void *data, size_t bytes)
{
    const uint8_t *p = take(unpack, bytes);
    if (p != NULL)
        memcpy(data, p, bytes);
    else
        memset(data, 0, bytes);
}

void iq_unpack_text(iq_unpack_t *unpack, char *text, size_t room)
{
    size_t length = iq_unpack_u32(unpack);
    const uint8_t *p = take(unpack, length);
    size_t kept = p == NULL ? 0 : iq_min(length, room - 1);
    for (size_t i = 0; i < kept; i++)
        text[i] = p[i] == '\n' || (p[i] >= 0x20 && p[i] != 0x7f) ? (char)p[i] : '?';
    text[kept] = '\0';
}

/* ---- forks ---- */

/*
 * While a forked child (a data loader, say) holds a copy of a connection, its end is not seen, even if this process is killed. So
 * a child closes its copies at once. Descriptors are noted and closed under a lock that a fork takes too: what is noted is ours.
 */
#define NOTED_FDS 65536 /* higher ones would only be seen later, when their child ends */

static pthread_once_t forks_once = PTHREAD_ONCE_INIT;
static pthread_mutex_t noted_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t noted[NOTED_FDS / 64];

static void before_fork(void) { pthread_mutex_lock(&noted_lock); }

static void after_fork(void) { pthread_mutex_unlock(&noted_lock); }

/* Closes, no more: a shutdown would end the parent's connection too. */
static void after_fork_in_child(void)
{
    for (int i = 0; i < NOTED_FDS / 64; i++)
        for (; noted[i] != 0; noted[i] &= noted[i] - 1)
            close(64 * i + __builtin_ctzll(noted[i]));
    after_fork();
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

static void note_fd(int fd)
{
    pthread_once(&forks_once, watch_forks);
    pthread_mutex_lock(&noted_lock);
    if (fd >= 0 && fd < NOTED_FDS)
        noted[fd / 64] |= UINT64_C(1) << fd % 64;
    pthread_mutex_unlock(&noted_lock);
}

/* Not what after_fork_in_child has closed: its number may be another file by now. */
static void close_noted_fd(int fd)
{
    pthread_mutex_lock(&noted_lock);
    if (fd >= NOTED_FDS) {
        close(fd);
    } else if (fd >= 0 && (noted[fd / 64] >> fd % 64 & 1) != 0) {
        noted[fd / 64] &= ~(UINT64_C(1) << fd % 64);
        close(fd);
    }
    pthread_mutex_unlock(&noted_lock);
}

/* ---- connections ---- */

void iq_conn_open(iq_conn_t *conn, int fd, size_t frame_limit)
{
    memset(conn, 0, sizeof(*conn));
    conn->fd = fd;
    conn->frame_limit = frame_limit;
    note_fd(fd);
}

void iq_conn_close(iq_conn_t *conn)
{
    close_noted_fd(conn->fd);
    free(conn->in);
    free(conn->out);
    memset(conn, 0, sizeof(*conn));
    conn->fd = -1;
}

bool iq_conn_widen(iq_conn_t *conn, size_t frame_limit)
{
    if (conn->in != NULL) {
        uint8_t *in = realloc(conn->in, IQ_FRAME_HEADER_BYTES + frame_limit);
        if (in == NULL)
            return false;
        conn->in = in;
    }
    conn->frame_limit = frame_limit;
    return true;
}

iq_read_t iq_conn_read(iq_conn_t *conn)
{
    size_t room = IQ_FRAME_HEADER_BYTES + conn->frame_limit;

    if (conn->in == NULL)
        conn->in = malloc(room);
    if (conn->in == NULL)
        return IQ_READ_CLOSED;
    if (conn->in_begin > 0) {
        memmove(conn->in, conn->in + conn->in_begin, conn->in_end - conn->in_begin);
        conn->in_end -= conn->in_begin;
        conn->in_begin = 0;
    }
    while (conn->in_end < room) {
        ssize_t got = recv(conn->fd, conn->in + conn->in_end, room - conn->in_end, 0);
        if (got > 0)
            conn->in_end += (size_t)got;
        else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return IQ_READ_EMPTY;
        else if (got == 0 || errno != EINTR)
            return IQ_READ_CLOSED;
    }
    return IQ_READ_MORE;
}

iq_next_t iq_conn_next(iq_conn_t *conn, iq_control_frame_t *frame)
{
    size_t have = conn->in_end - conn->in_begin;
    if (have < IQ_FRAME_HEADER_BYTES)
        return IQ_NEXT_NONE;

    const uint8_t *p = conn->in + conn->in_begin;
    size_t length = (size_t)load(p + 8, 4);
    if (load(p, 4) != IQ_CONTROL_MAGIC || load(p + 4, 2) != IQ_FRAME_VERSION || length > conn->frame_limit)
        return IQ_NEXT_BAD;
    if (have < IQ_FRAME_HEADER_BYTES + length)
        return IQ_NEXT_NONE;

    *frame = (iq_control_frame_t){.type = (iq_frame_type_t)load(p + 6, 2), .payload = p + IQ_FRAME_HEADER_BYTES, .bytes = length};
    conn->in_begin += IQ_FRAME_HEADER_BYTES + length;
    return IQ_NEXT_FRAME;
}

static bool make_room(iq_conn_t *conn, size_t bytes)
{
    if (conn->out_begin == conn->out_end)
        conn->out_begin = conn->out_end = 0;
    if (bytes <= conn->out_room - conn->out_end)
        return true;
    size_t room = iq_max(2 * conn->out_room, iq_align_up(conn->out_end + bytes, 1024));
    uint8_t *out = realloc(conn->out, room);
    if (out == NULL)
        return false;
    conn->out = out;
    conn->out_room = room;
    return true;
}

bool iq_conn_send(iq_conn_t *conn, iq_frame_type_t type, const iq_pack_t *head, const void *body, size_t body_bytes)
{
    size_t head_bytes = head == NULL ? 0 : head->used;

    if (!make_room(conn, IQ_FRAME_HEADER_BYTES + head_bytes + body_bytes))
        return false;
    uint8_t *p = conn->out + conn->out_end;
    store(p, IQ_CONTROL_MAGIC, 4);
    store(p + 4, IQ_FRAME_VERSION, 2);
    store(p + 6, (uint64_t)type, 2);
    store(p + 8, head_bytes + body_bytes, 4);
    if (head_bytes > 0)
        memcpy(p + IQ_FRAME_HEADER_BYTES, head->data, head_bytes);
    if (body_bytes > 0)
        memcpy(p + IQ_FRAME_HEADER_BYTES + head_bytes, body, body_bytes);
    conn->out_end += IQ_FRAME_HEADER_BYTES + head_bytes + body_bytes;
    return true;
}

bool iq_conn_flush(iq_conn_t *conn)
{
    while (iq_conn_pending(conn)) {
        ssize_t sent = send(conn->fd, conn->out + conn->out_begin, conn->out_end - conn->out_begin, MSG_NOSIGNAL);
        if (sent >= 0)
            conn->out_begin += (size_t)sent;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return true;
        else if (errno != EINTR)
            return false;
    }
    return true;
}

int iq_poll_ms(uint64_t time_ns)
{
    uint64_t now = iq_now_ns();
    if (time_ns <= now)
        return 0;
    uint64_t ms = (time_ns - now + IQ_MILLISECOND - 1) / IQ_MILLISECOND;
    return ms > 3600000 ? 3600000 : (int)ms;
}
