/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies and fills. Ranges are checked when they are asked for, and again when they run. A copy from or to memory that CUDA does not
 * know waits until it is done, and so cannot be captured.
 */
#include "cudasim/sim.h"

#include <string.h>

namespace cudasim {

static bool is_device(Place place) { return place.kind == Kind::device; }

static cudaError_t copy(void *dst, const void *src, size_t count, cudaMemcpyKind kind, const std::shared_ptr<Stream> &stream,
                        bool must_wait)
{
    if (stream == nullptr)
        return cudaErrorInvalidResourceHandle;
    if (count == 0)
        return cudaSuccess;
    Place to = locate(dst, count), from = locate(src, count);
    if (dst == nullptr || src == nullptr || to.kind == Kind::gone || from.kind == Kind::gone || !to.whole || !from.whole)
        return cudaErrorInvalidValue;
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (to_device != is_device(to) || from_device != is_device(from)))
        return cudaErrorInvalidValue;
    bool wait = must_wait || to.kind == Kind::unknown || from.kind == Kind::unknown;
    cudaError_t error = wait ? check_not_captured(stream) : cudaSuccess;
    if (error != cudaSuccess)
        return error;
    uint64_t number = 0;
    auto operation = [dst, src, count] {
        require_present("a copy", dst, count);
        require_present("a copy", src, count);
        memcpy(dst, src, count);
    };
    error = submit(stream, operation, &number);
    if (error == cudaSuccess && wait)
        stream->wait(number);
    return error;
}

static cudaError_t fill(void *memory, int value, size_t count, const std::shared_ptr<Stream> &stream, bool wait)
{
    if (stream == nullptr)
        return cudaErrorInvalidResourceHandle;
    if (count == 0)
        return cudaSuccess;
    Place place = locate(memory, count);
    if ((place.kind != Kind::device && place.kind != Kind::pinned) || !place.whole)
        return cudaErrorInvalidValue;
    uint64_t number = 0;
    auto operation = [memory, value, count] {
        require_present("a fill", memory, count);
        memset(memory, value, count);
    };
    cudaError_t error = submit(stream, operation, &number);
    if (error == cudaSuccess && wait)
        stream->wait(number);
    return error;
}

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cudaError_t cudaMemcpy(void *dst, const void *src, size_t count, cudaMemcpyKind kind)
{
    CUDASIM_ENTER_UNSAFE();
    return report(copy(dst, src, count, kind, find_stream(nullptr), true));
}

CUDASIM_EXPORT cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t count, cudaMemcpyKind kind, cudaStream_t stream)
{
    CUDASIM_ENTER();
    return report(copy(dst, src, count, kind, find_stream(stream), false));
}

CUDASIM_EXPORT cudaError_t cudaMemset(void *devPtr, int value, size_t count)
{
    CUDASIM_ENTER_UNSAFE();
    return report(fill(devPtr, value, count, find_stream(nullptr), true));
}

CUDASIM_EXPORT cudaError_t cudaMemsetAsync(void *devPtr, int value, size_t count, cudaStream_t stream)
{
    CUDASIM_ENTER();
    return report(fill(devPtr, value, count, find_stream(stream), false));
}
