/* SPDX-License-Identifier: Apache-2.0 */
/* One line, put together first and written at once, so that lines of several ranks do not mix. */
#include "bindings/preload/say.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *speaker = "isgq";
static _Atomic int speaker_rank = -1;
static _Atomic int most; /* 0: ISGQ_LOG was not read yet */

void iq_say_as(const char *who, int rank)
{
    speaker = who;
    speaker_rank = rank;
}

/* Unknown words are for the library to complain about. */
static int level_of(const char *text)
{
    static const char *const names[] = {"none", "error", "warn", "info", "debug", "trace"};
    for (int i = 0; text != NULL && i < (int)(sizeof(names) / sizeof(names[0])); i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return IQ_SAY_WARN;
}

bool iq_says(iq_say_level_t level)
{
    int now = most;
    if (now == 0)
        most = now = level_of(secure_getenv("ISGQ_LOG")) + 1;
    return (int)level < now;
}

void iq_say(iq_say_level_t level, const char *format, ...)
{
    char line[768];
    size_t room = sizeof(line) - 1; /* for the end of the line */
    va_list arguments;
    if (!iq_says(level))
        return;
    int rank = speaker_rank;
    int used = rank < 0 ? snprintf(line, room, "%s: ", speaker) : snprintf(line, room, "%s, rank %d: ", speaker, rank);
    va_start(arguments, format);
    int more = vsnprintf(line + used, room - (size_t)used, format, arguments);
    va_end(arguments);
    size_t length = strnlen(line, room - 1);
    (void)more;
    line[length++] = '\n';
    (void)!write(STDERR_FILENO, line, length);
}
