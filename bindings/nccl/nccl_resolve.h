/* SPDX-License-Identifier: Apache-2.0 */
/* Between the trampolines and what answers them. */
#ifndef ISGQ_NCCL_RESOLVE_H
#define ISGQ_NCCL_RESOLVE_H

#include <stddef.h>

/* Numbers that programs know NCCL's results by. */
enum { IQ_NCCL_SUCCESS = 0, IQ_NCCL_SYSTEM_ERROR = 2, IQ_NCCL_INVALID_ARGUMENT = 4, IQ_NCCL_INVALID_USAGE = 5 };

/* The address that calls of symbol `index` (its place in nccl_symbols.def) go to from now on; called by the trampolines. */
void *iq_nccl_resolve(size_t index);

/* The real library, by path and never by name, since that would find this object; NULL: there is none, and `reason` says where it was looked for. */
void *iq_nccl_open_real(char *reason, size_t room);

/* Is there a GPU that CUDA can use? Opens the driver, which costs some milliseconds. */
int iq_nccl_has_gpu(void);

#endif
