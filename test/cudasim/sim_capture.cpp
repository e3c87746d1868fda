/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures: streams whose operations become nodes of a graph. A capture begins in one stream; another one belongs to it from the
 * moment it waits for an event that was recorded in it, until the capture ends. What CUDA forbids meanwhile fails here too, and makes
 * the capture invalid. All captures have one lock.
 */
#include "cudasim/sim.h"

#include <algorithm>
#include <stdlib.h>
#include <string.h>
#include <thread>

namespace cudasim {

struct Member {
    size_t lane;
    std::vector<size_t> after; /* what the next node waits for */
};

struct Capture {
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    std::shared_ptr<Stream> origin;
    bool valid, ended;
    std::map<std::shared_ptr<Stream>, Member> members;
    Graph graph;
};

struct Mark {
    std::shared_ptr<Capture> capture;
    std::vector<size_t> after;
};

struct Captures {
    std::mutex lock;
    std::vector<std::shared_ptr<Capture>> list; /* those that have not ended */
};
static std::atomic<bool> any_capture{false};
static thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;

static Captures &captures()
{
    static Captures *made = new Captures;
    return *made;
}

/* ---- with the lock held ---- */

static std::shared_ptr<Capture> capture_of(const std::shared_ptr<Stream> &stream)
{
    for (const std::shared_ptr<Capture> &each : captures().list)
        if (each->members.count(stream) != 0)
            return each;
    return nullptr;
}

static cudaError_t invalidate(const std::shared_ptr<Capture> &capture, cudaError_t error)
{
    capture->valid = false;
    return error;
}

/* A default stream waits for all blocking streams of its device, so that nothing can be done in it while one is captured. */
static bool is_in_the_way(const Capture &capture, const Stream &stream)
{
    for (const auto &member : capture.members)
        if (stream.legacy && member.first->blocking && member.first->device == stream.device)
            return true;
    return false;
}

static cudaError_t check_legacy(const std::shared_ptr<Stream> &stream)
{
    cudaError_t error = cudaSuccess;
    for (const std::shared_ptr<Capture> &capture : captures().list)
        if (is_in_the_way(*capture, *stream))
            error = invalidate(capture, cudaErrorStreamCaptureImplicit);
    return error;
}

/* The capture in which a stream is, nullptr if it is in none. */
static cudaError_t find_capture(const std::shared_ptr<Stream> &stream, std::shared_ptr<Capture> *capture)
{
    *capture = capture_of(stream);
    if (*capture == nullptr)
        return check_legacy(stream);
    return (*capture)->valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

static void add(std::vector<size_t> *numbers, const std::vector<size_t> &more)
{
    numbers->insert(numbers->end(), more.begin(), more.end());
    std::sort(numbers->begin(), numbers->end());
    numbers->erase(std::unique(numbers->begin(), numbers->end()), numbers->end());
}

/* Does the stream in which the capture began come after every node? */
static bool is_joined(const Capture &capture)
{
    std::vector<bool> before(capture.graph.nodes.size(), false);
    for (size_t number : capture.members.at(capture.origin).after)
        before[number] = true;
    for (size_t i = before.size(); i-- > 0;) {
        if (!before[i])
            return false;
        for (size_t number : capture.graph.nodes[i].after)
            before[number] = true;
    }
    return true;
}

static void end(const std::shared_ptr<Capture> &capture)
{
    std::vector<std::shared_ptr<Capture>> &list = captures().list;
    list.erase(std::find(list.begin(), list.end(), capture));
    capture->members.clear();
    capture->ended = true;
    any_capture = !list.empty();
}

/* ---- for the other files ---- */

bool is_captured(const Stream *stream)
{
    if (!any_capture)
        return false;
    std::lock_guard<std::mutex> guard(captures().lock);
    for (const std::shared_ptr<Capture> &capture : captures().list)
        for (const auto &member : capture->members)
            if (member.first.get() == stream)
                return true;
    return false;
}

cudaError_t submit(const std::shared_ptr<Stream> &stream, std::function<void()> operation, uint64_t *number)
{
    uint64_t pushed = 0;
    if (any_capture) {
        std::lock_guard<std::mutex> guard(captures().lock);
        std::shared_ptr<Capture> capture;
        cudaError_t error = find_capture(stream, &capture);
        if (error != cudaSuccess)
            return error;
        if (capture != nullptr) {
            Member &member = capture->members[stream];
            capture->graph.nodes.push_back({member.lane, member.after, std::move(operation)});
            member.after = {capture->graph.nodes.size() - 1};
            if (number != nullptr)
                *number = 0;
            return cudaSuccess;
        }
    }
    pushed = stream->push(std::move(operation));
    if (number != nullptr)
        *number = pushed;
    return cudaSuccess;
}

cudaError_t check_unsafe()
{
    if (!any_capture || mode_of_thread == cudaStreamCaptureModeRelaxed)
        return cudaSuccess;
    cudaError_t error = cudaSuccess;
    std::lock_guard<std::mutex> guard(captures().lock);
    for (const std::shared_ptr<Capture> &capture : captures().list) {
        bool own = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
        if (own || (mode_of_thread == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal))
            error = invalidate(capture, cudaErrorStreamCaptureUnsupported);
    }
    return error;
}

cudaError_t check_not_captured(const std::shared_ptr<Stream> &stream)
{
    if (!any_capture)
        return cudaSuccess;
    std::lock_guard<std::mutex> guard(captures().lock);
    std::shared_ptr<Capture> capture = capture_of(stream);
    return capture == nullptr ? check_legacy(stream) : invalidate(capture, cudaErrorStreamCaptureUnsupported);
}

cudaError_t check_device(int device)
{
    cudaError_t error = cudaSuccess;
    if (!any_capture)
        return error;
    std::lock_guard<std::mutex> guard(captures().lock);
    for (const std::shared_ptr<Capture> &capture : captures().list)
        for (const auto &member : capture->members)
            if (member.first->device == device)
                error = invalidate(capture, cudaErrorStreamCaptureUnsupported);
    return error;
}

cudaError_t make_mark(const std::shared_ptr<Stream> &stream, std::shared_ptr<Mark> *mark)
{
    if (!any_capture)
        return cudaSuccess;
    std::lock_guard<std::mutex> guard(captures().lock);
    std::shared_ptr<Capture> capture;
    cudaError_t error = find_capture(stream, &capture);
    if (error == cudaSuccess && capture != nullptr)
        *mark = std::make_shared<Mark>(Mark{capture, capture->members[stream].after});
    return error;
}

cudaError_t wait_for_mark(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Mark> &mark)
{
    std::lock_guard<std::mutex> guard(captures().lock);
    std::shared_ptr<Capture> capture, of = mark->capture;
    cudaError_t error = find_capture(stream, &capture);
    if (error != cudaSuccess)
        return error;
    if (of->ended)
        return capture == nullptr ? cudaErrorCapturedEvent : invalidate(capture, cudaErrorStreamCaptureIsolation);
    if (!of->valid)
        return cudaErrorStreamCaptureInvalidated;
    if (stream->legacy)
        return invalidate(of, cudaErrorStreamCaptureImplicit);
    if (capture != nullptr && capture != of) {
        invalidate(capture, cudaErrorStreamCaptureMerge);
        return invalidate(of, cudaErrorStreamCaptureMerge);
    }
    if (capture == nullptr) {
        of->members[stream].lane = of->graph.devices.size();
        of->graph.devices.push_back(stream->device);
    }
    add(&of->members[stream].after, mark->after);
    return cudaSuccess;
}

cudaError_t wait_from_outside(const std::shared_ptr<Stream> &stream, bool *captured)
{
    if (!any_capture)
        return cudaSuccess;
    std::lock_guard<std::mutex> guard(captures().lock);
    std::shared_ptr<Capture> capture;
    cudaError_t error = find_capture(stream, &capture);
    *captured = capture != nullptr;
    return error == cudaSuccess && capture != nullptr ? invalidate(capture, cudaErrorStreamCaptureIsolation) : error;
}

cudaError_t check_mark(const std::shared_ptr<Mark> &mark)
{
    std::lock_guard<std::mutex> guard(captures().lock);
    return invalidate(mark->capture, cudaErrorCapturedEvent);
}

/* ---- beginning and ending ---- */

static cudaError_t begin_capture(const std::shared_ptr<Stream> &stream, cudaStreamCaptureMode mode)
{
    if (stream == nullptr)
        return cudaErrorInvalidResourceHandle;
    if (stream->legacy)
        return cudaErrorStreamCaptureUnsupported;
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
        return cudaErrorInvalidValue;
    std::lock_guard<std::mutex> guard(captures().lock);
    if (capture_of(stream) != nullptr)
        return cudaErrorIllegalState;
    std::shared_ptr<Capture> made = std::make_shared<Capture>();
    made->mode = mode;
    made->thread = std::this_thread::get_id();
    made->origin = stream;
    made->valid = true;
    made->members[stream].lane = 0;
    made->graph.devices.push_back(stream->device);
    captures().list.push_back(made);
    any_capture = true;
    return cudaSuccess;
}

static cudaError_t end_capture(const std::shared_ptr<Stream> &stream, cudaGraph_t *graph)
{
    if (stream == nullptr)
        return cudaErrorInvalidResourceHandle;
    std::lock_guard<std::mutex> guard(captures().lock);
    std::shared_ptr<Capture> capture = capture_of(stream);
    if (capture == nullptr)
        return cudaErrorIllegalState;
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return cudaErrorStreamCaptureWrongThread;
    if (capture->origin != stream)
        return invalidate(capture, cudaErrorStreamCaptureUnmatched);
    cudaError_t error = cudaErrorStreamCaptureInvalidated;
    if (capture->valid)
        error = is_joined(*capture) ? cudaSuccess : cudaErrorStreamCaptureUnjoined;
    end(capture);
    if (error == cudaSuccess)
        *graph = add_graph(std::make_shared<Graph>(std::move(capture->graph)));
    return error;
}

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode)
{
    CUDASIM_ENTER();
    if (*mode < cudaStreamCaptureModeGlobal || *mode > cudaStreamCaptureModeRelaxed)
        return report(cudaErrorInvalidValue);
    std::swap(mode_of_thread, *mode);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    CUDASIM_ENTER();
    return report(begin_capture(find_stream(stream), mode));
}

CUDASIM_EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *pGraph)
{
    CUDASIM_ENTER();
    *pGraph = nullptr;
    return report(end_capture(find_stream(stream), pGraph));
}

CUDASIM_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    const char *pretended = getenv("CUDASIM_CAPTURING");
    *status = pretended != nullptr && strcmp(pretended, "1") == 0 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    std::lock_guard<std::mutex> guard(captures().lock);
    for (const std::shared_ptr<Capture> &each : captures().list)
        if (is_in_the_way(*each, *found))
            return report(cudaErrorStreamCaptureImplicit); /* which leaves the capture valid */
    std::shared_ptr<Capture> capture = capture_of(found);
    if (capture != nullptr)
        *status = capture->valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}
