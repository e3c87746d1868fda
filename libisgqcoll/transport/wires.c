/* SPDX-License-Identifier: Apache-2.0 */
/* The table of wires. Adding one is its file and its row here. */
#include "transport/wire.h"

extern const iq_wire_ops_t iq_wire_cuda_ipc, iq_wire_nccl;

const iq_wire_ops_t *const iq_wires[] = {&iq_wire_cuda_ipc, &iq_wire_nccl, NULL};
