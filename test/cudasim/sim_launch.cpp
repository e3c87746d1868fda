/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Launches: what may be launched, and when code is loaded. A kernel that cudaFuncGetAttributes has not seen is loaded by its first
 * launch, which waits for the whole device: CUDA may do so, and a program that must not wait then is found out here.
 */
#include "cudasim/sim.h"

#include <set>

namespace cudasim {

struct Loaded {
    std::mutex lock;
    std::set<std::pair<int, const void *>> kernels; /* by device */
};

/* Returns whether it was loaded already. */
static bool load(int device, const void *kernel)
{
    static Loaded *loaded = new Loaded;
    std::lock_guard<std::mutex> guard(loaded->lock);
    return !loaded->kernels.insert({device, kernel}).second;
}

static bool fits(dim3 grid, dim3 block)
{
    uint64_t threads = uint64_t{block.x} * block.y * block.z;
    return threads > 0 && threads <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && grid.x > 0 && grid.y > 0 &&
           grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

static cudaError_t launch(const cudaLaunchConfig_t &config, const void *kernel, void (*run)(void *),
                          const std::shared_ptr<void> &closure)
{
    std::shared_ptr<Stream> stream = find_stream(config.stream);
    if (stream == nullptr || stream->device != current_device())
        return cudaErrorInvalidResourceHandle;
    if (!fits(config.gridDim, config.blockDim))
        return cudaErrorInvalidConfiguration;
    if (config.dynamicSmemBytes > 0 || config.numAttrs > 0)
        return cudaErrorNotSupported;
    if (!load(stream->device, kernel))
        drain_device(stream->device);
    return submit(stream, [kernel, run, closure, grid = config.gridDim, block = config.blockDim] {
        run_kernel({kernel, run, closure.get(), grid, block});
    });
}

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cudaError_t cudasim_launch(const cudaLaunchConfig_t *config, const void *kernel, void (*run)(void *closure),
                                          void (*drop)(void *closure), void *closure)
{
    std::shared_ptr<void> owned(closure, drop);
    CUDASIM_ENTER_AS("cudaLaunchKernelEx");
    return report(launch(*config, kernel, run, owned));
}

CUDASIM_EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *func)
{
    CUDASIM_ENTER();
    if (func == nullptr)
        return report(cudaErrorInvalidDeviceFunction);
    load(current_device(), func);
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaFuncSetAttribute(const void *func, cudaFuncAttribute, int)
{
    CUDASIM_ENTER();
    return report(func == nullptr ? cudaErrorInvalidDeviceFunction : cudaSuccess);
}

CUDASIM_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, const void *func, int blockSize, size_t)
{
    CUDASIM_ENTER();
    if (func == nullptr)
        return report(cudaErrorInvalidDeviceFunction);
    if (blockSize < 1 || blockSize > 1024)
        return report(cudaErrorInvalidValue);
    *numBlocks = 2048 / ((blockSize + 31) / 32 * 32);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *userData)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    if (found == nullptr || fn == nullptr)
        return report(found == nullptr ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue);
    return report(submit(found, [fn, userData] { fn(userData); }));
}
