/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices, errors, settings, and how calls are made to fail.
 */
#include "cudasim/sim.h"

#include <cuda.h>
#include <cudasim.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

namespace cudasim {

static std::atomic<Call *> all_calls{nullptr};
static std::atomic<bool> used{false}, forked{false};
static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int device_of_thread = 0;

/* ---- failures that tests ask for ---- */

struct Failure {
    std::string name;
    unsigned long left;
};
struct Failures {
    std::mutex lock;
    std::vector<Failure> list;
};
static std::atomic<bool> any_failure{false};

static Failures &failures()
{
    static Failures *all = new Failures;
    return *all;
}

static void set_failures(const char *calls)
{
    Failures &all = failures();
    std::lock_guard<std::mutex> guard(all.lock);
    all.list.clear();
    for (const char *at = calls == nullptr ? "" : calls; *at != '\0';) {
        size_t length = strcspn(at, ",");
        const char *colon = static_cast<const char *>(memchr(at, ':', length));
        if (colon == nullptr)
            die("CUDASIM_FAIL: \"%s\" is not name:n", at);
        all.list.push_back({std::string(at, colon), strtoul(colon + 1, nullptr, 10)});
        at += length + (at[length] == ',');
    }
    any_failure = !all.list.empty();
}

static bool wants_failure(const char *name)
{
    if (!any_failure)
        return false;
    Failures &all = failures();
    std::lock_guard<std::mutex> guard(all.lock);
    bool now = false;
    for (Failure &failure : all.list)
        now |= failure.name == name && failure.left > 0 && --failure.left == 0;
    return now;
}

/* ---- settings ---- */

static unsigned long long number_from(const char *variable, unsigned long long otherwise)
{
    const char *text = getenv(variable);
    return text == nullptr || text[0] == '\0' ? otherwise : strtoull(text, nullptr, 0);
}

static Settings read_settings()
{
    Settings read;
    read.devices = static_cast<int>(number_from("CUDASIM_DEVICES", 1));
    read.memory = number_from("CUDASIM_MEMORY", 4ull << 30);
    read.delay = static_cast<unsigned>(number_from("CUDASIM_DELAY", 0));
    const char *order = getenv("CUDASIM_ORDER");
    read.backward = order != nullptr && strcmp(order, "backward") == 0;
    set_failures(getenv("CUDASIM_FAIL"));
    pthread_atfork(nullptr, nullptr, [] { forked = used.load(); });
    return read;
}

const Settings &settings()
{
    static const Settings read = read_settings();
    return read;
}

/* ---- calls ---- */

Call::Call(const char *function) : name(function), next(all_calls)
{
    while (!all_calls.compare_exchange_weak(next, this))
        ;
}

cudaError_t Call::enter()
{
    count.fetch_add(1, std::memory_order_relaxed);
    if (forked)
        return cudaErrorInitializationError;
    if (settings().devices == 0)
        return cudaErrorNoDevice;
    if (!used.load(std::memory_order_relaxed))
        used = true;
    return wants_failure(name) ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t report(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("cudasim: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

int current_device() { return device_of_thread; }

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorDeviceUninitialized, "cudaErrorDeviceUninitialized", "invalid device context"},
    {cudaErrorMapBufferObjectFailed, "cudaErrorMapBufferObjectFailed", "mapping of buffer object failed"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorSymbolNotFound, "cudaErrorSymbolNotFound", "named symbol not found"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorPeerAccessAlreadyEnabled, "cudaErrorPeerAccessAlreadyEnabled", "peer access is already enabled"},
    {cudaErrorTooManyPeers, "cudaErrorTooManyPeers", "peer mapping resources exhausted"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT void cudasim_fail(const char *calls)
{
    settings();
    set_failures(calls);
}

CUDASIM_EXPORT unsigned long cudasim_calls(const char *name)
{
    unsigned long count = 0;
    for (Call *call = all_calls; call != nullptr; call = call->next)
        if (strcmp(call->name, name) == 0)
            count += call->count;
    return count;
}

CUDASIM_EXPORT const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &row : errors)
        if (row.error == error)
            return row.name;
    return "unrecognized error code";
}

CUDASIM_EXPORT const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &row : errors)
        if (row.error == error)
            return row.text;
    return "unrecognized error code";
}

CUDASIM_EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }

CUDASIM_EXPORT cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

CUDASIM_EXPORT cudaError_t cudaGetDeviceCount(int *count)
{
    if (count != nullptr)
        *count = 0;
    CUDASIM_ENTER();
    if (count == nullptr)
        return report(cudaErrorInvalidValue);
    *count = settings().devices;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaGetDevice(int *device)
{
    CUDASIM_ENTER();
    *device = device_of_thread;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaSetDevice(int device)
{
    CUDASIM_ENTER();
    if (device < 0 || device >= settings().devices)
        return report(cudaErrorInvalidDevice);
    device_of_thread = device;
    return cudaSuccess;
}

/* A small GPU, so that grids that fill it are small too. */
static void describe(cudaDeviceProp *prop, int device)
{
    *prop = {};
    snprintf(prop->name, sizeof(prop->name), "Simulated GPU");
    prop->totalGlobalMem = settings().memory;
    prop->sharedMemPerBlock = 48 << 10;
    prop->regsPerBlock = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
    prop->maxThreadsDim[2] = 64;
    prop->maxGridSize[0] = 0x7fffffff;
    prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    prop->major = 9;
    prop->multiProcessorCount = 4;
    prop->canMapHostMemory = 1;
    prop->pciBusID = device + 1;
    prop->unifiedAddressing = 1;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->canUseHostPointerForRegisteredMem = 1;
    prop->hostRegisterSupported = 1;
    prop->memoryPoolsSupported = 1;
}

CUDASIM_EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device)
{
    CUDASIM_ENTER();
    if (device < 0 || device >= settings().devices)
        return report(cudaErrorInvalidDevice);
    describe(prop, device);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int device)
{
    CUDASIM_ENTER();
    if (device < 0 || device >= settings().devices)
        return report(cudaErrorInvalidDevice);
    cudaDeviceProp prop;
    describe(&prop, device);
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock: *value = prop.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: *value = prop.maxThreadsDim[0]; break;
    case cudaDevAttrMaxGridDimX: *value = prop.maxGridSize[0]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(prop.sharedMemPerBlock); break;
    case cudaDevAttrWarpSize: *value = prop.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = prop.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = prop.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrPciBusId: *value = prop.pciBusID; break;
    case cudaDevAttrComputeCapabilityMajor: *value = prop.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = prop.minor; break;
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrStreamPrioritiesSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    case cudaDevAttrIntegrated:
    case cudaDevAttrPciDeviceId:
    case cudaDevAttrPciDomainId:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrHostNativeAtomicSupported:
    case cudaDevAttrPageableMemoryAccess: *value = 0; break;
    default: return report(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaDeviceGetPCIBusId(char *pciBusId, int len, int device)
{
    CUDASIM_ENTER();
    if (device < 0 || device >= settings().devices)
        return report(cudaErrorInvalidDevice);
    if (len < 13)
        return report(cudaErrorInvalidValue);
    snprintf(pciBusId, static_cast<size_t>(len), "0000:%02X:00.0", (device + 1) & 0xff);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *leastPriority, int *greatestPriority)
{
    CUDASIM_ENTER();
    *leastPriority = 0;
    *greatestPriority = -5;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaRuntimeGetVersion(int *runtimeVersion)
{
    *runtimeVersion = CUDART_VERSION;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaDriverGetVersion(int *driverVersion)
{
    *driverVersion = CUDART_VERSION;
    return cudaSuccess;
}
