/* SPDX-License-Identifier: Apache-2.0 */
#include "support/cuda_box.h"

#include "support/require.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { MARGIN = 64 };

const iq_cuda_module_t *cuda;
isgq_stream_t cuda_stream;
static iq_cuda_event_t settled;
static uint64_t state;

uint32_t random_bits(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

uint32_t random_below(uint32_t end) { return random_bits() % end; }

void cuda_start(void)
{
    state = 88172645463325252ull;
    cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    ck_assert_msg(cuda != NULL, "%s", iq_last_error());
    ck_assert_int_eq(cuda->stream_create(0, &cuda_stream), ISGQ_SUCCESS);
    ck_assert_int_eq(cuda->event_create(0, &settled), ISGQ_SUCCESS);
    ck_assert_msg(cuda->warm_up(0) == ISGQ_SUCCESS, "%s", iq_last_error());
}

void cuda_end(void)
{
    cuda->event_destroy(0, settled);
    cuda->stream_destroy(0, cuda_stream);
}

void cuda_settle(void)
{
    isgq_result_t result;
    REQUIRE(cuda->event_record(0, settled, cuda_stream) == ISGQ_SUCCESS);
    while ((result = cuda->event_poll(0, settled)) == ISGQ_IN_PROGRESS)
        sched_yield();
    if (result != ISGQ_SUCCESS)
        ck_abort_msg("%s", iq_last_error());
}

box_t box_new(size_t bytes, size_t skew)
{
    box_t box = {.bytes = bytes};
    size_t all = bytes + 3 * MARGIN;
    REQUIRE(cuda->alloc(0, cuda_stream, all, &box.device_all) == ISGQ_SUCCESS);
    box.host_all = malloc(2 * all); /* the second half is for results */
    REQUIRE(box.host_all != NULL);
    for (size_t i = 0; i < all; i++)
        box.host_all[i] = (unsigned char)random_bits();
    box.host = box.host_all + MARGIN + skew;
    box.device = (unsigned char *)box.device_all + MARGIN + skew;
    box_push(&box);
    return box;
}

void box_free(box_t *box)
{
    cuda_settle();
    cuda->release(0, cuda_stream, box->device_all);
    free(box->host_all);
}

void box_push(const box_t *box)
{
    REQUIRE(cuda->copy(0, cuda_stream, box->device_all, box->host_all, box->bytes + 3 * MARGIN) == ISGQ_SUCCESS);
    cuda_settle();
}

const unsigned char *box_result(const box_t *box)
{
    size_t all = box->bytes + 3 * MARGIN, before = (size_t)(box->host - box->host_all), after = before + box->bytes;
    unsigned char *found = box->host_all + all;
    REQUIRE(cuda->copy(0, cuda_stream, found, box->device_all, all) == ISGQ_SUCCESS);
    cuda_settle();
    REQUIRE(memcmp(found, box->host_all, before) == 0);
    REQUIRE(memcmp(found + after, box->host_all + after, all - after) == 0);
    return found + before;
}
