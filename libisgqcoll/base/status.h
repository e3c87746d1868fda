/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors: one status type, one text per thread, two macros.
 *
 * The first function that knows the cause calls IQ_FAIL; everyone else forwards the status silently. The text names the
 * operation, the rank at fault where there is one, and the offending value.
 */
#ifndef ISGQ_BASE_STATUS_H
#define ISGQ_BASE_STATUS_H

#include "isgqcoll.h"

#include <stdbool.h>

/* Record what went wrong as this thread's last error, log it at level debug; yields `code`. */
#define IQ_FAIL(code, ...) iq_fail((code), __FILE__, __LINE__, __VA_ARGS__)

/* Return from the calling function if `expr` fails. Not for functions that have something to undo. */
#define IQ_TRY(expr)                        \
    do {                                    \
        isgq_result_t iq_try_ = (expr);     \
        if (iq_try_ != ISGQ_SUCCESS)        \
            return iq_try_;                 \
    } while (0)

/* A mistake inside the library. On in debug and sanitizer builds, free otherwise. */
#ifdef ISGQ_ASSERT
#define iq_assert(condition) ((condition) ? (void)0 : iq_assert_failed(#condition, __FILE__, __LINE__))
#else
#define iq_assert(condition) ((void)sizeof(condition))
#endif

#define IQ_ERROR_TEXT_BYTES 512

isgq_result_t iq_fail(isgq_result_t code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* This thread's last error text; "" if nothing failed yet. */
const char *iq_last_error(void);

/* Replace this thread's last error text, for errors that another thread found. */
void iq_set_last_error(const char *text);

_Noreturn void iq_assert_failed(const char *condition, const char *file, int line);

#endif
