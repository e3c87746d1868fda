/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams that wait for words in memory and write them, of 32 and of 64 bits, alone or in batches: functions of the driver, found by
 * name.
 */
#include "cudasim/sim.h"

#include <cuda.h>

#include <chrono>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>

namespace cudasim {

struct Operation {
    bool wait;
    size_t size; /* of the word: 4 or 8 */
    void *word;
    uint64_t value;
    unsigned flags;
};

/* ---- running ---- */

static uint64_t load(const Operation &operation)
{
    if (operation.size == 8)
        return __atomic_load_n(static_cast<uint64_t *>(operation.word), __ATOMIC_ACQUIRE);
    return __atomic_load_n(static_cast<uint32_t *>(operation.word), __ATOMIC_ACQUIRE);
}

static bool holds(const Operation &operation, uint64_t now)
{
    uint64_t value = operation.value;
    switch (operation.flags) {
    case CU_STREAM_WAIT_VALUE_EQ: return now == value;
    case CU_STREAM_WAIT_VALUE_AND: return (now & value) != 0;
    case CU_STREAM_WAIT_VALUE_NOR: return operation.size == 8 ? ~(now | value) != 0 : static_cast<uint32_t>(~(now | value)) != 0;
    default:
        return operation.size == 8 ? static_cast<int64_t>(now - value) >= 0
                                   : static_cast<int32_t>(static_cast<uint32_t>(now - value)) >= 0;
    }
}

static void run(const Operation &operation)
{
    require_present(operation.wait ? "a wait for a word" : "a write of a word", operation.word, operation.size);
    if (!operation.wait) {
        if (operation.size == 8)
            __atomic_store_n(static_cast<uint64_t *>(operation.word), operation.value, __ATOMIC_RELEASE);
        else
            __atomic_store_n(static_cast<uint32_t *>(operation.word), static_cast<uint32_t>(operation.value), __ATOMIC_RELEASE);
        return;
    }
    while (!holds(operation, load(operation)))
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    /* What was stored before either half is visible: a sanitizer for threads knows words by where they start. */
    for (size_t half = 0; half < operation.size / 4; half++)
        (void)__atomic_load_n(static_cast<uint32_t *>(operation.word) + half, __ATOMIC_ACQUIRE);
}

/* ---- asking ---- */

static bool only(const char *words)
{
    const char *set = getenv("CUDASIM_NO_WORDS");
    return set != nullptr && strcmp(set, words) == 0;
}

static bool usable(const Operation &operation, int device)
{
    Place place = locate(operation.word, operation.size);
    bool known = place.kind == Kind::pinned || (place.kind == Kind::device && reaches(device, place.device));
    return reinterpret_cast<uintptr_t>(operation.word) % operation.size == 0 && known && place.whole;
}

static CUresult check(const Operation &operation, int device)
{
    bool known = operation.wait ? operation.flags <= CU_STREAM_WAIT_VALUE_NOR : operation.flags == CU_STREAM_WRITE_VALUE_DEFAULT;
    if (!known || (operation.size == 8 && only("64")))
        return CUDA_ERROR_NOT_SUPPORTED;
    return usable(operation, device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult enqueue(CUstream handle, const std::vector<Operation> &operations)
{
    std::shared_ptr<Stream> stream = find_stream(handle);
    if (stream == nullptr)
        return CUDA_ERROR_INVALID_HANDLE;
    for (const Operation &operation : operations) {
        CUresult checked = check(operation, stream->device);
        if (checked != CUDA_SUCCESS)
            return checked;
    }
    cudaError_t error = submit(stream, [operations] {
        for (const Operation &operation : operations)
            run(operation);
    });
    return static_cast<CUresult>(error); /* the two kinds of errors have the same numbers */
}

static CUresult one(CUstream stream, bool wait, size_t size, CUdeviceptr address, uint64_t value, unsigned flags)
{
    return enqueue(stream, {{wait, size, reinterpret_cast<void *>(address), value, flags}});
}

/* Barriers are nothing: a stream here does one thing after the other, and stores release what was done before. */
static CUresult translate(const CUstreamBatchMemOpParams &from, std::vector<Operation> *to)
{
    CUstreamBatchMemOpType type = from.operation;
    bool wide = type == CU_STREAM_MEM_OP_WAIT_VALUE_64 || type == CU_STREAM_MEM_OP_WRITE_VALUE_64;
    if (type == CU_STREAM_MEM_OP_WAIT_VALUE_32 || type == CU_STREAM_MEM_OP_WAIT_VALUE_64)
        to->push_back({true, wide ? 8u : 4u, reinterpret_cast<void *>(from.waitValue.address),
                       wide ? from.waitValue.value64 : from.waitValue.value, from.waitValue.flags});
    else if (type == CU_STREAM_MEM_OP_WRITE_VALUE_32 || type == CU_STREAM_MEM_OP_WRITE_VALUE_64)
        to->push_back({false, wide ? 8u : 4u, reinterpret_cast<void *>(from.writeValue.address),
                       wide ? from.writeValue.value64 : from.writeValue.value, from.writeValue.flags});
    else if (type != CU_STREAM_MEM_OP_BARRIER)
        return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
}

} // namespace cudasim

using namespace cudasim;

#define ENTER_DRIVER()                             \
    static Call this_call(__func__);               \
    do {                                           \
        cudaError_t entered = this_call.enter();   \
        if (entered != cudaSuccess)                \
            return static_cast<CUresult>(entered); \
    } while (0)

extern "C" {

static CUresult cuStreamWaitValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags)
{
    ENTER_DRIVER();
    return one(stream, true, 4, address, value, flags);
}

static CUresult cuStreamWaitValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned flags)
{
    ENTER_DRIVER();
    return one(stream, true, 8, address, value, flags);
}

static CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags)
{
    ENTER_DRIVER();
    return one(stream, false, 4, address, value, flags);
}

