/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for CUDA's header of this name. For C: the functions of cuda_runtime_api.h. For C++17, also what nvcc gives to kernels
 * (cudasim_device.h) and the templates; kernels start with cudaLaunchKernelEx, because <<<>>> is not C++.
 */
#ifndef CUDASIM_CUDA_RUNTIME_H
#define CUDASIM_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus

#include <cudasim_device.h>
#include <tuple>
#include <type_traits>
#include <utility>

/* Enqueues run(closure) for every thread of the grid, then drop(closure), which is called in any case. */
extern "C" cudaError_t cudasim_launch(const cudaLaunchConfig_t *config, const void *kernel, void (*run)(void *closure),
                                      void (*drop)(void *closure), void *closure);

/* The arguments are converted and copied when this is called, as CUDA does. */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                                             Arguments &&...arguments)
{
    static_assert((std::is_trivially_copyable<Parameters>::value && ...), "parameters of kernels are copied as bytes");
    struct closure_t {
        void (*kernel)(Parameters...);
        std::tuple<Parameters...> parameters;
    };
    auto run = [](void *closure) {
        closure_t *self = static_cast<closure_t *>(closure);
        std::tuple<Parameters...> own = self->parameters; /* a thread may change its parameters */
        std::apply(self->kernel, own);
    };
    auto drop = [](void *closure) { delete static_cast<closure_t *>(closure); };
    return cudasim_launch(config, reinterpret_cast<const void *>(kernel), run, drop,
                          new closure_t{kernel, std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)});
}

template <typename T> static inline cudaError_t cudaMalloc(T **memory, size_t size)
{
    return ::cudaMalloc(reinterpret_cast<void **>(memory), size);
}

template <typename T> static inline cudaError_t cudaMallocAsync(T **memory, size_t size, cudaStream_t stream)
{
    return ::cudaMallocAsync(reinterpret_cast<void **>(memory), size, stream);
}

template <typename T> static inline cudaError_t cudaMallocHost(T **memory, size_t size, unsigned int flags = cudaHostAllocDefault)
{
    return ::cudaHostAlloc(reinterpret_cast<void **>(memory), size, flags);
}

template <typename T> static inline cudaError_t cudaHostAlloc(T **memory, size_t size, unsigned int flags)
{
    return ::cudaHostAlloc(reinterpret_cast<void **>(memory), size, flags);
}

template <typename T> static inline cudaError_t cudaHostGetDevicePointer(T **device, void *host, unsigned int flags)
{
    return ::cudaHostGetDevicePointer(reinterpret_cast<void **>(device), host, flags);
}

template <typename T> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, T *kernel)
{
    return ::cudaFuncGetAttributes(attributes, reinterpret_cast<const void *>(kernel));
}

template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute attribute, int value)
{
    return ::cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), attribute, value);
}

template <typename T>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T kernel, int threads, size_t shared)
{
    return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void *>(kernel), threads, shared);
}

#endif
#endif
