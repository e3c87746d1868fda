/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines, built on the stack and written with one write(), so that the lines of several ranks do not mix.
 *
 * The level lives here as an atomic and not in the configuration, because the configuration itself has things to say while it is
 * being read (config.c hands the level over as soon as it knows it, and speaks only afterwards).
 */
#include "base/log.h"

#include "base/config.h"
#include "base/util.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES 1024

static const char *const level_names[] = {"none", "error", "warn", "info", "debug", "trace"};

static atomic_int enabled_level = -1; /* -1: the environment has not been read */
static _Thread_local int own_rank, own_nranks;

static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static iq_log_sink_fn log_sink;
static void *log_sink_context;

bool iq_log_set_level(const char *name)
{
    for (size_t level = 0; level < IQ_ARRAY_SIZE(level_names); level++) {
        if (strcmp(name, level_names[level]) == 0) {
            atomic_store_explicit(&enabled_level, (int)level, memory_order_relaxed);
            return true;
        }
    }
    return false;
}

int iq_log_enabled(iq_log_level_t level)
{
    if (atomic_load_explicit(&enabled_level, memory_order_relaxed) < 0)
        (void)iq_config();
    return (int)level <= atomic_load_explicit(&enabled_level, memory_order_relaxed);
}

/* Texts may quote what strangers sent: nothing in them may look like a line or a terminal command of its own. */
static void hide_control_characters(char *line)
{
    for (; *line != '\0'; line++)
        if ((unsigned char)*line < 0x20 || *line == 0x7f)
            *line = '?';
}

static void write_stderr(char *line)
{
    size_t length = strlen(line), written = 0;
    int saved_errno = errno; /* a log line must not change what the caller is about to report */
    line[length++] = '\n';
    while (written < length) {
        ssize_t step = write(STDERR_FILENO, line + written, length - written);
        if (step > 0)
            written += (size_t)step;
        else if (errno != EINTR)
            break;
    }
    errno = saved_errno;
}

static size_t write_prefix(char *line, size_t bytes, iq_log_level_t level)
{
    int length = own_nranks > 0 ? snprintf(line, bytes, "isgq %d/%d %s: ", own_rank, own_nranks, level_names[level])
                                : snprintf(line, bytes, "isgq %s: ", level_names[level]);
    return (size_t)length;
}

void iq_log_write(iq_log_level_t level, const char *format, ...)
{
    char line[LINE_BYTES + 1]; /* + 1: room for the newline */
    size_t length = write_prefix(line, LINE_BYTES, level);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + length, LINE_BYTES - length, format, arguments);
    va_end(arguments);
    hide_control_characters(line);

    pthread_mutex_lock(&sink_lock);
    iq_log_sink_fn sink = log_sink;
    void *context = log_sink_context;
    pthread_mutex_unlock(&sink_lock);
    if (sink != NULL)
        sink(context, level, line);
    else
        write_stderr(line);
}

void iq_log_identity(int rank, int nranks)
{
    own_rank = rank;
    own_nranks = nranks;
}

void iq_log_set_sink(iq_log_sink_fn sink, void *context)
{
    pthread_mutex_lock(&sink_lock);
    log_sink = sink;
    log_sink_context = context;
    pthread_mutex_unlock(&sink_lock);
}
