/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU side of a communicator: see gpu.h. */
#include "core/gpu.h"

#include "base/log.h"
#include "base/util.h"
#include "core/exec_stream.h"
#include "core/run.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE_BYTES 4096

/* `done` runs ahead of every call that could ever be waited for: streams compare modulo 2^32. */
#define LET_GO 0x3fffffffu

/* How long callers' streams may take to pass a communicator that has ended, and its own to drain. */
#define DEPARTURE_NS 10000000000u

/* How long a failure may be left to whoever drives, who may hang inside the driver: 200 us each. */
#define PATIENCE_TURNS 1000

/* Pinned words, each on a cache line of its own. */
typedef struct words {
    _Alignas(IQ_CACHE_LINE) _Atomic uint32_t done;
    _Alignas(IQ_CACHE_LINE) uint32_t fault;
    _Alignas(IQ_CACHE_LINE) uint32_t stream_fault;
} words_t;

struct iq_gpu {
    iq_device_t device;
    iq_cuda_event_t launched; /* behind the work of the step in progress */
    bool busy;                /* `launched` is recorded and not yet reached */
    unsigned char *pinned;    /* words, outgoing, incoming */
    size_t pinned_bytes;
    atomic_bool surrendered;
    words_t *words;
    unsigned char *outgoing, *incoming;
    void *strata;             /* of the communicator, in device memory */
    iq_scratch_t host;        /* beside the device's scratch */
    iq_cuda_event_t arrivals[IQ_GPU_QUEUE_CALLS], departures[IQ_GPU_QUEUE_CALLS]; /* call s at s % IQ_GPU_QUEUE_CALLS */
};

static const iq_cuda_module_t *cuda_module(void) { return (const iq_cuda_module_t *)iq_module_load("cuda"); }

/* ---- waiting ---- */

static bool await_event(iq_gpu_t *gpu, iq_cuda_event_t event, uint64_t end_ns)
{
    const struct timespec pause = {.tv_nsec = 100000};
    isgq_result_t result;
    while ((result = gpu->device.cuda->event_poll(gpu->device.ordinal, event)) == ISGQ_IN_PROGRESS && iq_now_ns() < end_ns)
        nanosleep(&pause, NULL);
    return result != ISGQ_IN_PROGRESS;
}

/* What is launched on the communicator's own stream is done. */
static bool drain(iq_gpu_t *gpu)
{
    if (gpu->launched == NULL || gpu->device.cuda->event_record(gpu->device.ordinal, gpu->launched, gpu->device.stream) != ISGQ_SUCCESS)
        return true; /* the device is lost, and nothing runs on it */
    return await_event(gpu, gpu->launched, iq_now_ns() + DEPARTURE_NS);
}

/* ---- open ---- */

int iq_gpu_current(const isgq_comm_config_t *config)
{
    int device = IQ_CURRENT_DEVICE;
    if (config == NULL || config->device_type != ISGQ_DEVICE_CUDA || cuda_module() == NULL)
        return IQ_CURRENT_DEVICE;
    return cuda_module()->current(&device) == ISGQ_SUCCESS ? device : IQ_CURRENT_DEVICE;
}

static isgq_result_t find_device(const iq_cuda_module_t *cuda, int wanted, iq_device_t *device)
{
    int count;
    iq_cuda_device_t description;
    IQ_TRY(cuda->devices(&count));
    device->ordinal = wanted;
    if (wanted == IQ_CURRENT_DEVICE)
        IQ_TRY(cuda->current(&device->ordinal));
    IQ_TRY(cuda->describe(device->ordinal, &description));
    if (!description.awaits_words)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "device %d (%s): its driver has no stream memory operations, which device communicators need",
                       device->ordinal, description.name);
    IQ_DEBUG("device %d: %s, compute capability %d.%d, %d processors", device->ordinal, description.name, description.major, description.minor,
             description.processors);
    device->cuda = cuda;
    return cuda->warm_up(device->ordinal);
}

