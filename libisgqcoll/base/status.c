/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last error of each thread.
 *
 * A text is built in a buffer of its own before it replaces the old one, so that a new error may quote the last. Where in the
 * source it happened is for developers: it goes to the debug log, never into the text that users see.
 */
#include "base/status.h"

#include "base/log.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char last_error[IQ_ERROR_TEXT_BYTES];

isgq_result_t iq_fail(isgq_result_t code, const char *file, int line, const char *format, ...)
{
    char text[IQ_ERROR_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    for (char *c = text; *c != '\0'; c++) /* callers' texts may be quoted in it; an error stays one line */
        if (iscntrl((unsigned char)*c))
            *c = '?';
    iq_set_last_error(text);
    IQ_DEBUG("%s (status %d, %s:%d)", text, (int)code, file, line);
    return code;
}

const char *iq_last_error(void) { return last_error; }

void iq_set_last_error(const char *text)
{
    size_t length = text == NULL ? 0 : strnlen(text, sizeof(last_error) - 1);
    if (length > 0)
        memmove(last_error, text, length); /* memmove: the text may be the last error itself */
    last_error[length] = '\0';
}

_Noreturn void iq_assert_failed(const char *condition, const char *file, int line)
{
    IQ_ERROR("internal error: %s is false at %s:%d", condition, file, line);
    __builtin_trap();
}
