/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What joins the GPUs of several ranks: flags on which streams wait, memory that other processes open, and peers. A flag is a pair of
 * words in pinned memory that a stream waits for as one word of 64 bits, so that a host ends every wait with one store that no stream
 * takes back.
 */
#include "kernels/cuda/cuda_common.h"

#include <cuda.h>
#include <string.h>

/* ---- flags ---- */

typedef CUresult (*batch_fn)(CUstream stream, unsigned count, CUstreamBatchMemOpParams *operations, unsigned flags);
typedef CUresult (*get_device_fn)(CUdevice *device, int number);
typedef CUresult (*get_attribute_fn)(int *value, CUdevice_attribute attribute, CUdevice device);

static iq_cuda_driver_t batch_function = {"cuStreamBatchMemOp", 12000, 0, NULL};
static iq_cuda_driver_t get_device_function = {"cuDeviceGet", 2000, 0, NULL};
static iq_cuda_driver_t get_attribute_function = {"cuDeviceGetAttribute", 2000, 0, NULL};

bool iq_cuda_orders_ranks(int device)
{
    get_device_fn get_device = (get_device_fn)iq_cuda_find(&get_device_function);
    get_attribute_fn get_attribute = (get_attribute_fn)iq_cuda_find(&get_attribute_function);
    CUdevice driver_device;
    int words = 0;
    return iq_cuda_find(&batch_function) != NULL && get_device != NULL && get_attribute != NULL &&
           get_device(&driver_device, device) == CUDA_SUCCESS &&
           get_attribute(&words, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, driver_device) == CUDA_SUCCESS && words != 0;
}

/* `state` is the lower half of the pair: any bit of `value` there or any bit of `gone` ends the wait. A write has a barrier before it. */
static void translate(const iq_cuda_flag_op_t *from, CUstreamBatchMemOpParams *to)
{
    memset(to, 0, sizeof(*to));
    if (from->wait) {
        to->waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_64;
        to->waitValue.address = (CUdeviceptr)(uintptr_t)from->flag;
        to->waitValue.value64 = from->value | 0xffffffff00000000ull;
        to->waitValue.flags = CU_STREAM_WAIT_VALUE_AND;
    } else {
        to->writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
        to->writeValue.address = (CUdeviceptr)(uintptr_t)&from->flag->state;
        to->writeValue.value = from->value;
        to->writeValue.flags = CU_STREAM_WRITE_VALUE_DEFAULT;
    }
}

isgq_result_t iq_cuda_flags(int device, isgq_stream_t stream, const iq_cuda_flag_op_t *ops, unsigned count)
{
    CUstreamBatchMemOpParams batch[IQ_CUDA_FLAG_OPS];
    batch_fn enqueue = (batch_fn)iq_cuda_find(&batch_function);
    ON_DEVICE(device);
    if (count == 0)
        return ISGQ_SUCCESS;
    if (enqueue == NULL)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cuStreamBatchMemOp: this driver has no such function");
    if (count > IQ_CUDA_FLAG_OPS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "flags: %u operations, a batch has at most %d", count, IQ_CUDA_FLAG_OPS);
    for (unsigned i = 0; i < count; i++)
        translate(&ops[i], &batch[i]);
    CUresult error = enqueue(stream, count, batch, 0);
    if (error != CUDA_SUCCESS) /* the driver's numbers are the runtime's */
        return iq_cuda_failed((cudaError_t)error, "cuStreamBatchMemOp", __FILE__, __LINE__);
    return ISGQ_SUCCESS;
}

/* ---- shared memory ---- */

/* The driver hands out small pieces of units of this size, and shares whole units: nobody else's memory may lie in one that is shared. */
enum { SHARED_UNIT = 2 << 20 };

/* Not on the default stream: its work would end a capture of an application's stream that waits for it. */
static cudaError_t zero_now(void *memory, size_t bytes)
{
    cudaStream_t stream;
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess)
        return error;
    error = cudaMemsetAsync(memory, 0, bytes, stream);
    cudaError_t finished = cudaStreamSynchronize(stream), destroyed = cudaStreamDestroy(stream);
    if (error != cudaSuccess)
        return error;
    return finished != cudaSuccess ? finished : destroyed;
}