static isgq_result_t take_pinned(isgq_comm_t comm, iq_gpu_t *gpu)
{
    size_t bytes = iq_align_up(sizeof(words_t), PAGE_BYTES) + 2 * iq_align_up(comm->slot_bytes, PAGE_BYTES);
    unsigned char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%zu bytes to stage messages in: %s", bytes, strerror(errno));
    (void)madvise(memory, bytes, MADV_DONTFORK); /* a fork must not move our page away from under the GPU */
    isgq_result_t result = gpu->device.cuda->pin(gpu->device.ordinal, memory, bytes);
    if (result != ISGQ_SUCCESS) {
        munmap(memory, bytes);
        return result;
    }
    gpu->pinned = memory;
    gpu->pinned_bytes = bytes;
    gpu->words = (words_t *)(void *)memory;
    gpu->device.fault = &gpu->words->fault;
    gpu->outgoing = memory + iq_align_up(sizeof(words_t), PAGE_BYTES);
    gpu->incoming = gpu->outgoing + iq_align_up(comm->slot_bytes, PAGE_BYTES);
    return ISGQ_SUCCESS;
}

static isgq_result_t take_scratch(isgq_comm_t comm, iq_gpu_t *gpu)
{
    void *base;
    size_t bytes = iq_min(comm->scratch.bytes, IQ_GPU_SCRATCH_BYTES);
    isgq_result_t result = gpu->device.cuda->alloc(gpu->device.ordinal, gpu->device.stream, bytes, &base);
    if (result == ISGQ_ERR_NO_MEMORY)
        return IQ_FAIL(result, "device %d has no %zu bytes for scratch (ISGQ_SCRATCH_BYTES)", gpu->device.ordinal, bytes);
    if (result == ISGQ_SUCCESS)
        comm->scratch.base = base;
    return result;
}

/* The offsets of stratified rounding, where kernels of any stream may read them. */
static isgq_result_t take_strata(isgq_comm_t comm, iq_gpu_t *gpu)
{
    const iq_cuda_module_t *cuda = gpu->device.cuda;
    IQ_TRY(cuda->alloc(gpu->device.ordinal, gpu->device.stream, sizeof(comm->strata), &gpu->strata));
    IQ_TRY(cuda->copy(gpu->device.ordinal, gpu->device.stream, gpu->strata, comm->strata, sizeof(comm->strata)));
    gpu->device.strata = gpu->strata;
    return drain(gpu) ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_TIMEOUT, "device %d: a copy of %zu bytes did not end", gpu->device.ordinal, sizeof(comm->strata));
}

static isgq_result_t take_host_memory(isgq_comm_t comm, iq_gpu_t *gpu)
{
    size_t bytes = IQ_GPU_HOST_BYTES(iq_min(comm->scratch.bytes, IQ_GPU_SCRATCH_BYTES));
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "cannot reserve %zu bytes of host memory beside the device's: %s", bytes, strerror(errno));
    gpu->host = (iq_scratch_t){.base = base, .bytes = bytes, .mapped = bytes};
    return ISGQ_SUCCESS;
}

isgq_result_t iq_gpu_open(isgq_comm_t comm)
{
    const iq_cuda_module_t *cuda = cuda_module();
    if (cuda == NULL)
        return ISGQ_ERR_UNSUPPORTED;
    iq_gpu_t *gpu = calloc(1, sizeof(*gpu));
    if (gpu == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "communicator on device memory");
    comm->gpu = gpu;
    IQ_TRY(find_device(cuda, comm->device, &gpu->device));
    IQ_TRY(cuda->stream_create(gpu->device.ordinal, &gpu->device.stream));
    IQ_TRY(cuda->event_create(gpu->device.ordinal, &gpu->launched));
    for (int i = 0; i < IQ_GPU_QUEUE_CALLS; i++) {
        IQ_TRY(cuda->event_create(gpu->device.ordinal, &gpu->arrivals[i]));
        IQ_TRY(cuda->event_create(gpu->device.ordinal, &gpu->departures[i]));
    }
    IQ_TRY(take_pinned(comm, gpu));
    IQ_TRY(take_host_memory(comm, gpu));
    comm->site.device = &gpu->device;
    comm->site.host = &gpu->host;
    IQ_TRY(take_strata(comm, gpu));
    return take_scratch(comm, gpu);
}

void iq_gpu_watch(isgq_comm_t comm)
{
    if (comm->gpu == NULL && iq_library_in_use("libcuda.so.1"))
        comm->watch = cuda_module();
}

/* ---- close ---- */

