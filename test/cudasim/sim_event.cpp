/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events: an event is the last of its records, and who waits for an event waits for the record that was the last one when it asked.
 * An event that is recorded in a captured stream has a mark instead, which orders the nodes of the graph.
 */
#include "cudasim/sim.h"

namespace cudasim {

struct Event {
    Event(int on_device, bool with_timing) : device(on_device), timing(with_timing) {}
    const int device;
    const bool timing;

    /* At most one of the two. */
    void set(std::shared_ptr<Record> new_record, std::shared_ptr<Mark> new_mark)
    {
        std::lock_guard<std::mutex> guard(lock);
        last = std::move(new_record);
        mark = std::move(new_mark);
    }
    void get(std::shared_ptr<Record> *its_record, std::shared_ptr<Mark> *its_mark)
    {
        std::lock_guard<std::mutex> guard(lock);
        *its_record = last;
        *its_mark = mark;
    }

  private:
    std::mutex lock;
    std::shared_ptr<Record> last;
    std::shared_ptr<Mark> mark;
};

static Handles<Event> &events()
{
    static Handles<Event> *made = new Handles<Event>(0xe0000000);
    return *made;
}

int event_count() { return events().size(); }

static uintptr_t number(cudaEvent_t event) { return reinterpret_cast<uintptr_t>(event); }

/* The record of an event that the host asks for: none yet is nullptr. */
static cudaError_t find_record(const std::shared_ptr<Event> &event, std::shared_ptr<Record> *record)
{
    std::shared_ptr<Mark> mark;
    if (event == nullptr)
        return cudaErrorInvalidResourceHandle;
    event->get(record, &mark);
    return mark == nullptr ? check_unsafe() : check_mark(mark);
}

static cudaError_t record(const std::shared_ptr<Event> &event, const std::shared_ptr<Stream> &stream)
{
    std::shared_ptr<Mark> mark;
    cudaError_t error = make_mark(stream, &mark);
    if (error != cudaSuccess)
        return error;
    if (mark != nullptr) {
        event->set(nullptr, mark);
        return cudaSuccess;
    }
    std::shared_ptr<Record> made = std::make_shared<Record>();
    error = submit(stream, [made] { made->complete(); });
    if (error == cudaSuccess)
        event->set(made, nullptr);
    return error;
}

static cudaError_t wait(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Event> &event)
{
    std::shared_ptr<Record> record;
    std::shared_ptr<Mark> mark;
    bool captured = false;
    event->get(&record, &mark);
    if (mark != nullptr)
        return wait_for_mark(stream, mark);
    cudaError_t error = wait_from_outside(stream, &captured);
    if (error != cudaSuccess || captured || record == nullptr)
        return error;
    return submit(stream, [record] { record->wait(); });
}

static cudaError_t create(cudaEvent_t *event, unsigned int flags)
{
    std::shared_ptr<Event> made = std::make_shared<Event>(current_device(), (flags & cudaEventDisableTiming) == 0);
    *event = reinterpret_cast<cudaEvent_t>(events().add(made));
    return cudaSuccess;
}

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    CUDASIM_ENTER();
    return create(event, flags);
}

CUDASIM_EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    CUDASIM_ENTER();
    return create(event, cudaEventDefault);
}

CUDASIM_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    CUDASIM_ENTER();
    return report(events().remove(number(event)) == nullptr ? cudaErrorInvalidResourceHandle : cudaSuccess);
}

CUDASIM_EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    std::shared_ptr<Event> of = events().find(number(event));
    if (found == nullptr || of == nullptr || found->device != of->device)
        return report(cudaErrorInvalidResourceHandle);
    return report(record(of, found));
}

CUDASIM_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    std::shared_ptr<Event> of = events().find(number(event));
    if (found == nullptr || of == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    if (flags != 0)
        return report(cudaErrorNotSupported); /* events of graphs that are outside of them */
    return report(wait(found, of));
}

CUDASIM_EXPORT cudaError_t cudaEventQuery(cudaEvent_t event)
{
    CUDASIM_ENTER();
    std::shared_ptr<Record> record;
    cudaError_t error = find_record(events().find(number(event)), &record);
    if (error == cudaSuccess && record != nullptr && !record->is_done())
        error = cudaErrorNotReady;
    return report(error);
}

CUDASIM_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CUDASIM_ENTER();
    std::shared_ptr<Record> record;
    cudaError_t error = find_record(events().find(number(event)), &record);
    if (error == cudaSuccess && record != nullptr)
        record->wait();
    return report(error);
}

CUDASIM_EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    CUDASIM_ENTER();
    std::shared_ptr<Event> from = events().find(number(start)), to = events().find(number(end));
    std::shared_ptr<Record> first, second;
    cudaError_t error = find_record(from, &first);
    if (error == cudaSuccess)
        error = find_record(to, &second);
    if (error == cudaSuccess && (!from->timing || !to->timing || first == nullptr || second == nullptr))
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (!first->is_done() || !second->is_done()))
        error = cudaErrorNotReady;
    if (error == cudaSuccess)
        *ms = std::chrono::duration<float, std::milli>(second->time - first->time).count();
    return report(error);
}
