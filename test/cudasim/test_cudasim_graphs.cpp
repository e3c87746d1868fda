/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated CUDA: captures, what they forbid, and graphs. */
#include "cudasim/test_support.h"

#include <thread>

static void begin(cudaStream_t stream, cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal)
{
    OK(cudaStreamBeginCapture(stream, mode));
}

static size_t nodes_of(cudaGraph_t graph)
{
    size_t count = 0;
    OK(cudaGraphGetNodes(graph, nullptr, &count));
    return count;
}

/* Ends a capture and makes what it has caught ready. */
static cudaGraphExec_t finish(cudaStream_t stream, size_t nodes)
{
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    OK(cudaStreamEndCapture(stream, &graph));
    ck_assert_uint_eq(nodes_of(graph), nodes);
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    return exec;
}

static cudaStreamCaptureStatus status_of(cudaStream_t stream)
{
    cudaStreamCaptureStatus status;
    OK(cudaStreamIsCapturing(stream, &status));
    return status;
}

/* The capture has become invalid; its end ends that, and the stream works again. */
static void require_invalid(cudaStream_t stream)
{
    cudaGraph_t graph = reinterpret_cast<cudaGraph_t>(stream);
    ck_assert_int_eq(status_of(stream), cudaStreamCaptureStatusInvalidated);
    ck_assert_int_eq(launch(stream, nothing), cudaErrorStreamCaptureInvalidated);
    ck_assert_int_eq(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    ck_assert_ptr_null(graph);
    ck_assert_int_eq(status_of(stream), cudaStreamCaptureStatusNone);
    OK(launch(stream, nothing));
    OK(cudaStreamSynchronize(stream));
    (void)cudaGetLastError();
}

static void wait_for_event(cudaStream_t stream, cudaStream_t of)
{
    cudaEvent_t event = new_event();
    OK(cudaEventRecord(event, of));
    OK(cudaStreamWaitEvent(stream, event, 0));
    OK(cudaEventDestroy(event));
}

/* ---- what graphs do ---- */

/* Nothing runs while it is captured; arguments are those of the capture; a graph takes its turn in the stream of its launch. */
START_TEST(graphs_are_replayed)
{
    cudaStream_t stream = new_stream();
    unsigned *list = pinned<unsigned>(40), *word = pinned<unsigned>(2), *device = nullptr, value = 7;
    OK(cudaMalloc(&device, 8));
    begin(stream);
    ck_assert_int_eq(status_of(stream), cudaStreamCaptureStatusActive);
    OK(launch(stream, append, list, value++));
    OK(launch(stream, append, list, value++));
    OK(cudaMemsetAsync(device, 1, 8, stream));
    OK(cudaMemcpyAsync(&word[1], device, 4, cudaMemcpyDefault, stream));
    cudaGraphExec_t exec = finish(stream, 4);
    ck_assert_int_eq(status_of(stream), cudaStreamCaptureStatusNone);
    OK(cudaStreamSynchronize(stream));
    ck_assert_uint_eq(list[0], 0);

    wait_word(stream, &word[0], 1);
    for (int i = 0; i < 5; i++)
        OK(cudaGraphLaunch(exec, stream));
    OK(launch(stream, append, list, 100u));
    ck_assert_int_eq(cudaStreamQuery(stream), cudaErrorNotReady);
    OK(cudaGraphExecDestroy(exec)); /* launches go on */
    set_word(&word[0], 1);
    OK(cudaStreamSynchronize(stream));
    ck_assert_uint_eq(list[0], 11);
    for (unsigned i = 0; i < 10; i++)
        ck_assert_uint_eq(list[1 + i], 7 + i % 2);
    ck_assert_uint_eq(list[11], 100);
    ck_assert_uint_eq(word[1], 0x01010101);
    ck_assert_int_eq(cudaGraphLaunch(exec, stream), cudaErrorInvalidValue);
    ck_assert_int_eq(cudasim_objects().graphs, 0);
    OK(cudaFree(device));
    OK(cudaFreeHost(list));
    OK(cudaFreeHost(word));
    OK(cudaStreamDestroy(stream));
}
END_TEST

/* Waits and writes of words are nodes, a batch is one. */
START_TEST(graphs_with_words)
{
    cudaStream_t stream = new_stream();
    unsigned *words = pinned<unsigned>(4);
    CUstreamBatchMemOpParams steps[2] = {};
    steps[0].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    steps[0].waitValue.address = address(&words[0]);
    steps[0].waitValue.value = 1;
    steps[1].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    steps[1].writeValue.address = address(&words[0]);
    begin(stream);
    ck_assert_int_eq(batch_function()(stream, 2, steps, 0), CUDA_SUCCESS);
    OK(launch(stream, append, &words[1], 0u));
    cudaGraphExec_t exec = finish(stream, 2);
    for (unsigned i = 1; i <= 3; i++) {
        OK(cudaGraphLaunch(exec, stream));
        words[1] = 0;
        ck_assert_int_eq(cudaStreamQuery(stream), cudaErrorNotReady);
        set_word(&words[0], i);
        OK(cudaStreamSynchronize(stream));
        ck_assert_uint_eq(words[0], 0);
        ck_assert_uint_eq(words[1], 1);
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaFreeHost(words));
    OK(cudaStreamDestroy(stream));
}
END_TEST

/* Two branches between a fork and a join; the second one reads what was there before the fork, the end reads both. */
static cudaGraphExec_t capture_branches(cudaStream_t stream, unsigned *words)
{
    cudaStream_t branch = new_stream();
    begin(stream);
    OK(launch(stream, copy_word, &words[0], &words[1]));
    wait_for_event(branch, stream);
    ck_assert_int_eq(status_of(branch), cudaStreamCaptureStatusActive);
    OK(launch(branch, copy_word, &words[1], &words[2]));
    OK(launch(stream, copy_word, &words[1], &words[3]));
    wait_for_event(stream, branch);
    OK(launch(stream, copy_word, &words[2], &words[4]));
    OK(launch(stream, copy_word, &words[3], &words[5]));
    cudaGraphExec_t exec = finish(stream, 5);
    ck_assert_int_eq(status_of(branch), cudaStreamCaptureStatusNone);
    OK(cudaStreamSynchronize(branch));
    OK(cudaStreamDestroy(branch));
    return exec;
}

START_TEST(branches_join)
{
    cudaStream_t stream = new_stream(), other = new_stream();
    unsigned *words = pinned<unsigned>(6);
    cudaGraphExec_t exec = capture_branches(stream, words);
    for (unsigned i = 1; i <= 200; i++) {
        setenv("CUDASIM_GRAPHS", i % 4 < 2 ? "serial" : "", 1);
        words[0] = i;
        OK(cudaGraphLaunch(exec, i % 3 == 0 ? nullptr : stream));
        OK(cudaGraphLaunch(exec, other)); /* after the launch before, whatever the stream */
        OK(cudaStreamSynchronize(other));
        ck_assert_uint_eq(words[4], i);
        ck_assert_uint_eq(words[5], i);
    }
    unsetenv("CUDASIM_GRAPHS");
    OK(cudaGraphExecDestroy(exec));
    OK(cudaDeviceSynchronize());
    OK(cudaFreeHost(words));
    OK(cudaStreamDestroy(stream));
    OK(cudaStreamDestroy(other));
}
END_TEST

/* The branch that was captured first waits for a word that the other one writes. */
START_TEST(branches_run_together)
{
    cudaStream_t stream = new_stream(), branch = new_stream();
    unsigned *words = pinned<unsigned>(2);
    begin(stream);
    wait_for_event(branch, stream);
    wait_word(branch, &words[0], 1);
    OK(launch(branch, copy_word, &words[0], &words[1]));
    ck_assert_int_eq(word_function("cuStreamWriteValue32")(stream, address(&words[0]), 3, 0), CUDA_SUCCESS);
    wait_for_event(stream, branch);
    cudaGraphExec_t exec = finish(stream, 3);
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaStreamSynchronize(stream));
    ck_assert_uint_eq(words[1], 3);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaFreeHost(words));
    OK(cudaStreamDestroy(stream));
    OK(cudaStreamDestroy(branch));
}
END_TEST

