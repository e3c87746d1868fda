/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated CUDA: order of streams, what memory is, and failures. */
#include "cudasim/test_support.h"

/* ---- streams ---- */

START_TEST(operations_run_in_order)
{
    cudaStream_t stream = new_stream();
    unsigned *device = nullptr, *back = pinned<unsigned>(101);
    OK(cudaMallocAsync(&device, 101 * sizeof(unsigned), stream));
    OK(cudaMemsetAsync(device, 0, 101 * sizeof(unsigned), stream));
    for (unsigned i = 1; i <= 100; i++)
        OK(launch(stream, append, device, i));
    OK(cudaMemcpyAsync(back, device, 101 * sizeof(unsigned), cudaMemcpyDefault, stream));
    OK(cudaFreeAsync(device, stream));
    OK(cudaStreamSynchronize(stream));
    ck_assert_uint_eq(back[0], 100);
    for (unsigned i = 1; i <= 100; i++)
        ck_assert_uint_eq(back[i], i);
    OK(cudaStreamDestroy(stream));
    ck_assert_int_eq(cudaStreamQuery(stream), cudaErrorInvalidResourceHandle);
    OK(cudaFreeHost(back));
}
END_TEST

/* A stream that waits for a word holds back neither the host nor other streams. */
START_TEST(streams_are_independent)
{
    cudaStream_t blocked = new_stream(), free = new_stream();
    unsigned *words = pinned<unsigned>(4);
    wait_word(blocked, &words[0], 7);
    OK(launch(blocked, copy_word, &words[0], &words[1]));
    OK(launch(free, append, &words[2], 0u));
    OK(cudaStreamSynchronize(free));
    ck_assert_uint_eq(words[2], 1);
    ck_assert_int_eq(cudaStreamQuery(blocked), cudaErrorNotReady);
    OK(cudaStreamQuery(nullptr));
    set_word(&words[0], 6);
    ck_assert_int_eq(cudaStreamQuery(blocked), cudaErrorNotReady);
    set_word(&words[0], 8);
    OK(cudaStreamSynchronize(blocked));
    ck_assert_uint_eq(words[1], 8);
    OK(cudaStreamQuery(blocked));
    OK(cudaStreamDestroy(blocked));
    OK(cudaStreamDestroy(free));
    OK(cudaFreeHost(words));
}
END_TEST

/* Comparison wraps around; another stream may write the word; destroying a stream lets it finish. */
START_TEST(streams_wait_for_words)
{
    cudaStream_t stream = new_stream(), writer = new_stream();
    unsigned *words = pinned<unsigned>(2), local = 0;
    words[0] = 5;
    wait_word(stream, &words[0], 0xfffffff0u);
    OK(cudaStreamSynchronize(stream));

    word_function_t wait = word_function("cuStreamWaitValue32"), write = word_function("cuStreamWriteValue32");
    ck_assert_int_eq(wait(stream, address(&words[0]), 9, CU_STREAM_WAIT_VALUE_EQ), CUDA_SUCCESS);
    ck_assert_int_eq(write(stream, address(&words[1]), 3, 0), CUDA_SUCCESS);
    OK(cudaStreamDestroy(stream));
    ck_assert_int_eq(write(writer, address(&words[0]), 9, 0), CUDA_SUCCESS);
    OK(cudaDeviceSynchronize());
    ck_assert_uint_eq(words[1], 3);

    ck_assert_int_eq(wait(writer, address(&local), 0, 0), CUDA_ERROR_INVALID_VALUE);
    ck_assert_int_eq(wait(writer, address(words) + 1, 0, 0), CUDA_ERROR_INVALID_VALUE);
    ck_assert_int_eq(wait(stream, address(words), 0, 0), CUDA_ERROR_INVALID_HANDLE);
    OK(cudaStreamDestroy(writer));
    OK(cudaFreeHost(words));
}
END_TEST