/* `done` only ever grows, modulo 2^32: a completion must not take back that streams were let go. */
static void advance_done(isgq_comm_t comm, uint32_t value)
{
    if (comm->gpu == NULL || comm->gpu->words == NULL)
        return;
    _Atomic uint32_t *done = &comm->gpu->words->done;
    uint32_t now = atomic_load(done);
    while ((int32_t)(value - now) > 0 && !atomic_compare_exchange_weak(done, &now, value))
        ;
}

static void let_go(isgq_comm_t comm)
{
    advance_done(comm, (uint32_t)atomic_load(&comm->completed) + LET_GO);
    if (atomic_load(&comm->failed) != 0) /* else streams have passed, and other ranks' must not be told to */
        iq_stream_let_go(comm);
}

/* The pinned words must outlive every stream that still looks at them. */
static bool streams_have_passed(iq_gpu_t *gpu)
{
    uint64_t end_ns = iq_now_ns() + DEPARTURE_NS;
    bool passed = drain(gpu);
    for (int i = 0; i < IQ_GPU_QUEUE_CALLS; i++)
        passed = passed && (gpu->departures[i] == NULL || await_event(gpu, gpu->departures[i], end_ns));
    return passed;
}

/* What streams have used. */
static void free_memory(isgq_comm_t comm, iq_gpu_t *gpu)
{
    iq_memory_release(comm);
    if (comm->scratch.base != NULL)
        gpu->device.cuda->release(gpu->device.ordinal, gpu->device.stream, comm->scratch.base);
    if (gpu->strata != NULL)
        gpu->device.cuda->release(gpu->device.ordinal, gpu->device.stream, gpu->strata);
    if (comm->own_room != NULL)
        gpu->device.cuda->release(gpu->device.ordinal, gpu->device.stream, comm->own_room);
    comm->own_room = NULL;
    iq_stream_close(comm);
    if (gpu->pinned == NULL)
        return;
    gpu->device.cuda->unpin(gpu->pinned);
    munmap(gpu->pinned, gpu->pinned_bytes);
}

void iq_gpu_close(isgq_comm_t comm)
{
    iq_gpu_t *gpu = comm->gpu;
    if (gpu == NULL)
        return;
    const iq_cuda_module_t *cuda = gpu->device.cuda;
    if (cuda != NULL) {
        let_go(comm);
        if (streams_have_passed(gpu))
            free_memory(comm, gpu);
        else /* a stream that does not move may look at it later */
            IQ_WARN("a stream has not passed its last call: the communicator's device and pinned memory stays");
        for (int i = 0; i < IQ_GPU_QUEUE_CALLS; i++) {
            if (gpu->arrivals[i] != NULL)
                cuda->event_destroy(gpu->device.ordinal, gpu->arrivals[i]);
            if (gpu->departures[i] != NULL)
                cuda->event_destroy(gpu->device.ordinal, gpu->departures[i]);
        }
        if (gpu->launched != NULL)
            cuda->event_destroy(gpu->device.ordinal, gpu->launched);
        if (gpu->device.stream != NULL)
            cuda->stream_destroy(gpu->device.ordinal, gpu->device.stream);
    }
    if (gpu->host.mapped != 0)
        munmap(gpu->host.base, gpu->host.mapped);
    comm->scratch.base = NULL;
    comm->gpu = NULL;
    free(gpu);
}

/* ---- for calls ---- */

isgq_result_t iq_gpu_check_buffer(isgq_comm_t comm, const char *operation, const char *name, const void *buffer)
{
    const iq_cuda_module_t *cuda = comm->gpu != NULL ? comm->gpu->device.cuda : comm->watch;
    iq_cuda_place_t place;
    int device;
    if (cuda == NULL || buffer == NULL)
        return ISGQ_SUCCESS;
    if (comm->gpu == NULL && (!cuda->in_use() || cuda->locate(-1, buffer, &place, &device) != ISGQ_SUCCESS))
        return ISGQ_SUCCESS; /* a process whose CUDA does not work has no device memory */
    if (comm->gpu != NULL)
        IQ_TRY(cuda->locate(comm->gpu->device.ordinal, buffer, &place, &device));
    if (comm->gpu == NULL && place == IQ_CUDA_DEVICE)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s is memory of device %d; this communicator works on host memory", operation, name, device);
    if (comm->gpu != NULL && place == IQ_CUDA_HOST)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s is host memory; this communicator works on memory of device %d", operation, name,
                       comm->gpu->device.ordinal);
    if (comm->gpu != NULL && place == IQ_CUDA_DEVICE && device != comm->gpu->device.ordinal)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s is memory of device %d; this communicator works on device %d", operation, name, device,
                       comm->gpu->device.ordinal);
    return ISGQ_SUCCESS;
}

