/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines on stderr from inside somebody else's program: few, one write each, at the level of ISGQ_LOG (error, warn, info, debug).
 */
#ifndef ISGQ_PRELOAD_SAY_H
#define ISGQ_PRELOAD_SAY_H

#include <stdbool.h>

typedef enum iq_say_level { IQ_SAY_ERROR = 1, IQ_SAY_WARN, IQ_SAY_INFO, IQ_SAY_DEBUG } iq_say_level_t;

/* Who speaks: "isgq mpi", and the rank once it is known (-1: not yet). */
void iq_say_as(const char *who, int rank);

/* Would such a line be written? Cheap. */
bool iq_says(iq_say_level_t level);

void iq_say(iq_say_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
