/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines on stderr: "isgq 3/8 warn: text". Silent when all is well (ISGQ_LOG, default warn).
 *
 * Volume: error, a call fails; warn, it works but worse than asked; info, a few lines per communicator; debug, per call;
 * trace, per step. The message is built only if its level is on.
 */
#ifndef ISGQ_BASE_LOG_H
#define ISGQ_BASE_LOG_H

#include <stdbool.h>

typedef enum iq_log_level { IQ_LOG_NONE, IQ_LOG_ERROR, IQ_LOG_WARN, IQ_LOG_INFO, IQ_LOG_DEBUG, IQ_LOG_TRACE } iq_log_level_t;

#define IQ_LOG(level, ...)                     \
    do {                                       \
        if (iq_log_enabled(level))             \
            iq_log_write((level), __VA_ARGS__); \
    } while (0)
#define IQ_ERROR(...) IQ_LOG(IQ_LOG_ERROR, __VA_ARGS__)
#define IQ_WARN(...) IQ_LOG(IQ_LOG_WARN, __VA_ARGS__)
#define IQ_INFO(...) IQ_LOG(IQ_LOG_INFO, __VA_ARGS__)
#define IQ_DEBUG(...) IQ_LOG(IQ_LOG_DEBUG, __VA_ARGS__)
#define IQ_TRACE(...) IQ_LOG(IQ_LOG_TRACE, __VA_ARGS__)

int iq_log_enabled(iq_log_level_t level);

/* For config.c: the level by name; false if there is no such level. */
bool iq_log_set_level(const char *name);

void iq_log_write(iq_log_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Who the calling thread speaks for: rank and nranks of the prefix; nranks 0 drops it. */
void iq_log_identity(int rank, int nranks);

/* Where lines go instead of stderr (tests); NULL restores stderr. The sink is called without locks. */
typedef void (*iq_log_sink_fn)(void *context, iq_log_level_t level, const char *line);
void iq_log_set_sink(iq_log_sink_fn sink, void *context);

#endif
