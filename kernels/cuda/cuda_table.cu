/* SPDX-License-Identifier: Apache-2.0 */
/* Module "cuda": its table, its errors and what it says about devices. */
#include "kernels/cuda/factor_parts.h"

#include <stdio.h>

const iq_services_t *iq_cuda_services;

static void start(const iq_services_t *services) { iq_cuda_services = services; }

isgq_result_t iq_cuda_failed(cudaError_t error, const char *function, const char *file, int line)
{
    isgq_result_t code = ISGQ_ERR_CUDA;
    if (error == cudaErrorMemoryAllocation)
        code = ISGQ_ERR_NO_MEMORY;
    else if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorNoKernelImageForDevice ||
             error == cudaErrorNotSupported)
        code = ISGQ_ERR_UNSUPPORTED;
    (void)cudaGetLastError();
    return iq_cuda_services->fail(code, file, line, "%s: %s (%s)", function, cudaGetErrorString(error), cudaGetErrorName(error));
}

static isgq_result_t devices(int *count)
{
    int found = 0;
    cudaError_t error = cudaGetDeviceCount(&found);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cudaGetDeviceCount: %s (%s)", cudaGetErrorString(error), cudaGetErrorName(error));
    }
    if (found <= 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cudaGetDeviceCount: this machine has no GPU that CUDA may use");
    *count = found;
    return ISGQ_SUCCESS;
}

static isgq_result_t describe(int device, iq_cuda_device_t *description)
{
    cudaDeviceProp properties;
    iq_cuda_device_t found = {};
    CUDA_TRY(cudaGetDeviceProperties, &properties, device);
    CUDA_TRY(cudaDeviceGetPCIBusId, found.pci, (int)sizeof(found.pci), device);
    snprintf(found.name, sizeof(found.name), "%.63s", properties.name);
    found.major = properties.major;
    found.minor = properties.minor;
    found.processors = properties.multiProcessorCount;
    found.bytes = properties.totalGlobalMem;
    found.awaits_words = iq_cuda_can_await();
    found.orders_ranks = iq_cuda_orders_ranks(device);
    *description = found;
    return ISGQ_SUCCESS;
}

static isgq_result_t current(int *device)
{
    CUDA_TRY(cudaGetDevice, device);
    return ISGQ_SUCCESS;
}

static isgq_result_t use(int device)
{
    CUDA_TRY(cudaSetDevice, device);
    return ISGQ_SUCCESS;
}

static isgq_result_t warm_up(int device)
{
    ON_DEVICE(device);
    IQ_TRY(iq_cuda_warm_between(device));
    IQ_TRY(iq_cuda_warm_measure(device));
    IQ_TRY(iq_cuda_warm_moments(device));
    IQ_TRY(iq_cuda_warm_map(device));
    IQ_TRY(iq_cuda_warm_combine(device));
    IQ_TRY(iq_cuda_warm_product(device));
    IQ_TRY(iq_cuda_warm_factor(device));
    IQ_TRY(iq_cuda_warm_level(device));
    IQ_TRY(iq_cuda_warm_feedback(device));
    IQ_TRY(iq_cuda_warm_exponent(device));
    return iq_cuda_warm_native(device);
}

/* In the order of iq_cuda_module_t: C++17 knows no names here. */
extern "C" {
extern const iq_cuda_module_t iq_module_cuda __attribute__((visibility("default")));
const iq_cuda_module_t iq_module_cuda = {
    {IQ_MODULE_ABI, start},
    devices,
    describe,
    current,
    use,
    iq_cuda_in_use,
    warm_up,
    iq_cuda_locate,
    iq_cuda_alloc,
    iq_cuda_release,
    iq_cuda_pin,
    iq_cuda_unpin,
    iq_cuda_stream_create,
    iq_cuda_stream_destroy,
    iq_cuda_stream_capturing,
    iq_cuda_event_create,
    iq_cuda_event_destroy,
    iq_cuda_event_record,
    iq_cuda_event_poll,
    iq_cuda_wait_event,
    iq_cuda_await,
    iq_cuda_flags,
    iq_cuda_shared_alloc,
    iq_cuda_shared_free,
    iq_cuda_shared_export,
    iq_cuda_shared_open,
    iq_cuda_shared_close,
    iq_cuda_reach,
    iq_cuda_advance,
    iq_cuda_copy,
    iq_cuda_clear,
    iq_cuda_run_measure,
    iq_cuda_run_map,
    iq_cuda_run_reduce,
    iq_cuda_run_divide,
    iq_cuda_run_product,
    iq_cuda_run_convert,
    iq_cuda_run_combine,
    &iq_cuda_factor_table,
    iq_cuda_run_moments,
    iq_cuda_run_rescale,
    &iq_cuda_level_table,
    iq_cuda_run_feedback,
    iq_cuda_run_exponent,
};
}