static void replay_too_late()
{
    cudaStream_t stream = new_stream();
    char *memory = nullptr;
    OK(cudaMalloc(&memory, 64));
    begin(stream);
    OK(cudaMemsetAsync(memory, 0, 64, stream));
    cudaGraphExec_t exec = finish(stream, 1);
    OK(cudaFree(memory));
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaStreamSynchronize(stream));
}

START_TEST(memory_of_a_graph_must_stay)
{
    require_death(replay_too_late, "a fill of 64 bytes");
}
END_TEST

/* ---- what captures forbid ---- */

static struct {
    cudaStream_t stream, other;
    cudaEvent_t captured, outside;
    char *device, *ordered, *host, *fresh, own[64];
} things;

typedef struct forbidden {
    cudaError_t expected;
    bool always; /* also in a thread whose mode is relaxed */
    const char *text;
    cudaError_t (*call)();
} forbidden_t;

#define CALL(expression) #expression, []() -> cudaError_t { return expression; }

static const forbidden_t calls[] = {
    {cudaErrorStreamCaptureUnsupported, true, CALL(cudaStreamSynchronize(things.stream))},
    {cudaErrorStreamCaptureUnsupported, true, CALL(cudaStreamQuery(things.stream))},
    {cudaErrorStreamCaptureUnsupported, true, CALL(cudaStreamDestroy(things.stream))},
    {cudaErrorStreamCaptureUnsupported, true, CALL(cudaDeviceSynchronize())},
    {cudaErrorStreamCaptureUnsupported, true, CALL(cudaMallocAsync(&things.fresh, 8, things.stream))},
    {cudaErrorStreamCaptureUnsupported, true, CALL(cudaFreeAsync(things.ordered, things.stream))},
    {cudaErrorStreamCaptureUnsupported, true,
     CALL(cudaMemcpyAsync(things.own, things.host, 8, cudaMemcpyDefault, things.stream))},
    {cudaErrorCapturedEvent, true, CALL(cudaEventQuery(things.captured))},
    {cudaErrorCapturedEvent, true, CALL(cudaEventSynchronize(things.captured))},
    {cudaErrorStreamCaptureIsolation, true, CALL(cudaStreamWaitEvent(things.stream, things.outside, 0))},
    {cudaErrorStreamCaptureUnmatched, true,
     CALL(cudaStreamEndCapture(things.other, reinterpret_cast<cudaGraph_t *>(things.own)))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaStreamSynchronize(nullptr))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaStreamQuery(nullptr))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaEventQuery(things.outside))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaEventSynchronize(things.outside))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaMalloc(&things.fresh, 8))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaFree(nullptr))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaMallocHost(&things.fresh, 8))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaFreeHost(nullptr))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaHostRegister(things.own, 8, 0))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaMemcpy(things.device, things.own, 8, cudaMemcpyDefault))},
    {cudaErrorStreamCaptureUnsupported, false, CALL(cudaMemset(things.device, 0, 8))},
};

