/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every file of module "cuda" needs: failures as sentences, the caller's current device left alone, and launches. A kernel is
 * launched on as many blocks as are resident at once and strides over its work.
 */
#ifndef ISGQ_KERNELS_CUDA_CUDA_COMMON_H
#define ISGQ_KERNELS_CUDA_CUDA_COMMON_H

#include <cuda_runtime.h>

#ifndef _Noreturn
#define _Noreturn [[noreturn]] /* the library's headers are C11 */
#endif
#include "kernels/cuda/cuda_module.h"

/* A module links nothing of the library: IQ_FAIL goes through the services that it was given. */
extern const iq_services_t *iq_cuda_services;
#define iq_fail (iq_cuda_services->fail)

/* A failure of `function` in CUDA's own words. Forgets the error, so that no later call reports it again. */
isgq_result_t iq_cuda_failed(cudaError_t error, const char *function, const char *file, int line);

/* Call a function of CUDA; return from the calling function if it fails. */
#define CUDA_TRY(function, ...)                                                \
    do {                                                                       \
        cudaError_t cuda_try_ = function(__VA_ARGS__);                         \
        if (cuda_try_ != cudaSuccess)                                          \
            return iq_cuda_failed(cuda_try_, #function, __FILE__, __LINE__);   \
    } while (0)

/* The thread's capture mode is relaxed until the end of the scope: without that, any call could end the capture that another thread
 * has begun. */
class iq_relaxed {
  public:
    iq_relaxed() : relaxed(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess) {}
    ~iq_relaxed()
    {
        if (relaxed)
            (void)cudaThreadExchangeStreamCaptureMode(&mode);
    }
    iq_relaxed(const iq_relaxed &) = delete;
    iq_relaxed &operator=(const iq_relaxed &) = delete;

  private:
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    bool relaxed;
};

/* Makes `device` the current one until the end of the scope, where nothing disturbs captures. */
class iq_on_device {
  public:
    explicit iq_on_device(int device) : error(cudaGetDevice(&before))
    {
        if (error == cudaSuccess && (before != device || !bound)) {
            error = cudaSetDevice(device);
            changed = error == cudaSuccess && before != device;
            bound = bound || error == cudaSuccess;
        }
    }
    ~iq_on_device()
    {
        if (changed)
            (void)cudaSetDevice(before);
    }
    iq_on_device(const iq_on_device &) = delete;
    iq_on_device &operator=(const iq_on_device &) = delete;

  private:
    /* cudaSetDevice has given this thread a context: the driver's own functions make none. */
    static inline thread_local bool bound = false;
    iq_relaxed guard;
    int before = 0;
    bool changed = false;

  public:
    cudaError_t error;
};

#define ON_DEVICE(device)             \
    iq_on_device on_device_(device);  \
    if (on_device_.error != cudaSuccess) \
    return iq_cuda_failed(on_device_.error, "cudaSetDevice", __FILE__, __LINE__)

/* A function of the driver, looked up once; threads that ask at the same time get the same answer. */
typedef struct iq_cuda_driver {
    const char *name;
    unsigned version; /* of CUDA, whose signature it has */
    int state;        /* 0: nobody asked yet */
    void *address;
} iq_cuda_driver_t;

/* NULL: this driver has no such function. */
void *iq_cuda_find(iq_cuda_driver_t *function);

/* ---- launches ---- */

enum { IQ_CUDA_THREADS = 256, IQ_CUDA_WARPS = IQ_CUDA_THREADS / 32, IQ_CUDA_MAX_DEVICES = 64 };

/* Blocks of `kernel` that run at once on the current device, which is `device`. Loads the kernel. */
template <auto kernel> isgq_result_t iq_cuda_resident(int device, int *blocks)
{
    static int known[IQ_CUDA_MAX_DEVICES]; /* every thread would find the same */
    bool keep = device >= 0 && device < IQ_CUDA_MAX_DEVICES;
    *blocks = keep ? __atomic_load_n(&known[device], __ATOMIC_RELAXED) : 0;
    if (*blocks > 0)
        return ISGQ_SUCCESS;
    int each = 0, processors = 0;
    cudaFuncAttributes attributes;
    CUDA_TRY(cudaFuncGetAttributes, &attributes, kernel);
    CUDA_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor, &each, kernel, IQ_CUDA_THREADS, 0);
    CUDA_TRY(cudaDeviceGetAttribute, &processors, cudaDevAttrMultiProcessorCount, device);
    *blocks = each * processors > 0 ? each * processors : 1;
    if (keep)
        __atomic_store_n(&known[device], *blocks, __ATOMIC_RELAXED);
    return ISGQ_SUCCESS;
}

/* Load kernels. */
template <auto... kernels> isgq_result_t iq_cuda_load(int device)
{
    int blocks = 0;
    isgq_result_t result = ISGQ_SUCCESS;
    (void)((result = iq_cuda_resident<kernels>(device, &blocks), result == ISGQ_SUCCESS) && ...);
    return result;
}