static CUstreamBatchMemOpParams waiting(CUstreamBatchMemOpType type, void *word, uint64_t value, unsigned flags)
{
    CUstreamBatchMemOpParams params = {};
    params.waitValue.operation = type;
    params.waitValue.address = address(word);
    params.waitValue.value64 = value;
    params.waitValue.flags = flags;
    return params;
}

static CUstreamBatchMemOpParams writing(CUstreamBatchMemOpType type, void *word, uint64_t value)
{
    CUstreamBatchMemOpParams params = {};
    params.writeValue.operation = type;
    params.writeValue.address = address(word);
    params.writeValue.value64 = value;
    return params;
}

/* Operations of a batch run in their order, and what was enqueued before them is done. */
START_TEST(batches_of_words)
{
    cudaStream_t stream = new_stream();
    uint64_t *words = pinned<uint64_t>(4);
    unsigned *halves = reinterpret_cast<unsigned *>(words);
    batch_function_t batch = batch_function();
    CUstreamBatchMemOpParams steps[] = {
        waiting(CU_STREAM_MEM_OP_WAIT_VALUE_64, &words[0], 0xffffffff00000006ull, CU_STREAM_WAIT_VALUE_AND),
        writing(CU_STREAM_MEM_OP_WRITE_VALUE_32, &halves[0], 9),
        writing(CU_STREAM_MEM_OP_WRITE_VALUE_64, &words[1], 0x100000002ull),
        waiting(CU_STREAM_MEM_OP_WAIT_VALUE_64, &words[1], 0x100000002ull, CU_STREAM_WAIT_VALUE_EQ),
        waiting(CU_STREAM_MEM_OP_WAIT_VALUE_32, &halves[4], 1, CU_STREAM_WAIT_VALUE_GEQ),
        writing(CU_STREAM_MEM_OP_WRITE_VALUE_32, &halves[5], 5),
    };
    set_word(&halves[0], 1); /* none of the bits */
    ck_assert_int_eq(batch(stream, 6, steps, 0), CUDA_SUCCESS);
    ck_assert_int_eq(cudaStreamQuery(stream), cudaErrorNotReady);
    set_word(&halves[1], 0x80000000u); /* one of the upper ones */
    set_word(&halves[4], 1);
    OK(cudaStreamSynchronize(stream));
    ck_assert_uint_eq(words[0], 0x8000000000000009ull);
    ck_assert_uint_eq(words[1], 0x100000002ull);
    ck_assert_uint_eq(halves[5], 5);

    CUstreamBatchMemOpParams crooked = writing(CU_STREAM_MEM_OP_WRITE_VALUE_64, &halves[1], 0);
    ck_assert_int_eq(batch(stream, 1, &crooked, 0), CUDA_ERROR_INVALID_VALUE);
    steps[5].writeValue.flags = CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER;
    ck_assert_int_eq(batch(stream, 6, steps, 0), CUDA_ERROR_NOT_SUPPORTED);
    OK(cudaStreamQuery(stream)); /* none of them was enqueued */
    ck_assert_int_eq(batch(stream, 0, steps, 0), CUDA_ERROR_INVALID_VALUE);
    setenv("CUDASIM_NO_WORDS", "64", 1);
    ck_assert_int_eq(batch(stream, 1, steps, 0), CUDA_ERROR_NOT_SUPPORTED);
    ck_assert_int_eq(batch(stream, 1, &steps[1], 0), CUDA_SUCCESS);
    unsetenv("CUDASIM_NO_WORDS");
    OK(cudaStreamDestroy(stream));
    OK(cudaDeviceSynchronize());
    OK(cudaFreeHost(words));
}
END_TEST

START_TEST(no_words)
{
    setenv("CUDASIM_NO_WORDS", "1", 1);
    void *found = &found;
    cudaDriverEntryPointQueryResult result;
    OK(cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &found, 12000, cudaEnableDefault, &result));
    ck_assert_ptr_null(found);
    ck_assert_int_eq(result, cudaDriverEntryPointSymbolNotFound);
}
END_TEST