static CUresult cuStreamWriteValue64(CUstream stream, CUdeviceptr address, cuuint64_t value, unsigned flags)
{
    ENTER_DRIVER();
    return one(stream, false, 8, address, value, flags);
}

static CUresult cuStreamBatchMemOp(CUstream stream, unsigned count, CUstreamBatchMemOpParams *params, unsigned flags)
{
    ENTER_DRIVER();
    std::vector<Operation> operations;
    if (count == 0 || count >= 256 || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        CUresult translated = translate(params[i], &operations);
        if (translated != CUDA_SUCCESS)
            return translated;
    }
    return enqueue(stream, operations);
}

/* Every thread has a context here: there is nothing that could be made too many of. */
static CUresult cuCtxGetCurrent(void **context)
{
    static int one;
    *context = &one;
    return CUDA_SUCCESS;
}

static CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER_DRIVER();
    *device = ordinal;
    return ordinal >= 0 && ordinal < settings().devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice)
{
    ENTER_DRIVER();
    if (attribute != CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS &&
        attribute != CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    *value = attribute == CU_DEVICE_ATTRIBUTE_CAN_USE_STREAM_WAIT_VALUE_NOR || !only("64");
    return CUDA_SUCCESS;
}
}

static const struct {
    const char *name;
    void *function;
    bool of_words;
} functions[] = {
    {"cuCtxGetCurrent", reinterpret_cast<void *>(cuCtxGetCurrent), false},
    {"cuDeviceGet", reinterpret_cast<void *>(cuDeviceGet), false},
    {"cuDeviceGetAttribute", reinterpret_cast<void *>(cuDeviceGetAttribute), false},
    {"cuStreamBatchMemOp", reinterpret_cast<void *>(cuStreamBatchMemOp), true},
    {"cuStreamWaitValue32", reinterpret_cast<void *>(cuStreamWaitValue32), true},
    {"cuStreamWaitValue64", reinterpret_cast<void *>(cuStreamWaitValue64), true},
    {"cuStreamWriteValue32", reinterpret_cast<void *>(cuStreamWriteValue32), true},
    {"cuStreamWriteValue64", reinterpret_cast<void *>(cuStreamWriteValue64), true},
};

CUDASIM_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **funcPtr, unsigned int, unsigned long long,
                                                            cudaDriverEntryPointQueryResult *driverStatus)
{
    CUDASIM_ENTER();
    *funcPtr = nullptr;
    for (const auto &row : functions)
        if (strcmp(row.name, symbol) == 0 && !(row.of_words && only("1")))
            *funcPtr = row.function;
    if (driverStatus != nullptr)
        *driverStatus = *funcPtr == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
