/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory, streams, events and copies of module "cuda". Memory comes from the stream-ordered pool, because plain allocation may wait
 * for streams that wait for other ranks: `alloc` waits for its own stream only, all else for nothing.
 */
#include "kernels/cuda/cuda_common.h"

/* ---- memory ---- */

static isgq_result_t locate(const void *pointer, iq_cuda_place_t *place, int *device)
{
    cudaPointerAttributes attributes;
    iq_cuda_place_t found = IQ_CUDA_HOST;
    int owner = -1;
    if (pointer != NULL) {
        CUDA_TRY(cudaPointerGetAttributes, &attributes, pointer);
        if (attributes.type == cudaMemoryTypeHost)
            found = IQ_CUDA_PINNED;
        else if (attributes.type == cudaMemoryTypeDevice)
            found = IQ_CUDA_DEVICE;
        else if (attributes.type == cudaMemoryTypeManaged)
            found = IQ_CUDA_MANAGED;
        if (found == IQ_CUDA_DEVICE || found == IQ_CUDA_MANAGED)
            owner = attributes.device;
    }
    *place = found;
    *device = owner;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_locate(int from, const void *pointer, iq_cuda_place_t *place, int *device)
{
    if (from < 0)
        return locate(pointer, place, device);
    ON_DEVICE(from);
    return locate(pointer, place, device);
}

isgq_result_t iq_cuda_alloc(int device, isgq_stream_t stream, size_t bytes, void **memory)
{
    void *fresh = NULL;
    ON_DEVICE(device);
    cudaError_t error = cudaMallocAsync(&fresh, bytes > 0 ? bytes : 1, stream);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "cudaMallocAsync: no %zu bytes of memory left on device %d", bytes, device);
    }
    if (error != cudaSuccess)
        return iq_cuda_failed(error, "cudaMallocAsync", __FILE__, __LINE__);
    CUDA_TRY(cudaStreamSynchronize, stream); /* other streams may use it from now on */
    *memory = fresh;
    return ISGQ_SUCCESS;
}

void iq_cuda_release(int device, isgq_stream_t stream, void *memory)
{
    iq_on_device guard(device);
    if (memory != NULL && cudaFreeAsync(memory, stream) != cudaSuccess)
        (void)cudaGetLastError(); /* the process is ending, or the device failed and everything says so */
}