START_TEST(capturing)
{
    cudaStreamCaptureStatus status;
    cudaStream_t stream = new_stream();
    OK(cudaStreamIsCapturing(stream, &status));
    ck_assert_int_eq(status, cudaStreamCaptureStatusNone);
    setenv("CUDASIM_CAPTURING", "1", 1);
    OK(cudaStreamIsCapturing(stream, &status));
    ck_assert_int_eq(status, cudaStreamCaptureStatusActive);
    OK(cudaStreamDestroy(stream));
}
END_TEST

/* A kernel that nobody loaded is loaded by its first launch, which waits for the device. */
START_TEST(first_launch_waits)
{
    cudaStream_t blocked = new_stream(), other = new_stream();
    unsigned *words = pinned<unsigned>(3);
    wait_word(blocked, &words[0], 1);
    OK(launch(other, append, &words[1], 0u)); /* loaded before: returns */
    set_word(&words[0], 1);
    cudaLaunchConfig_t config = on(other, 1, 1);
    OK(cudaLaunchKernelEx(&config, nothing));
    OK(cudaStreamQuery(blocked));
    OK(cudaStreamDestroy(blocked));
    OK(cudaStreamDestroy(other));
    OK(cudaFreeHost(words));
}
END_TEST

/* ---- events ---- */

START_TEST(events_order_streams)
{
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t event = new_event();
    unsigned *words = pinned<unsigned>(3);
    OK(cudaEventQuery(event)); /* never recorded */
    OK(cudaStreamWaitEvent(second, event, 0));
    OK(cudaStreamSynchronize(second));

    wait_word(first, &words[0], 5);
    OK(launch(first, copy_word, &words[0], &words[1]));
    OK(cudaEventRecord(event, first));
    OK(cudaStreamWaitEvent(second, event, 0));
    OK(launch(second, copy_word, &words[1], &words[2]));
    ck_assert_int_eq(cudaEventQuery(event), cudaErrorNotReady);
    ck_assert_int_eq(cudaStreamQuery(second), cudaErrorNotReady);
    ck_assert_int_eq(cudaGetLastError(), cudaErrorNotReady);
    ck_assert_int_eq(cudaGetLastError(), cudaSuccess);
    OK(cudaEventDestroy(event)); /* the wait stays */
    set_word(&words[0], 5);
    OK(cudaStreamSynchronize(second));
    ck_assert_uint_eq(words[2], 5);
    ck_assert_int_eq(cudaEventQuery(event), cudaErrorInvalidResourceHandle);
    OK(cudaStreamDestroy(first));
    OK(cudaStreamDestroy(second));
    OK(cudaFreeHost(words));
}
END_TEST

/* Who waits for an event waits for the record before the call, not for later ones. */
START_TEST(waits_are_for_earlier_records)
{
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t event = new_event();
    unsigned *word = pinned<unsigned>(1);
    OK(cudaEventRecord(event, first));
    OK(cudaStreamWaitEvent(second, event, 0));
    wait_word(first, word, 1);
    OK(cudaEventRecord(event, first));
    OK(cudaStreamSynchronize(second));
    ck_assert_int_eq(cudaEventQuery(event), cudaErrorNotReady);
    set_word(word, 1);
    OK(cudaEventSynchronize(event));
    OK(cudaEventQuery(event));
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(first));
    OK(cudaStreamDestroy(second));
    OK(cudaFreeHost(word));
}
END_TEST

START_TEST(times)
{
    cudaEvent_t start, end, without = new_event();
    float ms = -1;
    OK(cudaEventCreate(&start));
    OK(cudaEventCreate(&end));
    OK(cudaEventRecord(start, nullptr));
    OK(cudaEventRecord(end, nullptr));
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, start, end));
    ck_assert(ms >= 0);
    ck_assert_int_eq(cudaEventElapsedTime(&ms, start, without), cudaErrorInvalidResourceHandle);
    OK(cudaEventDestroy(start));
    OK(cudaEventDestroy(end));
    OK(cudaEventDestroy(without));
}
END_TEST

