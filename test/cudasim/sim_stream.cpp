/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams and events. A stream is a queue with a thread; an event is the last of its records, and who waits for an event waits for
 * the record that was the last one when it asked.
 */
#include "cudasim/sim.h"

#include <cudasim.h>

#include <chrono>
#include <pthread.h>
#include <random>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>

namespace cudasim {

typedef std::chrono::steady_clock Clock;

struct Record {
    std::mutex lock;
    std::condition_variable completed;
    bool done = false;
    Clock::time_point time;

    void complete()
    {
        std::lock_guard<std::mutex> guard(lock);
        done = true;
        time = Clock::now();
        completed.notify_all();
    }
    void wait()
    {
        std::unique_lock<std::mutex> guard(lock);
        while (!done)
            completed.wait(guard);
    }
    bool is_done()
    {
        std::lock_guard<std::mutex> guard(lock);
        return done;
    }
};

struct Event {
    int device;
    bool timing;
    std::mutex lock;
    std::shared_ptr<Record> last;

    std::shared_ptr<Record> record()
    {
        std::lock_guard<std::mutex> guard(lock);
        return last;
    }
};

struct All {
    Handles<Stream> streams{0x50000000};
    Handles<Event> events{0xe0000000};
    std::mutex lock;
    std::vector<std::shared_ptr<Stream>> every; /* closed ones too, while they work */
    std::map<int, std::shared_ptr<Stream>> defaults;
};

static All &all()
{
    static All *made = new All;
    return *made;
}

int stream_count() { return all().streams.size(); }
int event_count() { return all().events.size(); }

static uintptr_t number(const void *handle) { return reinterpret_cast<uintptr_t>(handle); }

static std::shared_ptr<Event> find_event(cudaEvent_t event) { return all().events.find(number(event)); }

/* Who waits for the device does not wait for this stream any more. */
static void forget(const Stream *stream)
{
    std::lock_guard<std::mutex> guard(all().lock);
    std::vector<std::shared_ptr<Stream>> &every = all().every;
    for (std::shared_ptr<Stream> &each : every)
        if (each.get() == stream) {
            std::swap(each, every.back());
            every.pop_back();
            return;
        }
}

/* ---- the thread of a stream ---- */

static void delay()
{
    static thread_local std::minstd_rand random(static_cast<unsigned>(std::hash<std::thread::id>()(std::this_thread::get_id())));
    if (settings().delay > 0)
        std::this_thread::sleep_for(std::chrono::microseconds(random() % (settings().delay + 1)));
}

void Stream::serve(const std::shared_ptr<Stream> &stream)
{
    std::unique_lock<std::mutex> guard(stream->lock);
    for (;;) {
        while (stream->queue.empty() && !stream->closing)
            stream->work.wait(guard);
        if (stream->queue.empty())
            break;
        std::function<void()> operation = std::move(stream->queue.front());
        stream->queue.pop_front();
        guard.unlock();
        delay();
        operation();
        operation = nullptr;
        guard.lock();
        stream->done++;
        stream->progress.notify_all();
    }
    guard.unlock();
    forget(stream.get());
}

uint64_t Stream::push(std::function<void()> operation)
{
    std::lock_guard<std::mutex> guard(lock);
    if (!running) {
        /* Signals belong to the threads of the program. */
        sigset_t blocked, before;
        sigfillset(&blocked);
        pthread_sigmask(SIG_SETMASK, &blocked, &before);
        std::thread([stream = own.lock()] { serve(stream); }).detach();
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        running = true;
    }
    queue.push_back(std::move(operation));
    work.notify_one();
    return ++pushed;
}

void Stream::wait(uint64_t operation)
{
    std::unique_lock<std::mutex> guard(lock);
    while (done < operation)
        progress.wait(guard);
}

void Stream::drain()
{
    std::unique_lock<std::mutex> guard(lock);
    uint64_t until = pushed;
    while (done < until)
        progress.wait(guard);
}

bool Stream::idle()
{
    std::lock_guard<std::mutex> guard(lock);
    return done == pushed;
}

void Stream::close()
{
    std::unique_lock<std::mutex> guard(lock);
    closing = true;
    work.notify_one();
    if (running)
        return;
    guard.unlock();
    forget(this);
}

std::shared_ptr<Stream> make_stream(int device)
{
    std::shared_ptr<Stream> stream = std::make_shared<Stream>(device);
    stream->own = stream;
    All &state = all();
    std::lock_guard<std::mutex> guard(state.lock);
    state.every.push_back(stream);
    return stream;
}

std::shared_ptr<Stream> find_stream(cudaStream_t handle)
{
    All &state = all();
    if (handle != nullptr)
        return state.streams.find(number(handle));
    {
        std::lock_guard<std::mutex> guard(state.lock);
        auto found = state.defaults.find(current_device());
        if (found != state.defaults.end())
            return found->second;
    }
    std::shared_ptr<Stream> made = make_stream(current_device());
    std::unique_lock<std::mutex> guard(state.lock);
    std::shared_ptr<Stream> used = state.defaults.emplace(made->device, made).first->second;
    guard.unlock();
    if (used != made)
        made->close(); /* another thread was faster */
    return used;
}

void drain_device(int device)
{
    std::vector<std::shared_ptr<Stream>> streams;
    {
        std::lock_guard<std::mutex> guard(all().lock);
        for (std::shared_ptr<Stream> &each : all().every)
            if (each->device == device)
                streams.push_back(each);
    }
    for (std::shared_ptr<Stream> &stream : streams)
        stream->drain();
}

} // namespace cudasim