isgq_result_t iq_cuda_pin(int device, void *memory, size_t bytes)
{
    void *seen = NULL;
    ON_DEVICE(device);
    CUDA_TRY(cudaHostRegister, memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    cudaError_t error = cudaHostGetDevicePointer(&seen, memory, 0);
    if (error == cudaSuccess && seen == memory)
        return ISGQ_SUCCESS;
    (void)cudaHostUnregister(memory);
    if (error != cudaSuccess)
        return iq_cuda_failed(error, "cudaHostGetDevicePointer", __FILE__, __LINE__);
    return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cudaHostGetDevicePointer: device %d sees host memory under another address", device);
}

void iq_cuda_unpin(void *memory)
{
    iq_relaxed guard;
    if (memory != NULL && cudaHostUnregister(memory) != cudaSuccess)
        (void)cudaGetLastError();
}

/* ---- streams and events ---- */

isgq_result_t iq_cuda_stream_create(int device, isgq_stream_t *stream)
{
    int least = 0, greatest = 0;
    ON_DEVICE(device);
    CUDA_TRY(cudaDeviceGetStreamPriorityRange, &least, &greatest);
    CUDA_TRY(cudaStreamCreateWithPriority, stream, cudaStreamNonBlocking, greatest);
    return ISGQ_SUCCESS;
}

void iq_cuda_stream_destroy(int device, isgq_stream_t stream)
{
    iq_on_device guard(device);
    if (stream != NULL && cudaStreamDestroy(stream) != cudaSuccess)
        (void)cudaGetLastError();
}

isgq_result_t iq_cuda_stream_capturing(int device, isgq_stream_t stream, bool *capturing)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    ON_DEVICE(device);
    CUDA_TRY(cudaStreamIsCapturing, stream, &status);
    *capturing = status != cudaStreamCaptureStatusNone;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_event_create(int device, iq_cuda_event_t *event)
{
    ON_DEVICE(device);
    CUDA_TRY(cudaEventCreateWithFlags, event, cudaEventDisableTiming);
    return ISGQ_SUCCESS;
}

void iq_cuda_event_destroy(int device, iq_cuda_event_t event)
{
    iq_on_device guard(device);
    if (event != NULL && cudaEventDestroy(event) != cudaSuccess)
        (void)cudaGetLastError();
}

isgq_result_t iq_cuda_event_record(int device, iq_cuda_event_t event, isgq_stream_t stream)
{
    ON_DEVICE(device);
    CUDA_TRY(cudaEventRecord, event, stream);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_event_poll(int device, iq_cuda_event_t event)
{
    ON_DEVICE(device);
    cudaError_t error = cudaEventQuery(event);
    if (error == cudaSuccess)
        return ISGQ_SUCCESS;
    if (error != cudaErrorNotReady)
        return iq_cuda_failed(error, "cudaEventQuery", __FILE__, __LINE__);
    (void)cudaGetLastError();
    return ISGQ_IN_PROGRESS;
}

isgq_result_t iq_cuda_wait_event(int device, isgq_stream_t stream, iq_cuda_event_t event)
{
    ON_DEVICE(device);
    CUDA_TRY(cudaStreamWaitEvent, stream, event, 0);
    return ISGQ_SUCCESS;
}

/* ---- what only the driver has ---- */

/* As cuda.h declares them: CUresult, CUstream, CUdeviceptr, cuuint32_t, unsigned; and CUresult, CUcontext *. */
typedef int (*wait_value_fn)(isgq_stream_t stream, unsigned long long address, uint32_t value, unsigned flags);
typedef int (*get_context_fn)(void **context);

enum { WAIT_VALUE_GEQ = 0 }; /* CU_STREAM_WAIT_VALUE_GEQ: (int32_t)(*address - value) >= 0 */

enum { UNKNOWN, ABSENT, PRESENT };

static iq_cuda_driver_t wait_value_function = {"cuStreamWaitValue32", 12000, UNKNOWN, NULL};
static iq_cuda_driver_t get_context_function = {"cuCtxGetCurrent", 4000, UNKNOWN, NULL};

void *iq_cuda_find(iq_cuda_driver_t *function)
{
    int now = __atomic_load_n(&function->state, __ATOMIC_ACQUIRE);
    if (now == UNKNOWN) {
        void *found = NULL;
        cudaDriverEntryPointQueryResult answer = cudaDriverEntryPointSymbolNotFound;
        cudaError_t error =
            cudaGetDriverEntryPointByVersion(function->name, &found, function->version, cudaEnableDefault, &answer);
        if (error != cudaSuccess)
            (void)cudaGetLastError();
        now = error == cudaSuccess && answer == cudaDriverEntryPointSuccess && found != NULL ? PRESENT : ABSENT;
        if (now == PRESENT)
            __atomic_store_n(&function->address, found, __ATOMIC_RELAXED);
        __atomic_store_n(&function->state, now, __ATOMIC_RELEASE);
    }
    return now == PRESENT ? __atomic_load_n(&function->address, __ATOMIC_RELAXED) : NULL;
}

static wait_value_fn find_wait_value(void) { return (wait_value_fn)iq_cuda_find(&wait_value_function); }

bool iq_cuda_in_use(void)
{
    get_context_fn get_context = (get_context_fn)iq_cuda_find(&get_context_function);
    void *context = NULL;
    return get_context != NULL && get_context(&context) == 0 && context != NULL;
}

bool iq_cuda_can_await(void) { return find_wait_value() != NULL; }

isgq_result_t iq_cuda_await(int device, isgq_stream_t stream, uint32_t *word, uint32_t value)
{
    wait_value_fn wait_value = find_wait_value();
    ON_DEVICE(device);
    if (wait_value == NULL)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cuStreamWaitValue32: this driver has no such function");
    int error = wait_value(stream, (unsigned long long)(uintptr_t)word, value, WAIT_VALUE_GEQ);
    if (error != 0) /* the driver's numbers are the runtime's */
        return iq_cuda_failed((cudaError_t)error, "cuStreamWaitValue32", __FILE__, __LINE__);
    return ISGQ_SUCCESS;
}

/* ---- data ---- */

isgq_result_t iq_cuda_copy(int device, isgq_stream_t stream, void *dst, const void *src, size_t bytes)
{
    if (bytes == 0 || dst == src)
        return ISGQ_SUCCESS;
    ON_DEVICE(device);
    CUDA_TRY(cudaMemcpyAsync, dst, src, bytes, cudaMemcpyDefault, stream);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_clear(int device, isgq_stream_t stream, void *dst, size_t bytes)
{
    if (bytes == 0)
        return ISGQ_SUCCESS;
    ON_DEVICE(device);
    CUDA_TRY(cudaMemsetAsync, dst, 0, bytes, stream);
    return ISGQ_SUCCESS;
}