/* ---- memory ---- */

static cudaMemoryType type_of(const void *memory)
{
    cudaPointerAttributes attributes;
    OK(cudaPointerGetAttributes(&attributes, memory));
    return attributes.type;
}

START_TEST(places)
{
    char *device = nullptr, *host = pinned<char>(100), *own = static_cast<char *>(malloc(100));
    OK(cudaMalloc(&device, 100));
    ck_assert_int_eq(reinterpret_cast<uintptr_t>(device) % 256, 0);
    ck_assert_int_eq(type_of(device), cudaMemoryTypeDevice);
    ck_assert_int_eq(type_of(device + 99), cudaMemoryTypeDevice);
    ck_assert_int_eq(type_of(device + 100), cudaMemoryTypeUnregistered);
    ck_assert_int_eq(type_of(host + 99), cudaMemoryTypeHost);
    ck_assert_int_eq(type_of(own), cudaMemoryTypeUnregistered);

    OK(cudaHostRegister(own + 10, 50, cudaHostRegisterDefault));
    ck_assert_int_eq(type_of(own + 9), cudaMemoryTypeUnregistered);
    ck_assert_int_eq(type_of(own + 10), cudaMemoryTypeHost);
    ck_assert_int_eq(type_of(own + 60), cudaMemoryTypeUnregistered);
    ck_assert_int_eq(cudaHostRegister(own + 10, 50, 0), cudaErrorHostMemoryAlreadyRegistered);
    ck_assert_int_eq(cudaHostRegister(own, 20, 0), cudaErrorHostMemoryAlreadyRegistered);
    ck_assert_int_eq(cudaHostRegister(own + 59, 5, 0), cudaErrorHostMemoryAlreadyRegistered);
    ck_assert_int_eq(cudaHostUnregister(own), cudaErrorHostMemoryNotRegistered);
    void *same;
    OK(cudaHostGetDevicePointer(&same, own + 20, 0));
    ck_assert_ptr_eq(same, own + 20);
    OK(cudaHostUnregister(own + 10));
    ck_assert_int_eq(type_of(own + 10), cudaMemoryTypeUnregistered);

    OK(cudaFree(device));
    ck_assert_int_eq(type_of(device), cudaMemoryTypeUnregistered);
    ck_assert_int_eq(cudaFree(device), cudaErrorInvalidValue);
    OK(cudaFreeHost(host));
    free(own);
}
END_TEST