/* A graph cannot contain what hosts do. */
static isgq_result_t refuse_capture(isgq_comm_t comm, const char *operation, isgq_stream_t stream)
{
    bool capturing;
    IQ_TRY(comm->gpu->device.cuda->stream_capturing(comm->gpu->device.ordinal, stream, &capturing));
    if (!capturing)
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: the stream is being captured, and what hosts carry (transports %s) cannot be part of a graph",
                   operation, comm->transport_names);
}

isgq_result_t iq_gpu_check_stream(isgq_comm_t comm, const char *operation, isgq_stream_t stream)
{
    if (comm->gpu == NULL)
        return stream == NULL ? ISGQ_SUCCESS
                              : IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: a communicator for host memory takes no stream; pass NULL", operation);
    return comm->stream_exec != NULL ? ISGQ_SUCCESS : refuse_capture(comm, operation, stream); /* else when the call is enqueued */
}

isgq_result_t iq_gpu_give_up(isgq_comm_t comm, isgq_result_t result)
{
    char text[IQ_ERROR_TEXT_BYTES];
    snprintf(text, sizeof(text), "rank %d: %.480s", comm->rank, iq_last_error());
    iq_control_abort(comm->control, result, comm->rank, text);
    iq_comm_fail(comm, result, text);
    return result;
}

static iq_cuda_event_t event_of(const iq_cuda_event_t events[IQ_GPU_QUEUE_CALLS], uint64_t sequence)
{
    return events[sequence % IQ_GPU_QUEUE_CALLS];
}

isgq_result_t iq_gpu_mark_arrival(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream)
{
    iq_device_t *device = &comm->gpu->device;
    return device->cuda->event_record(device->ordinal, event_of(comm->gpu->arrivals, sequence), stream);
}

isgq_result_t iq_gpu_mark_departure(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream)
{
    iq_device_t *device = &comm->gpu->device;
    return device->cuda->event_record(device->ordinal, event_of(comm->gpu->departures, sequence), stream);
}

isgq_result_t iq_gpu_follow(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream)
{
    iq_device_t *device = &comm->gpu->device;
    return device->cuda->wait_event(device->ordinal, stream, event_of(comm->gpu->departures, sequence));
}

isgq_result_t iq_gpu_enqueue(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream)
{
    iq_gpu_t *gpu = comm->gpu;
    iq_device_t *device = &gpu->device;
    IQ_TRY(refuse_capture(comm, "this call", stream));
    IQ_TRY(iq_gpu_mark_arrival(comm, sequence, stream));
    IQ_TRY(device->cuda->await(device->ordinal, stream, (uint32_t *)&gpu->words->done, (uint32_t)sequence));
    isgq_result_t result = iq_gpu_mark_departure(comm, sequence, stream);
    return result == ISGQ_SUCCESS ? result : iq_gpu_give_up(comm, result);
}

/* ---- for the run ---- */

isgq_result_t iq_gpu_arrival(isgq_comm_t comm, uint64_t sequence)
{
    iq_device_t *device = &comm->gpu->device;
    return device->cuda->event_poll(device->ordinal, event_of(comm->gpu->arrivals, sequence));
}

isgq_result_t iq_gpu_departure(isgq_comm_t comm, uint64_t sequence)
{
    iq_device_t *device = &comm->gpu->device;
    return device->cuda->event_poll(device->ordinal, event_of(comm->gpu->departures, sequence));
}

bool iq_gpu_busy(isgq_comm_t comm) { return comm->gpu != NULL && comm->gpu->busy; }