static void make_things()
{
    things.stream = new_stream();
    things.other = new_stream();
    things.captured = new_event();
    things.outside = new_event();
    things.host = pinned<char>(64);
    OK(cudaMalloc(&things.device, 64));
    OK(cudaMallocAsync(&things.ordered, 64, things.other));
    OK(cudaEventRecord(things.outside, things.other));
    OK(cudaStreamSynchronize(things.other));
}

static void free_things()
{
    OK(cudaFreeAsync(things.ordered, things.stream));
    OK(cudaStreamSynchronize(things.stream));
    OK(cudaFree(things.device));
    OK(cudaFreeHost(things.host));
    OK(cudaEventDestroy(things.captured));
    OK(cudaEventDestroy(things.outside));
    OK(cudaStreamDestroy(things.stream));
    OK(cudaStreamDestroy(things.other));
    (void)cudaGetLastError();
}

/* A capture of both streams. */
static void begin_both(cudaStreamCaptureMode mode)
{
    begin(things.stream, mode);
    OK(cudaEventRecord(things.captured, things.stream));
    OK(cudaStreamWaitEvent(things.other, things.captured, 0));
    OK(launch(things.stream, nothing));
}

/* Sets the calling thread's mode until the end of the scope. */
class Mode {
  public:
    explicit Mode(cudaStreamCaptureMode wanted) : mode(wanted) { OK(cudaThreadExchangeStreamCaptureMode(&mode)); }
    ~Mode() { OK(cudaThreadExchangeStreamCaptureMode(&mode)); }