START_TEST(copies)
{
    unsigned char *device = nullptr, own[100], *host = pinned<unsigned char>(100);
    OK(cudaMalloc(&device, 100));
    OK(cudaMemcpy(own, device, 100, cudaMemcpyDefault));
    for (unsigned char byte : own)
        ck_assert_uint_eq(byte, 0xCB);
    memset(own, 5, sizeof(own));
    OK(cudaMemcpyAsync(device, own, 100, cudaMemcpyHostToDevice, nullptr));
    OK(cudaMemset(device + 50, 6, 10));
    OK(cudaMemcpy(host, device, 100, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 100; i++)
        ck_assert_uint_eq(host[i], i >= 50 && i < 60 ? 6 : 5);
    ck_assert_int_eq(cudaMemcpy(device + 1, own, 100, cudaMemcpyDefault), cudaErrorInvalidValue);
    ck_assert_int_eq(cudaMemcpy(device, own, 100, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    ck_assert_int_eq(cudaMemset(own, 0, 100), cudaErrorInvalidValue);
    OK(cudaMemcpy(device, own, 0, cudaMemcpyDefault));
    OK(cudaFree(device));
    ck_assert_int_eq(cudaMemcpy(device, own, 100, cudaMemcpyDefault), cudaErrorInvalidValue);
    OK(cudaFreeHost(host));
}
END_TEST

static void use_too_early()
{
    cudaStream_t blocked = new_stream();
    unsigned *word = pinned<unsigned>(1), *memory = nullptr;
    wait_word(blocked, word, 1);
    OK(cudaMallocAsync(&memory, 64, blocked));
    OK(cudaMemset(memory, 0, 64));
}

static void use_too_late()
{
    cudaStream_t stream = new_stream(), other = new_stream();
    unsigned *word = pinned<unsigned>(1), *memory = nullptr;
    OK(cudaMallocAsync(&memory, 64, stream));
    OK(cudaStreamSynchronize(stream));
    wait_word(other, word, 1);
    OK(cudaMemsetAsync(memory, 0, 64, other));
    OK(cudaFreeAsync(memory, stream));
    OK(cudaStreamSynchronize(stream));
    set_word(word, 1);
    OK(cudaStreamSynchronize(other));
}

START_TEST(memory_comes_and_goes_in_order)
{
    require_death(use_too_early, "a fill of 64 bytes");
    require_death(use_too_late, "although it was released before");
}
END_TEST

START_TEST(out_of_memory)
{
    setenv("CUDASIM_MEMORY", "1000000", 1);
    char *first = nullptr, *second = nullptr;
    size_t unused, total;
    OK(cudaMalloc(&first, 600000));
    ck_assert_int_eq(cudaMalloc(&second, 600000), cudaErrorMemoryAllocation);
    ck_assert_int_eq(cudaMallocAsync(&second, 600000, nullptr), cudaErrorMemoryAllocation);
    ck_assert_ptr_null(second);
    ck_assert_str_eq(cudaGetErrorString(cudaGetLastError()), "out of memory");
    OK(cudaMemGetInfo(&unused, &total));
    ck_assert_uint_eq(unused, 400000);
    OK(cudaFree(first));
    OK(cudaMallocAsync(&second, 1000000, nullptr));
    OK(cudaFreeAsync(second, nullptr));
    OK(cudaDeviceSynchronize());
    ck_assert_int_eq(cudasim_objects().device_blocks, 0);
}
END_TEST

/* ---- devices and failures ---- */

START_TEST(no_devices)
{
    setenv("CUDASIM_DEVICES", "0", 1);
    int count = -1;
    void *memory;
    ck_assert_int_eq(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    ck_assert_int_eq(count, 0);
    ck_assert_int_eq(cudaMalloc(&memory, 1), cudaErrorNoDevice);
    ck_assert_str_eq(cudaGetErrorName(cudaGetLastError()), "cudaErrorNoDevice");
}
END_TEST

START_TEST(two_devices)
{
    setenv("CUDASIM_DEVICES", "2", 1);
    int count, device;
    char bus[2][16], *memory = nullptr;
    cudaPointerAttributes attributes;
    OK(cudaGetDeviceCount(&count));
    ck_assert_int_eq(count, 2);
    OK(cudaDeviceGetPCIBusId(bus[0], 16, 0));
    OK(cudaDeviceGetPCIBusId(bus[1], 16, 1));
    ck_assert_str_ne(bus[0], bus[1]);
    cudaStream_t stream = new_stream();
    cudaEvent_t event = new_event();
    OK(cudaSetDevice(1));
    OK(cudaGetDevice(&device));
    ck_assert_int_eq(device, 1);
    OK(cudaMalloc(&memory, 8));
    OK(cudaPointerGetAttributes(&attributes, memory));
    ck_assert_int_eq(attributes.device, 1);
    OK(cudaFree(memory));
    ck_assert_int_eq(launch(stream, nothing), cudaErrorInvalidResourceHandle);
    ck_assert_int_eq(cudaEventRecord(event, nullptr), cudaErrorInvalidResourceHandle);
    OK(launch(nullptr, nothing));
    ck_assert_int_eq(cudaSetDevice(2), cudaErrorInvalidDevice);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(stream));
}
END_TEST

START_TEST(bad_launches)
{
    const dim3 grids[] = {0, 1, 1, 1, dim3(1, 65536), 1}, blocks[] = {1, 0, 1025, dim3(32, 33), 1, dim3(1, 1, 65)};
    for (int i = 0; i < 6; i++) {
        cudaLaunchConfig_t config = on(nullptr, grids[i], blocks[i]);
        ck_assert_int_eq(cudaLaunchKernelEx(&config, nothing), cudaErrorInvalidConfiguration);
    }
    cudaLaunchConfig_t config = on(nullptr, 1, 1);
    config.dynamicSmemBytes = 1024;
    ck_assert_int_eq(cudaLaunchKernelEx(&config, nothing), cudaErrorNotSupported);
}
END_TEST

START_TEST(failures_on_request)
{
    setenv("CUDASIM_FAIL", "cudaMalloc:2,cudaLaunchKernelEx:1", 1);
    char *memory[2];
    OK(cudaMalloc(&memory[0], 8));
    ck_assert_int_eq(cudaMalloc(&memory[1], 8), cudaErrorUnknown);
    OK(cudaMalloc(&memory[1], 8));
    ck_assert_int_eq(launch(nullptr, nothing), cudaErrorUnknown);
    OK(launch(nullptr, nothing));
    ck_assert_uint_eq(cudasim_calls("cudaMalloc"), 3);
    cudasim_fail("cudaFree:1");
    ck_assert_int_eq(cudaFree(memory[0]), cudaErrorUnknown);
    cudasim_fail(nullptr);
    OK(cudaFree(memory[0]));
    OK(cudaFree(memory[1]));
}
END_TEST

/* As with CUDA: a child forked before the first use works, one forked later does not. */
START_TEST(forks)
{
    for (int used = 0; used < 2; used++) {
        pid_t child = fork();
        ck_assert_int_ge(child, 0);
        int count;
        if (child == 0)
            _exit(cudaGetDeviceCount(&count));
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert(WIFEXITED(status));
        ck_assert_int_eq(WEXITSTATUS(status), used ? cudaErrorInitializationError : cudaSuccess);
        OK(cudaGetDeviceCount(&count));
    }
}
END_TEST

extern "C" Suite *iq_suite(void)
{
    Suite *suite = suite_create("cudasim");
    TCase *c;

    c = tcase_create("streams");
    tcase_add_test(c, operations_run_in_order);
    tcase_add_test(c, streams_are_independent);
    tcase_add_test(c, streams_wait_for_words);
    tcase_add_test(c, batches_of_words);
    tcase_add_test(c, first_launch_waits);
    suite_add_tcase(suite, c);

    c = tcase_create("events");
    tcase_add_test(c, events_order_streams);
    tcase_add_test(c, waits_are_for_earlier_records);
    tcase_add_test(c, times);
    suite_add_tcase(suite, c);

    c = tcase_create("memory");
    tcase_add_test(c, places);
    tcase_add_test(c, copies);
    tcase_add_test(c, bad_launches);
    suite_add_tcase(suite, c);

    CASE_OF_ONE(suite, tcase_create("no_words"), no_words);
    CASE_OF_ONE(suite, tcase_create("capturing"), capturing);
    CASE_OF_ONE(suite, tcase_create("order_of_memory"), memory_comes_and_goes_in_order);
    CASE_OF_ONE(suite, tcase_create("out_of_memory"), out_of_memory);
    CASE_OF_ONE(suite, tcase_create("no_devices"), no_devices);
    CASE_OF_ONE(suite, tcase_create("two_devices"), two_devices);
    CASE_OF_ONE(suite, tcase_create("failures"), failures_on_request);
    CASE_OF_ONE(suite, tcase_create("forks"), forks);
    return suite;
}
