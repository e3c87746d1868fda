/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The progress line; see progress.h.
 */
#include "tools/common/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define CLEAR_TO_END "\033[K"

void iq_progress_show(const char *format, ...)
{
    char text[160];
    va_list arguments;

    if (!isatty(STDERR_FILENO))
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    fprintf(stderr, "\r%s" CLEAR_TO_END, text);
}

void iq_progress_clear(void)
{
    if (isatty(STDERR_FILENO))
        fputs("\r" CLEAR_TO_END, stderr);
}
