/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams that wait for words in memory and write them: two functions of the driver, found by name.
 */
#include "cudasim/sim.h"

#include <cuda.h>

#include <chrono>
#include <stdlib.h>
#include <string.h>
#include <thread>

using namespace cudasim;

static CUresult word_usable(CUstream stream, CUdeviceptr address, std::shared_ptr<Stream> &found)
{
    found = find_stream(stream);
    if (found == nullptr)
        return CUDA_ERROR_INVALID_HANDLE;
    Place place = locate(reinterpret_cast<const void *>(address), sizeof(uint32_t));
    bool known = place.kind == Kind::pinned || place.kind == Kind::device;
    return address % sizeof(uint32_t) == 0 && known && place.whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

extern "C" {

static CUresult cuStreamWaitValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags)
{
    static Call this_call(__func__);
    cudaError_t entered = this_call.enter();
    if (entered != cudaSuccess)
        return static_cast<CUresult>(entered); /* the two have the same numbers */
    std::shared_ptr<Stream> found;
    CUresult usable = word_usable(stream, address, found);
    if (usable != CUDA_SUCCESS)
        return usable;
    if (flags != CU_STREAM_WAIT_VALUE_GEQ && flags != CU_STREAM_WAIT_VALUE_EQ)
        return CUDA_ERROR_NOT_SUPPORTED;
    uint32_t *word = reinterpret_cast<uint32_t *>(address);
    found->push([word, value, flags] {
        require_present("a wait for a word", word, sizeof(*word));
        for (;;) {
            uint32_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);
            if (flags == CU_STREAM_WAIT_VALUE_EQ ? now == value : static_cast<int32_t>(now - value) >= 0)
                return;
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    });
    return CUDA_SUCCESS;
}

/* Every thread has a context here: there is nothing that could be made too many of. */
static CUresult cuCtxGetCurrent(void **context)
{
    static int one;
    *context = &one;
    return CUDA_SUCCESS;
}

static CUresult cuStreamWriteValue32(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned)
{
    static Call this_call(__func__);
    cudaError_t entered = this_call.enter();
    if (entered != cudaSuccess)
        return static_cast<CUresult>(entered);
    std::shared_ptr<Stream> found;
    CUresult usable = word_usable(stream, address, found);
    if (usable != CUDA_SUCCESS)
        return usable;
    uint32_t *word = reinterpret_cast<uint32_t *>(address);
    found->push([word, value] {
        require_present("a write of a word", word, sizeof(*word));
        __atomic_store_n(word, value, __ATOMIC_RELEASE);
    });
    return CUDA_SUCCESS;
}
}

CUDASIM_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **funcPtr, unsigned int, unsigned long long,
                                                            cudaDriverEntryPointQueryResult *driverStatus)
{
    CUDASIM_ENTER();
    const char *no_words = getenv("CUDASIM_NO_WORDS");
    bool has_words = no_words == nullptr || strcmp(no_words, "1") != 0;
    *funcPtr = nullptr;
    if (has_words && strcmp(symbol, "cuStreamWaitValue32") == 0)
        *funcPtr = reinterpret_cast<void *>(cuStreamWaitValue32);
    if (has_words && strcmp(symbol, "cuStreamWriteValue32") == 0)
        *funcPtr = reinterpret_cast<void *>(cuStreamWriteValue32);
    if (strcmp(symbol, "cuCtxGetCurrent") == 0)
        *funcPtr = reinterpret_cast<void *>(cuCtxGetCurrent);
    if (driverStatus != nullptr)
        *driverStatus = *funcPtr == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