/* Enqueue `kernel`, which shares out `blocks` blocks' work among those there are. */
template <auto kernel, typename arguments_t>
isgq_result_t iq_cuda_launch(int device, isgq_stream_t stream, size_t blocks, const arguments_t &arguments)
{
    int resident = 0;
    IQ_TRY(iq_cuda_resident<kernel>(device, &resident));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(blocks < (size_t)resident ? blocks : (size_t)resident));
    config.blockDim = dim3(IQ_CUDA_THREADS);
    config.stream = stream;
    CUDA_TRY(cudaLaunchKernelEx, &config, kernel, arguments);
    return ISGQ_SUCCESS;
}

/* ---- the parts of the table; each warm_* loads the kernels of its file ---- */

isgq_result_t iq_cuda_locate(int from, const void *pointer, iq_cuda_place_t *place, int *device);
isgq_result_t iq_cuda_alloc(int device, isgq_stream_t stream, size_t bytes, void **memory);
void iq_cuda_release(int device, isgq_stream_t stream, void *memory);
isgq_result_t iq_cuda_pin(int device, void *memory, size_t bytes);
void iq_cuda_unpin(void *memory);

isgq_result_t iq_cuda_stream_create(int device, isgq_stream_t *stream);
void iq_cuda_stream_destroy(int device, isgq_stream_t stream);
isgq_result_t iq_cuda_stream_capturing(int device, isgq_stream_t stream, bool *capturing);
isgq_result_t iq_cuda_event_create(int device, iq_cuda_event_t *event);
void iq_cuda_event_destroy(int device, iq_cuda_event_t event);
isgq_result_t iq_cuda_event_record(int device, iq_cuda_event_t event, isgq_stream_t stream);
isgq_result_t iq_cuda_event_poll(int device, iq_cuda_event_t event);
isgq_result_t iq_cuda_wait_event(int device, isgq_stream_t stream, iq_cuda_event_t event);
bool iq_cuda_can_await(void);
bool iq_cuda_in_use(void);
isgq_result_t iq_cuda_await(int device, isgq_stream_t stream, uint32_t *word, uint32_t value);

isgq_result_t iq_cuda_warm_between(int device);
bool iq_cuda_orders_ranks(int device);
isgq_result_t iq_cuda_flags(int device, isgq_stream_t stream, const iq_cuda_flag_op_t *ops, unsigned count);
isgq_result_t iq_cuda_shared_alloc(int device, size_t bytes, void **memory);
void iq_cuda_shared_free(int device, void *memory);
isgq_result_t iq_cuda_shared_export(int device, void *memory, iq_cuda_handle_t *handle);
isgq_result_t iq_cuda_shared_open(int device, const iq_cuda_handle_t *handle, void **memory);
void iq_cuda_shared_close(int device, void *memory);
isgq_result_t iq_cuda_reach(int device, int other);
isgq_result_t iq_cuda_advance(int device, isgq_stream_t stream, uint32_t *replays);

isgq_result_t iq_cuda_copy(int device, isgq_stream_t stream, void *dst, const void *src, size_t bytes);
isgq_result_t iq_cuda_clear(int device, isgq_stream_t stream, void *dst, size_t bytes);

isgq_result_t iq_cuda_warm_measure(int device);
isgq_result_t iq_cuda_run_measure(int device, isgq_stream_t stream, const iq_cuda_source_t *source, uint64_t first, size_t bucket,
                              size_t count, float *scales);
isgq_result_t iq_cuda_warm_moments(int device);
isgq_result_t iq_cuda_run_moments(int device, isgq_stream_t stream, const iq_cuda_moments_t *moments);
isgq_result_t iq_cuda_run_rescale(int device, isgq_stream_t stream, const iq_cuda_rescale_t *rescale);
isgq_result_t iq_cuda_warm_map(int device);
isgq_result_t iq_cuda_run_map(int device, isgq_stream_t stream, const iq_cuda_map_t *map);
isgq_result_t iq_cuda_warm_combine(int device);
isgq_result_t iq_cuda_run_combine(int device, isgq_stream_t stream, const iq_cuda_combine_t *combine);
isgq_result_t iq_cuda_warm_native(int device);
isgq_result_t iq_cuda_run_reduce(int device, isgq_stream_t stream, const iq_cuda_reduce_t *reduce);
isgq_result_t iq_cuda_run_divide(int device, isgq_stream_t stream, const iq_cuda_divide_t *divide);
isgq_result_t iq_cuda_warm_product(int device);
isgq_result_t iq_cuda_run_product(int device, isgq_stream_t stream, const iq_cuda_product_t *product);
isgq_result_t iq_cuda_run_convert(int device, isgq_stream_t stream, const iq_cuda_convert_t *convert);

extern const iq_cuda_level_table_t iq_cuda_level_table;
isgq_result_t iq_cuda_warm_level(int device);

isgq_result_t iq_cuda_warm_feedback(int device);
isgq_result_t iq_cuda_run_feedback(int device, isgq_stream_t stream, const iq_cuda_feedback_t *feedback);
isgq_result_t iq_cuda_warm_exponent(int device);
isgq_result_t iq_cuda_run_exponent(int device, isgq_stream_t stream, const iq_cuda_exponent_t *exponent);

#endif
