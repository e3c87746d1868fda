/* SPDX-License-Identifier: Apache-2.0 */
/* What the host emulation believes of NCCL's interface, compared with NCCL's own header. Compiled, never run. */
#include "bindings/nccl/host_types.h"

#include <nccl.h>

#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
#define AT(field, theirs) _Static_assert(offsetof(iq_host_config_t, field) == offsetof(ncclConfig_t, theirs), #theirs)

SAME(HOST_SUCCESS, ncclSuccess);
SAME(HOST_UNHANDLED_CUDA, ncclUnhandledCudaError);
SAME(HOST_SYSTEM, ncclSystemError);
SAME(HOST_INTERNAL, ncclInternalError);
SAME(HOST_INVALID_ARGUMENT, ncclInvalidArgument);
SAME(HOST_INVALID_USAGE, ncclInvalidUsage);
SAME(HOST_REMOTE, ncclRemoteError);
SAME(HOST_IN_PROGRESS, ncclInProgress);
SAME(HOST_AVG, ncclAvg);
SAME(HOST_BUILT_IN_OPS, ncclNumOps);
SAME(HOST_ID_BYTES, sizeof(ncclUniqueId));
SAME(HOST_SPLIT_NOCOLOR, NCCL_SPLIT_NOCOLOR);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 24, 0)
SAME(HOST_FP8_E4M3, ncclFloat8e4m3);
SAME(HOST_FP8_E5M2, ncclFloat8e5m2);
SAME(HOST_TYPES, ncclNumTypes);
#endif
AT(size, size);
AT(magic, magic);
AT(version, version);
AT(blocking, blocking);
AT(net_name, netName);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 27, 0)
AT(comm_name, commName);
#endif