  private:
    cudaStreamCaptureMode mode;
};

static void require_forbidden(const forbidden_t &row, cudaStreamCaptureMode of_capture)
{
    begin_both(of_capture);
    cudaError_t error = row.call();
    ck_assert_msg(error == row.expected, "%s: %s", row.text, cudaGetErrorName(error));
    ck_assert_int_eq(status_of(things.other), cudaStreamCaptureStatusInvalidated);
    cudaStreamCaptureMode relaxed = cudaStreamCaptureModeRelaxed; /* require_invalid waits for a stream */
    OK(cudaThreadExchangeStreamCaptureMode(&relaxed));
    require_invalid(things.stream);
    OK(cudaThreadExchangeStreamCaptureMode(&relaxed));
}

START_TEST(unsafe_calls_end_captures)
{
    make_things();
    for (const forbidden_t &row : calls) {
        require_forbidden(row, cudaStreamCaptureModeGlobal);
        require_forbidden(row, cudaStreamCaptureModeThreadLocal);
        if (row.always) {
            Mode mode(cudaStreamCaptureModeRelaxed);
            require_forbidden(row, cudaStreamCaptureModeGlobal);
        }
    }
    free_things();
}
END_TEST

/* A thread that is relaxed disturbs nobody; a global capture is disturbed by all others, one of a thread by its own thread alone. */
START_TEST(modes_of_threads)
{
    make_things();
    unsigned *memory = nullptr;
    begin_both(cudaStreamCaptureModeGlobal);
    {
        Mode mode(cudaStreamCaptureModeRelaxed);
        OK(cudaMalloc(&memory, 4));
        OK(cudaMemset(memory, 1, 4));
        OK(cudaEventQuery(things.outside));
        OK(cudaFree(memory));
    }
    ck_assert_int_eq(status_of(things.stream), cudaStreamCaptureStatusActive);
    std::thread([] {
        Mode mode(cudaStreamCaptureModeThreadLocal);
        OK(cudaEventQuery(things.outside));
    }).join();
    OK(cudaGraphExecDestroy(finish(things.stream, 1)));

    begin_both(cudaStreamCaptureModeThreadLocal);
    std::thread([] { OK(cudaEventQuery(things.outside)); }).join();
    OK(cudaGraphExecDestroy(finish(things.stream, 1)));
    begin_both(cudaStreamCaptureModeGlobal);
    std::thread([] { ck_assert_int_eq(cudaEventQuery(things.outside), cudaErrorStreamCaptureUnsupported); }).join();
    require_invalid(things.stream);
    free_things();
}
END_TEST

