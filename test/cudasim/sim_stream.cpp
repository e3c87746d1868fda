/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams: each is a queue with a thread.
 */
#include "cudasim/sim.h"

#include <cudasim.h>

#include <pthread.h>
#include <random>
#include <signal.h>
#include <thread>

namespace cudasim {

struct All {
    Handles<Stream> streams{0x50000000};
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

static uintptr_t number(const void *handle) { return reinterpret_cast<uintptr_t>(handle); }

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
    if (is_captured(this))
        die("cudasim itself runs an operation of a stream that is captured");
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

std::shared_ptr<Stream> make_stream(int device, bool legacy, bool blocking)
{
    std::shared_ptr<Stream> stream = std::make_shared<Stream>(device, legacy, blocking);
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
    std::shared_ptr<Stream> made = make_stream(current_device(), true, false);
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
    std::shared_ptr<Stream> made = make_stream(current_device(), false, flags == cudaStreamDefault);
    *stream = reinterpret_cast<cudaStream_t>(all().streams.add(made));
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
    std::shared_ptr<Stream> found = stream == nullptr ? nullptr : find_stream(stream);
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    cudaError_t error = check_not_captured(found);
    if (error != cudaSuccess)
        return report(error);
    if (all().streams.remove(number(stream)) == nullptr)
        return report(cudaErrorInvalidResourceHandle); /* another thread was faster */
    found->close();
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CUDASIM_ENTER_UNSAFE();
    std::shared_ptr<Stream> found = find_stream(stream);
    cudaError_t error = found == nullptr ? cudaErrorInvalidResourceHandle : check_not_captured(found);
    if (error != cudaSuccess)
        return report(error);
    found->drain();
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    CUDASIM_ENTER_UNSAFE();
    std::shared_ptr<Stream> found = find_stream(stream);
    cudaError_t error = found == nullptr ? cudaErrorInvalidResourceHandle : check_not_captured(found);
    if (error != cudaSuccess)
        return report(error);
    return report(found->idle() ? cudaSuccess : cudaErrorNotReady);
}

CUDASIM_EXPORT cudaError_t cudaDeviceSynchronize(void)
{
    CUDASIM_ENTER_UNSAFE();
    cudaError_t error = check_device(current_device());
    if (error != cudaSuccess)
        return report(error);
    drain_device(current_device());
    return cudaSuccess;
}
