/* SPDX-License-Identifier: Apache-2.0 */
#include "support/device_twin.h"

#include "base/status.h"
#include "base/util.h"
#include "support/codec_run.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_BYTES ((size_t)1 << 22)
#define GUARD 64

typedef struct arena {
    unsigned char *memory;
    size_t used;
} arena_t;

static const iq_cuda_module_t *cuda;
static iq_cuda_event_t event;
static arena_t host_arena, arenas[2]; /* by twin_place_t */

iq_device_t twin_device;
char twin_what[256];

void twin_settle(void)
{
    isgq_result_t result;
    ck_assert_int_eq(cuda->event_record(twin_device.ordinal, event, twin_device.stream), ISGQ_SUCCESS);
    do
        result = cuda->event_poll(twin_device.ordinal, event);
    while (result == ISGQ_IN_PROGRESS);
    ck_assert_msg(result == ISGQ_SUCCESS, "%s: %s", twin_what, iq_last_error());
}

static void copy(void *dst, const void *src, size_t bytes)
{
    ck_assert_int_eq(cuda->copy(twin_device.ordinal, twin_device.stream, dst, src, bytes), ISGQ_SUCCESS);
    twin_settle();
}

void twin_start(void)
{
    void *memory;
    cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    ck_assert_msg(cuda != NULL, "%s", iq_last_error());
    twin_device = (iq_device_t){.cuda = cuda};
    ck_assert_int_eq(cuda->stream_create(0, &twin_device.stream), ISGQ_SUCCESS);
    ck_assert_int_eq(cuda->event_create(0, &event), ISGQ_SUCCESS);
    ck_assert_int_eq(cuda->alloc(0, twin_device.stream, ARENA_BYTES, &memory), ISGQ_SUCCESS);
    arenas[ON_DEVICE].memory = memory;
    host_arena.memory = malloc(ARENA_BYTES);
    arenas[PINNED].memory = aligned_alloc(4096, ARENA_BYTES);
    ck_assert_int_eq(cuda->pin(0, arenas[PINNED].memory, ARENA_BYTES), ISGQ_SUCCESS);
}

void twin_end(void)
{
    cuda->release(0, twin_device.stream, arenas[ON_DEVICE].memory);
    cuda->unpin(arenas[PINNED].memory);
    cuda->event_destroy(0, event);
    cuda->stream_destroy(0, twin_device.stream);
    free(arenas[PINNED].memory);
    free(host_arena.memory);
}

void twin_forget(void)
{
    host_arena.used = arenas[ON_DEVICE].used = 0;
    arenas[PINNED].used = GUARD;
    twin_device.fault = (uint32_t *)arenas[PINNED].memory;
    *twin_device.fault = IQ_CUDA_NO_FAULT;
    twin_device.result = ISGQ_SUCCESS;
    twin_device.replays = NULL;
}

static unsigned char *take(arena_t *arena, size_t bytes, size_t skew)
{
    size_t at = arena->used + GUARD + skew;
    arena->used = iq_align_up(at + bytes + GUARD, 256);
    ck_assert_uint_le(arena->used, ARENA_BYTES);
    return arena->memory + at;
}

void twin_push(const twin_t *twin) { copy(twin->device - GUARD, twin->host - GUARD, twin->bytes + 2 * GUARD); }

twin_t twin_new(size_t bytes, size_t skew, twin_place_t place)
{
    twin_t twin = {take(&host_arena, bytes, skew), take(&arenas[place], bytes, skew), bytes};
    for (size_t i = 0; i < bytes + 2 * GUARD; i++)
        (twin.host - GUARD)[i] = (unsigned char)codec_random();
    twin_push(&twin);
    return twin;
}

/* ---- comparisons ---- */

static bool is_nan(isgq_data_type_t type, uint64_t bits)
{
    switch (type) {
    case ISGQ_FLOAT16: return (bits & 0x7fff) > 0x7c00;
    case ISGQ_BFLOAT16: return (bits & 0x7fff) > 0x7f80;
    case ISGQ_FLOAT32: return (bits & 0x7fffffff) > 0x7f800000;
    case ISGQ_FLOAT64: return (bits & INT64_MAX) > 0x7ff0000000000000;
    default: return false;
    }
}

/* What the device has; nobody wrote outside of it. */
static const unsigned char *pull(const twin_t *twin, const char *step)
{
    static unsigned char found[ARENA_BYTES];
    copy(found, twin->device - GUARD, twin->bytes + 2 * GUARD);
    if (memcmp(found, twin->host - GUARD, GUARD) != 0)
        ck_abort_msg("%s, %s: wrote before the buffer", twin_what, step);
    if (memcmp(found + GUARD + twin->bytes, twin->host + twin->bytes, GUARD) != 0)
        ck_abort_msg("%s, %s: wrote beyond the buffer", twin_what, step);
    return found + GUARD;
}

void twin_check_ends(const twin_t *twin, const char *step) { pull(twin, step); }

void twin_compare(const twin_t *twin, isgq_data_type_t type, const char *step)
{
    const unsigned char *found = pull(twin, step);
    size_t bytes = iq_datatype_bytes(type);
    for (size_t i = 0; i < twin->bytes / bytes; i++) {
        uint64_t expected = 0, is = 0;
        memcpy(&expected, twin->host + i * bytes, bytes);
        memcpy(&is, found + i * bytes, bytes);
        if (is != expected && !(is_nan(type, is) && is_nan(type, expected)))
            ck_abort_msg("%s, %s: %s %zu of %zu is %llx, not %llx", twin_what, step, iq_datatype_name(type), i,
                         twin->bytes / bytes, (unsigned long long)is, (unsigned long long)expected);
    }
}
