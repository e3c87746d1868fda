/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file store: rank 0 writes its id into a file that all ranks can see, only their user can read, and that appears complete or
 * not at all. It names job and count, and rank 0's process, so that ranks do not fall for what an earlier job left behind.
 */
#include "transport/control_internal.h"

#include "base/util.h"
#include "transport/auth.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_HEAD "isgqcoll rendezvous 1\njob "
#define FILE_FORMAT FILE_HEAD "%.127s\ncount %u\nprocess %llx %d\nid %s\n"
#define FILE_BYTES 1024
#define PAUSE_NS (20 * IQ_MILLISECOND)

static void to_hex(const isgq_unique_id_t *id, char hex[2 * ISGQ_UNIQUE_ID_BYTES + 1])
{
    for (size_t i = 0; i < sizeof(id->internal); i++)
        snprintf(hex + 2 * i, 3, "%02x", (unsigned)(uint8_t)id->internal[i]);
}

static bool from_hex(const char *hex, isgq_unique_id_t *id)
{
    for (size_t i = 0; i < sizeof(id->internal); i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return false;
        id->internal[i] = (char)byte;
    }
    return true;
}

static bool write_all(int fd, const char *text, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t wrote = write(fd, text + done, length - done);
        if (wrote < 0 && errno != EINTR)
            return false;
        done += wrote > 0 ? (size_t)wrote : 0;
    }
    return true;
}

isgq_result_t iq_rendezvous_file_publish(const char *path, const char *job, unsigned count, const isgq_unique_id_t *id)
{
    char draft[PATH_MAX], text[FILE_BYTES], hex[2 * ISGQ_UNIQUE_ID_BYTES + 1];
    if (snprintf(draft, sizeof(draft), "%s.tmp.%d", path, (int)getpid()) >= (int)sizeof(draft))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "ISGQ_RENDEZVOUS: the path is too long");
    to_hex(id, hex);
    int length =
        snprintf(text, sizeof(text), FILE_FORMAT, job, count, (unsigned long long)iq_process_space(), (int)getpid(), hex);

    unlink(draft); /* of an earlier process of this number */
    int fd = open(draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "cannot create %s: %s", draft, strerror(errno));
    bool written = write_all(fd, text, (size_t)length) && fsync(fd) == 0;
    written = close(fd) == 0 && written && rename(draft, path) == 0;
    int error = errno;
    iq_auth_wipe(text, sizeof(text));
    iq_auth_wipe(hex, sizeof(hex));
    if (written)
        return ISGQ_SUCCESS;
    unlink(draft);
    return IQ_FAIL(ISGQ_ERR_SYSTEM, "cannot write %s: %s", path, strerror(error));
}

/* Bytes read, -1 with a reason if the file is missing or not only ours. */
static ssize_t read_private(const char *path, char *text, size_t room, const char **reason)
{
    struct stat status;
    ssize_t bytes = -1;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        *reason = strerror(errno);
        return -1;
    }
    if (fstat(fd, &status) != 0)
        *reason = strerror(errno);
    else if (!S_ISREG(status.st_mode))
        *reason = "it is no regular file";
    else if (status.st_uid != geteuid())
        *reason = "it belongs to another user";
    else if ((status.st_mode & 077) != 0)
        *reason = "others than its owner may use it; chmod 600";
    else if ((bytes = read(fd, text, room)) < 0)
        *reason = strerror(errno);
    close(fd);
    return bytes;
}

/* Is this the file of our job, this communicator and a rank 0 that may still live? */
static bool parse_file(const char *text, const char *job, unsigned count, isgq_unique_id_t *id, const char **reason)
{
    char found_job[128] = "", hex[2 * ISGQ_UNIQUE_ID_BYTES + 1] = "", expected[FILE_BYTES];
    unsigned long long space = 0;
    unsigned found_count = 0;
    int process = 0;
    const char *rest = strstr(text, "\ncount ");

    if (strncmp(text, FILE_HEAD, strlen(FILE_HEAD)) == 0) /* no sscanf: the job may be empty */
        snprintf(found_job, sizeof(found_job), "%.*s", (int)strcspn(text + strlen(FILE_HEAD), "\n"), text + strlen(FILE_HEAD));
    if (rest != NULL)
        sscanf(rest, "\ncount %u\nprocess %llx %d\nid %256[0-9a-f]", &found_count, &space, &process, hex);
    snprintf(expected, sizeof(expected), FILE_FORMAT, found_job, found_count, space, process, hex);
    if (strcmp(text, expected) != 0 || strlen(hex) != 2 * ISGQ_UNIQUE_ID_BYTES || !from_hex(hex, id))
        *reason = "it is no rendezvous file";
    else if (strcmp(found_job, job) != 0 || found_count != count)
        *reason = "it is of another job or communicator";
    else if (space == iq_process_space() && process > 0 && kill(process, 0) != 0 && errno == ESRCH)
        *reason = "the process that wrote it has ended";
    else
        return true;
    return false;
}

isgq_result_t iq_rendezvous_file_await(const char *path, const char *job, unsigned count, uint64_t deadline_ns,
                                       isgq_unique_id_t *id)
{
    const char *reason = "";
    char text[FILE_BYTES];

    for (;;) {
        ssize_t bytes = read_private(path, text, sizeof(text) - 1, &reason);
        if (bytes >= 0) {
            text[bytes] = '\0';
            bool found = parse_file(text, job, count, id, &reason);
            iq_auth_wipe(text, sizeof(text));
            if (found)
                return ISGQ_SUCCESS;
        }
        uint64_t now_ns = iq_now_ns();
        if (now_ns >= deadline_ns)
            return IQ_FAIL(ISGQ_ERR_TIMEOUT, "rank 0 never wrote %s: %s", path, reason);
        uint64_t pause_ns = deadline_ns - now_ns < PAUSE_NS ? deadline_ns - now_ns : PAUSE_NS;
        poll(NULL, 0, (int)(pause_ns / IQ_MILLISECOND) + 1);
    }
}

isgq_result_t iq_secret_read(const char *path, char *phrase, size_t room, size_t *bytes)
{
    const char *reason = "";
    ssize_t got = read_private(path, phrase, room, &reason);

    if (got < 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "ISGQ_SECRET_FILE %s: %s", path, reason);
    if ((size_t)got == room)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "ISGQ_SECRET_FILE %s: longer than %zu bytes", path, room - 1);
    while (got > 0 && (phrase[got - 1] == '\n' || phrase[got - 1] == '\r'))
        got--;
    if (got == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "ISGQ_SECRET_FILE %s: it is empty", path);
    *bytes = (size_t)got;
    return ISGQ_SUCCESS;
}