START_TEST(ends_of_captures)
{
    make_things();
    cudaGraph_t graph = nullptr;
    ck_assert_int_eq(cudaStreamEndCapture(things.stream, &graph), cudaErrorIllegalState);
    ck_assert_int_eq(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal), cudaErrorStreamCaptureUnsupported);

    begin_both(cudaStreamCaptureModeThreadLocal);
    ck_assert_int_eq(cudaStreamBeginCapture(things.other, cudaStreamCaptureModeGlobal), cudaErrorIllegalState);
    std::thread([] {
        cudaGraph_t none = nullptr;
        ck_assert_int_eq(cudaStreamEndCapture(things.stream, &none), cudaErrorStreamCaptureWrongThread);
    }).join();
    OK(launch(things.other, nothing)); /* is not joined */
    ck_assert_int_eq(cudaStreamEndCapture(things.stream, &graph), cudaErrorStreamCaptureUnjoined);
    ck_assert_ptr_null(graph);
    ck_assert_int_eq(status_of(things.other), cudaStreamCaptureStatusNone);

    begin_both(cudaStreamCaptureModeRelaxed);
    std::thread([] { OK(cudaGraphExecDestroy(finish(things.stream, 1))); }).join();

    /* The event belongs to a capture that is over. */
    ck_assert_int_eq(cudaEventQuery(things.captured), cudaErrorCapturedEvent);
    ck_assert_int_eq(cudaStreamWaitEvent(things.other, things.captured, 0), cudaErrorCapturedEvent);
    OK(cudaEventRecord(things.captured, things.other));
    OK(cudaEventSynchronize(things.captured));

    begin(things.stream);
    begin(things.other);
    OK(cudaEventRecord(things.captured, things.stream));
    ck_assert_int_eq(cudaStreamWaitEvent(things.other, things.captured, 0), cudaErrorStreamCaptureMerge);
    ck_assert_int_eq(cudaStreamEndCapture(things.stream, &graph), cudaErrorStreamCaptureInvalidated);
    require_invalid(things.other);
    free_things();
}
END_TEST

/* A default stream cannot be used while a stream that it waits for is captured. */
START_TEST(default_streams)
{
    cudaStream_t blocking, free = new_stream();
    cudaStreamCaptureStatus status;
    cudaEvent_t event = new_event();
    OK(cudaStreamCreate(&blocking));
    begin(free, cudaStreamCaptureModeRelaxed);
    OK(launch(nullptr, nothing));
    OK(launch(free, nothing));
    OK(cudaGraphExecDestroy(finish(free, 1)));

    begin(blocking, cudaStreamCaptureModeRelaxed);
    ck_assert_int_eq(cudaStreamIsCapturing(nullptr, &status), cudaErrorStreamCaptureImplicit);
    OK(launch(blocking, nothing)); /* still valid */
    ck_assert_int_eq(launch(nullptr, nothing), cudaErrorStreamCaptureImplicit);
    require_invalid(blocking);

    begin(free);
    OK(cudaEventRecord(event, free));
    ck_assert_int_eq(cudaStreamWaitEvent(nullptr, event, 0), cudaErrorStreamCaptureImplicit);
    require_invalid(free);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(blocking));
    OK(cudaStreamDestroy(free));
}
END_TEST

START_TEST(graphs_in_graphs_are_refused)
{
    cudaStream_t stream = new_stream();
    begin(stream);
    OK(launch(stream, nothing));
    cudaGraphExec_t exec = finish(stream, 1);
    begin(stream);
    ck_assert_int_eq(cudaGraphLaunch(exec, stream), cudaErrorStreamCaptureUnsupported);
    require_invalid(stream);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaStreamDestroy(stream));
}
END_TEST

extern "C" Suite *iq_suite(void)
{
    Suite *suite = suite_create("cudasim_graphs");
    TCase *c = tcase_create("replays");
    tcase_add_test(c, graphs_are_replayed);
    tcase_add_test(c, graphs_with_words);
    tcase_add_test(c, branches_join);
    tcase_add_test(c, branches_run_together);
    tcase_add_test(c, graphs_in_graphs_are_refused);
    suite_add_tcase(suite, c);

    c = tcase_create("forbidden");
    tcase_add_test(c, unsafe_calls_end_captures);
    tcase_add_test(c, modes_of_threads);
    tcase_add_test(c, ends_of_captures);
    tcase_add_test(c, default_streams);
    suite_add_tcase(suite, c);

    CASE_OF_ONE(suite, tcase_create("late_replays"), memory_of_a_graph_must_stay);
    return suite;
}
