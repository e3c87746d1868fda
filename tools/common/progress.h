/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line on stderr that says how far long work has come; nothing at all unless stderr is a terminal.
 */
#ifndef ISGQ_TOOLS_PROGRESS_H
#define ISGQ_TOOLS_PROGRESS_H

/* Replace the line. */
void iq_progress_show(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Remove the line, before anything else is printed. */
void iq_progress_clear(void);

#endif
