/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the simulated CUDA: what its files need of one another. All state is made at the first use and never destroyed, because
 * the threads of streams run until the process ends.
 */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H

#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#define CUDASIM_EXPORT extern "C" __attribute__((visibility("default")))

namespace cudasim {

/* ---- sim_device.cpp ---- */

struct Settings {
    int devices;
    size_t memory;
    bool backward;
    unsigned delay; /* microseconds */
};
const Settings &settings();

/* One for each function of the API; counts its calls. */
class Call {
  public:
    explicit Call(const char *function);
    /* What the call must return at once: there is no device, the process was forked, or a test wants a failure. */
    cudaError_t enter();

    const char *name;
    std::atomic<unsigned long> count{0};
    Call *next;
};

/* Remembers it for cudaGetLastError. */
cudaError_t report(cudaError_t error);

#define CUDASIM_ENTER_AS(name)                   \
    static ::cudasim::Call this_call(name);      \
    do {                                         \
        cudaError_t entered = this_call.enter(); \
        if (entered != cudaSuccess)              \
            return ::cudasim::report(entered);   \
    } while (0)
#define CUDASIM_ENTER() CUDASIM_ENTER_AS(__func__)

/* Misuse for which CUDA has no error: one sentence, then abort. */
[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

int current_device();

/* Handles are numbers that are never used again, so that one that was destroyed is always found out. */
template <typename Object> class Handles {
  public:
    explicit Handles(uintptr_t first) : last(first) {}
    uintptr_t add(std::shared_ptr<Object> object)
    {
        std::lock_guard<std::mutex> guard(lock);
        last += 16;
        objects[last] = std::move(object);
        return last;
    }
    std::shared_ptr<Object> find(uintptr_t handle)
    {
        std::lock_guard<std::mutex> guard(lock);
        auto found = objects.find(handle);
        return found == objects.end() ? nullptr : found->second;
    }
    std::shared_ptr<Object> remove(uintptr_t handle)
    {
        std::lock_guard<std::mutex> guard(lock);
        auto found = objects.find(handle);
        if (found == objects.end())
            return nullptr;
        std::shared_ptr<Object> object = std::move(found->second);
        objects.erase(found);
        return object;
    }
    int size()
    {
        std::lock_guard<std::mutex> guard(lock);
        return static_cast<int>(objects.size());
    }

  private:
    std::mutex lock;
    uintptr_t last;
    std::map<uintptr_t, std::shared_ptr<Object>> objects;
};

/* ---- sim_stream.cpp ---- */

/* Runs operations one after the other on a thread of its own, which starts with the first one. */
class Stream {
  public:
    /* `legacy`: a default stream; `blocking`: created without cudaStreamNonBlocking, so that a default stream waits for it. */
    Stream(int device_number, bool is_legacy, bool is_blocking) : device(device_number), legacy(is_legacy), blocking(is_blocking)
    {
    }
    /* Returns the number of the operation. What a program asks for goes through submit(), which knows captures. */
    uint64_t push(std::function<void()> operation);
    void wait(uint64_t number); /* until that operation is done */
    void drain();               /* until all that were pushed before are done */
    bool idle();
    void close(); /* after what was pushed */

    const int device;
    const bool legacy, blocking;

  private:
    static void serve(const std::shared_ptr<Stream> &stream);

    std::mutex lock;
    std::condition_variable work, progress;
    std::deque<std::function<void()>> queue;
    uint64_t pushed = 0, done = 0;
    bool running = false, closing = false;

    friend std::shared_ptr<Stream> make_stream(int device, bool legacy, bool blocking);
    std::weak_ptr<Stream> own;
};

std::shared_ptr<Stream> make_stream(int device, bool legacy, bool blocking);
/* NULL is the default stream of the current device; nullptr if there is no such stream. */
std::shared_ptr<Stream> find_stream(cudaStream_t handle);
void drain_device(int device);
int stream_count();

/* ---- sim_event.cpp ---- */

/* A place in a stream that it has passed or not. */
class Record {
  public:
    typedef std::chrono::steady_clock Clock;

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
    Clock::time_point time; /* once it is done */

  private:
    std::mutex lock;
    std::condition_variable completed;
    bool done = false;
};

int event_count();

/* ---- sim_capture.cpp ---- */

bool is_captured(const Stream *stream);

/* What streams do: `operation` in its turn, or in the graph that is captured, each time that this is launched. `number` is for
 * Stream::wait, 0 if it was captured. */
cudaError_t submit(const std::shared_ptr<Stream> &stream, std::function<void()> operation, uint64_t *number = nullptr);

/* What a call must return at once because of captures, which become invalid then. The first is for every call that CUDA may
 * find unsafe while anybody captures: what waits, asks for the state of work, allocates or releases. */
cudaError_t check_unsafe();
cudaError_t check_not_captured(const std::shared_ptr<Stream> &stream);
cudaError_t check_device(int device); /* no stream of it is captured */

#define CUDASIM_ENTER_UNSAFE()                          \
    CUDASIM_ENTER();                                    \
    do {                                                \
        cudaError_t unsafe = ::cudasim::check_unsafe(); \
        if (unsafe != cudaSuccess)                      \
            return ::cudasim::report(unsafe);           \
    } while (0)

/* Where in a capture an event was recorded. */
struct Mark;
cudaError_t make_mark(const std::shared_ptr<Stream> &stream, std::shared_ptr<Mark> *mark); /* nullptr: it is not captured */
cudaError_t wait_for_mark(const std::shared_ptr<Stream> &stream, const std::shared_ptr<Mark> &mark);
cudaError_t wait_from_outside(const std::shared_ptr<Stream> &stream, bool *captured); /* for an event without a mark */
cudaError_t check_mark(const std::shared_ptr<Mark> &mark);                            /* nobody asks for an event with a mark */

/* ---- sim_graph.cpp ---- */

struct Node {
    size_t lane; /* nodes of a lane run one after the other; lane 0 is that of the stream in which the capture began */
    std::vector<size_t> after; /* lower numbers */
    std::function<void()> operation;
};

struct Graph {
    std::vector<Node> nodes;  /* as they were captured */
    std::vector<int> devices; /* of the lanes */
};
cudaGraph_t add_graph(std::shared_ptr<Graph> graph);
int graph_count(); /* those that can be launched, too */

/* ---- sim_memory.cpp ---- */

enum class Kind { unknown, pinned, device, gone };

/* Where bytes lie; `whole` if all of them do. */
struct Place {
    Kind kind;
    int device;
    bool whole;
};
Place locate(const void *memory, size_t bytes);

/* When an operation runs: dies if [memory, memory + bytes) is device memory that is not there yet or not any more. */
void require_present(const char *what, const void *memory, size_t bytes);

/* ---- sim_ipc.cpp ---- */

bool can_reach(int device, int other); /* cudaDeviceCanAccessPeer */
bool reaches(int device, int other);   /* it is the same, or cudaDeviceEnablePeerAccess was called */

/* ---- sim_kernel.cpp ---- */

struct Launch {
    const void *kernel;
    void (*run)(void *closure);
    void *closure;
    dim3 grid, block;
};
/* On the thread of a stream. */
void run_kernel(const Launch &launch);

/* What a kernel is called in messages. */
void kernel_name(const void *kernel, char *text, size_t size);

} // namespace cudasim

#endif
