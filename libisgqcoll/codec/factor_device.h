/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The factored codec on device memory: what kernels/cuda/factor_module.h is asked for. The same peaks, blobs and products as on
 * the host, bit for bit.
 */
#ifndef ISGQ_CODEC_FACTOR_DEVICE_H
#define ISGQ_CODEC_FACTOR_DEVICE_H

#include "codec/device.h"
#include "codec/factor.h"

/* A rank's call as the module takes it; blob_bytes must not be 0 (iq_factor_blob_bytes). `replays` may be NULL. */
iq_cuda_factor_call_t iq_factor_on_device(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const uint32_t *replays);

/* Device memory for state, peaks, messages of `ranks` ranks and their rows; (size_t)1 << 60 if no device can do the call.
 * Equal on all ranks. */
size_t iq_factor_device_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t ranks);

#endif