using namespace cudasim;

/* ---- streams ---- */

static cudaError_t create_stream(cudaStream_t *stream, unsigned int flags)
{
    if (stream == nullptr || flags > cudaStreamNonBlocking)
        return report(cudaErrorInvalidValue);
    *stream = reinterpret_cast<cudaStream_t>(all().streams.add(make_stream(current_device())));
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int)
{
    CUDASIM_ENTER();
    return create_stream(stream, flags);
}

CUDASIM_EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    CUDASIM_ENTER();
    return create_stream(stream, flags);
}

CUDASIM_EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    CUDASIM_ENTER();
    return create_stream(stream, cudaStreamDefault);
}

CUDASIM_EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = all().streams.remove(number(stream));
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    found->close();
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    found->drain();
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    return report(found->idle() ? cudaSuccess : cudaErrorNotReady);
}

CUDASIM_EXPORT cudaError_t cudaDeviceSynchronize(void)
{
    CUDASIM_ENTER();
    drain_device(current_device());
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode)
{
    static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
    CUDASIM_ENTER();
    cudaStreamCaptureMode before = current;
    current = *mode;
    *mode = before;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    CUDASIM_ENTER();
    if (find_stream(stream) == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    const char *capturing = getenv("CUDASIM_CAPTURING");
    bool active = capturing != nullptr && strcmp(capturing, "1") == 0;
    *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    std::shared_ptr<Event> of = find_event(event);
    if (found == nullptr || of == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    if (std::shared_ptr<Record> record = of->record())
        found->push([record] { record->wait(); });
    return cudaSuccess;
}

/* ---- events ---- */

static cudaError_t create_event(cudaEvent_t *event, unsigned int flags)
{
    std::shared_ptr<Event> made = std::make_shared<Event>();
    made->device = current_device();
    made->timing = (flags & cudaEventDisableTiming) == 0;
    *event = reinterpret_cast<cudaEvent_t>(all().events.add(made));
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    CUDASIM_ENTER();
    return create_event(event, flags);
}

CUDASIM_EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    CUDASIM_ENTER();
    return create_event(event, cudaEventDefault);
}

CUDASIM_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    CUDASIM_ENTER();
    return report(all().events.remove(number(event)) == nullptr ? cudaErrorInvalidResourceHandle : cudaSuccess);
}

CUDASIM_EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    std::shared_ptr<Event> of = find_event(event);
    if (found == nullptr || of == nullptr || found->device != of->device)
        return report(cudaErrorInvalidResourceHandle);
    std::shared_ptr<Record> record = std::make_shared<Record>();
    std::lock_guard<std::mutex> guard(of->lock);
    of->last = record;
    found->push([record] { record->complete(); });
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaEventQuery(cudaEvent_t event)
{
    CUDASIM_ENTER();
    std::shared_ptr<Event> of = find_event(event);
    if (of == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    std::shared_ptr<Record> record = of->record();
    return report(record == nullptr || record->is_done() ? cudaSuccess : cudaErrorNotReady);
}

CUDASIM_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CUDASIM_ENTER();
    std::shared_ptr<Event> of = find_event(event);
    if (of == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    if (std::shared_ptr<Record> record = of->record())
        record->wait();
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    CUDASIM_ENTER();
    std::shared_ptr<Event> from = find_event(start), to = find_event(end);
    if (from == nullptr || to == nullptr || !from->timing || !to->timing)
        return report(cudaErrorInvalidResourceHandle);
    std::shared_ptr<Record> first = from->record(), second = to->record();
    if (first == nullptr || second == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    if (!first->is_done() || !second->is_done())
        return report(cudaErrorNotReady);
    *ms = std::chrono::duration<float, std::milli>(second->time - first->time).count();
    return cudaSuccess;
}
