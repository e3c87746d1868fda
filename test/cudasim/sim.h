/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the simulated CUDA: what its files need of one another. All state is made at the first use and never destroyed, because
 * the threads of streams run until the process ends.
 */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H

#include <cuda_runtime.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

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
    explicit Stream(int device_number) : device(device_number) {}
    /* Returns the number of the operation. */
    uint64_t push(std::function<void()> operation);
    void wait(uint64_t number); /* until that operation is done */
    void drain();               /* until all that were pushed before are done */
    bool idle();
    void close(); /* after what was pushed */

    const int device;

  private:
    static void serve(const std::shared_ptr<Stream> &stream);

    std::mutex lock;
    std::condition_variable work, progress;
    std::deque<std::function<void()>> queue;
    uint64_t pushed = 0, done = 0;
    bool running = false, closing = false;

    friend std::shared_ptr<Stream> make_stream(int device);
    std::weak_ptr<Stream> own;
};

std::shared_ptr<Stream> make_stream(int device);
/* NULL is the default stream of the current device; nullptr if there is no such stream. */
std::shared_ptr<Stream> find_stream(cudaStream_t handle);
void drain_device(int device);
int stream_count();
int event_count();

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