isgq_result_t iq_cuda_shared_alloc(int device, size_t bytes, void **memory)
{
    void *fresh = NULL;
    ON_DEVICE(device);
    size_t units = bytes / SHARED_UNIT + (bytes % SHARED_UNIT != 0 || bytes == 0);
    cudaError_t error = units > SIZE_MAX / SHARED_UNIT ? cudaErrorMemoryAllocation : cudaMalloc(&fresh, units * SHARED_UNIT);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "cudaMalloc: no %zu bytes of memory left on device %d", bytes, device);
    }
    if (error != cudaSuccess)
        return iq_cuda_failed(error, "cudaMalloc", __FILE__, __LINE__);
    error = zero_now(fresh, units * SHARED_UNIT);
    if (error != cudaSuccess) {
        (void)cudaFree(fresh);
        return iq_cuda_failed(error, "cudaMemsetAsync of shared memory", __FILE__, __LINE__);
    }
    *memory = fresh;
    return ISGQ_SUCCESS;
}

void iq_cuda_shared_free(int device, void *memory)
{
    iq_on_device guard(device);
    if (memory != NULL && cudaFree(memory) != cudaSuccess)
        (void)cudaGetLastError(); /* the process is ending, or the device failed and everything says so */
}

isgq_result_t iq_cuda_shared_export(int device, void *memory, iq_cuda_handle_t *handle)
{
    cudaIpcMemHandle_t found;
    static_assert(sizeof(found) == sizeof(*handle), "a handle travels as plain bytes");
    ON_DEVICE(device);
    CUDA_TRY(cudaIpcGetMemHandle, &found, memory);
    memcpy(handle, &found, sizeof(found));
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_shared_open(int device, const iq_cuda_handle_t *handle, void **memory)
{
    cudaIpcMemHandle_t wanted;
    void *found = NULL;
    ON_DEVICE(device);
    memcpy(&wanted, handle, sizeof(wanted));
    CUDA_TRY(cudaIpcOpenMemHandle, &found, wanted, cudaIpcMemLazyEnablePeerAccess);
    *memory = found;
    return ISGQ_SUCCESS;
}

void iq_cuda_shared_close(int device, void *memory)
{
    iq_on_device guard(device);
    if (memory != NULL && cudaIpcCloseMemHandle(memory) != cudaSuccess)
        (void)cudaGetLastError();
}

/* ---- peers ---- */

isgq_result_t iq_cuda_reach(int device, int other)
{
    int can = 0;
    if (device == other)
        return ISGQ_SUCCESS;
    ON_DEVICE(device);
    CUDA_TRY(cudaDeviceCanAccessPeer, &can, device, other);
    if (!can)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cudaDeviceCanAccessPeer: device %d cannot use memory of device %d", device, other);
    cudaError_t error = cudaDeviceEnablePeerAccess(other, 0);
    if (error == cudaErrorTooManyPeers) {
        (void)cudaGetLastError();
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cudaDeviceEnablePeerAccess: device %d has as many peers as it can have", device);
    }
    if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled)
        return iq_cuda_failed(error, "cudaDeviceEnablePeerAccess", __FILE__, __LINE__);
    (void)cudaGetLastError();
    return ISGQ_SUCCESS;
}

/* ---- replays ---- */

__global__ static void advance(uint32_t *replays) { ++*replays; }

isgq_result_t iq_cuda_warm_between(int device) { return iq_cuda_load<advance>(device); }

isgq_result_t iq_cuda_advance(int device, isgq_stream_t stream, uint32_t *replays)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(1);
    config.stream = stream;
    ON_DEVICE(device);
    CUDA_TRY(cudaLaunchKernelEx, &config, advance, replays);
    return ISGQ_SUCCESS;
}