isgq_result_t iq_gpu_finish(isgq_comm_t comm, const char *codec)
{
    iq_gpu_t *gpu = comm->gpu;
    iq_device_t *device = &gpu->device;
    if (!gpu->busy) {
        if (device->result != ISGQ_SUCCESS)
            return iq_device_check(device, codec);
        IQ_TRY(device->cuda->event_record(device->ordinal, gpu->launched, device->stream));
        gpu->busy = true;
    }
    isgq_result_t result = device->cuda->event_poll(device->ordinal, gpu->launched);
    if (result == ISGQ_IN_PROGRESS)
        return result;
    gpu->busy = false;
    return result == ISGQ_SUCCESS ? iq_device_check(device, codec) : result;
}

unsigned char *iq_gpu_outgoing(isgq_comm_t comm) { return comm->gpu->outgoing; }
unsigned char *iq_gpu_incoming(isgq_comm_t comm) { return comm->gpu->incoming; }
iq_device_t *iq_gpu_device(isgq_comm_t comm) { return &comm->gpu->device; }
uint32_t *iq_gpu_stream_fault(isgq_comm_t comm) { return &comm->gpu->words->stream_fault; }

void iq_gpu_use(isgq_comm_t comm)
{
    if (comm->gpu != NULL)
        (void)comm->gpu->device.cuda->use(comm->gpu->device.ordinal); /* if that fails, what follows says so */
}

void iq_gpu_complete(isgq_comm_t comm, uint64_t sequence) { advance_done(comm, (uint32_t)sequence); }

void iq_gpu_surrender(isgq_comm_t comm)
{
    if (comm->gpu == NULL || atomic_load(&comm->gpu->surrendered))
        return;
    (void)drain(comm->gpu);
    let_go(comm);
    atomic_store(&comm->gpu->surrendered, true);
}

void iq_gpu_failed(isgq_comm_t comm)
{
    const struct timespec pause = {.tv_nsec = 200000};
    if (comm->gpu == NULL || iq_progress_is_mine(comm))
        return;
    for (int turn = 0; turn < PATIENCE_TURNS && !atomic_load(&comm->gpu->surrendered); turn++) {
        if (pthread_mutex_trylock(&comm->progress_lock) == 0) {
            bool idle = comm->run->call == NULL; /* nothing of ours runs on the device */
            pthread_mutex_unlock(&comm->progress_lock);
            if (idle)
                break;
        }
        nanosleep(&pause, NULL);
    }
    let_go(comm);
}

/* ---- memory of isgq_mem_alloc ---- */

isgq_result_t iq_gpu_alloc(isgq_comm_t comm, size_t bytes, void **memory)
{
    iq_device_t *device = &comm->gpu->device;
    return device->cuda->alloc(device->ordinal, device->stream, bytes, memory);
}

void iq_gpu_free(isgq_comm_t comm, void *memory)
{
    iq_device_t *device = &comm->gpu->device;
    device->cuda->release(device->ordinal, device->stream, memory);
}

/* Not out of scratch: whether a rank has a tensor is its own affair. Calls use it one after another. */
isgq_result_t iq_gpu_take_own_room(isgq_comm_t comm)
{
    const iq_site_t *site = comm->stream_exec != NULL ? &comm->stream_exec->site : &comm->site;
    void *room;
    if (comm->gpu == NULL || comm->own_room != NULL)
        return ISGQ_SUCCESS;
    IQ_TRY(iq_gpu_alloc(comm, iq_own_error_room(site->chunk_bytes), &room));
    comm->own_room = room;
    return ISGQ_SUCCESS;
}

/* ---- copies for programs ---- */

/* The communicator's own stream never waits for anybody, so this ends. Yields instead of sleeping: programs take times of it. */
isgq_result_t iq_gpu_copy_now(isgq_comm_t comm, void *dst, const void *src, size_t bytes)
{
    iq_device_t *device = &comm->gpu->device;
    iq_cuda_event_t copied = NULL;
    IQ_TRY(device->cuda->event_create(device->ordinal, &copied));
    isgq_result_t result = device->cuda->copy(device->ordinal, device->stream, dst, src, bytes);
    if (result == ISGQ_SUCCESS)
        result = device->cuda->event_record(device->ordinal, copied, device->stream);
    if (result == ISGQ_SUCCESS)
        while ((result = device->cuda->event_poll(device->ordinal, copied)) == ISGQ_IN_PROGRESS)
            sched_yield();
    device->cuda->event_destroy(device->ordinal, copied);
    return result;
}
