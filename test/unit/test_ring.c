/* SPDX-License-Identifier: Apache-2.0 */
/* The queue and the doorbell: order, contents, limits, foreign bytes, and that no wake-up is lost. */
#include "base/util.h"
#include "support/check_main.h"
#include "transport/ring.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_BYTES 256u
#define SLOTS 3u

/* A ring with both its ends and the doorbells of its two sides. */
typedef struct pair {
    void *memory;
    iq_ring_t sender, receiver;
    iq_doorbell_t sender_bell, receiver_bell;
    uint64_t messages;
    int failures;
} pair_t;

static void pair_init(pair_t *pair, size_t slot_bytes, unsigned slots)
{
    size_t bytes = iq_ring_bytes((iq_ring_shape_t){slot_bytes, slots, 1});
    memset(pair, 0, sizeof(*pair));
    pair->memory = aligned_alloc(IQ_CACHE_LINE, bytes);
    ck_assert_ptr_nonnull(pair->memory);
    memset(pair->memory, 0, bytes);
    iq_ring_attach_sender(&pair->sender, pair->memory, (iq_ring_shape_t){slot_bytes, slots, 1});
    iq_ring_attach_receiver(&pair->receiver, pair->memory, (iq_ring_shape_t){slot_bytes, slots, 1}, 0);
}

static void pair_fini(pair_t *pair) { free(pair->memory); }

/* xorshift64*: both sides know what message i must be. */
static uint64_t scramble(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return x * 0x2545f4914f6cdd1dull;
}

static size_t message_bytes(uint64_t i, size_t most) { return 1 + (size_t)(scramble(i) % most); }

static void fill(unsigned char *slot, size_t bytes, uint64_t i)
{
    for (size_t k = 0; k < bytes; k++)
        slot[k] = (unsigned char)(scramble(i) + k * 7);
}

static bool matches(const unsigned char *slot, size_t bytes, uint64_t i)
{
    for (size_t k = 0; k < bytes; k++)
        if (slot[k] != (unsigned char)(scramble(i) + k * 7))
            return false;
    return true;
}

/* ---- the queue ---- */

START_TEST(empty_and_full)
{
    pair_t pair;
    size_t bytes = 99;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    ck_assert_ptr_null(iq_ring_peek(&pair.receiver, &bytes));
    for (unsigned i = 0; i < SLOTS; i++) {
        void *slot = iq_ring_acquire(&pair.sender);
        ck_assert_ptr_nonnull(slot);
        ck_assert_uint_eq((uintptr_t)slot % IQ_CACHE_LINE, 0);
        ck_assert_ptr_eq(iq_ring_acquire(&pair.sender), slot);
        iq_ring_commit(&pair.sender, i + 1);
    }
    ck_assert_ptr_null(iq_ring_acquire(&pair.sender));
    ck_assert(!pair.sender.corrupt);

    ck_assert_ptr_nonnull(iq_ring_peek(&pair.receiver, &bytes));
    ck_assert_uint_eq(bytes, 1);
    ck_assert_ptr_null(iq_ring_acquire(&pair.sender)); /* peek alone frees nothing */
    iq_ring_release(&pair.receiver);
    ck_assert_ptr_nonnull(iq_ring_acquire(&pair.sender));
    pair_fini(&pair);
}
END_TEST

START_TEST(wraps_around)
{
    pair_t pair;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    uint64_t sent = 0, received = 0;
    while (received < 1000) {
        unsigned batch = 1 + (unsigned)(scramble(sent) % SLOTS);
        unsigned char *slot;
        for (unsigned i = 0; i < batch && (slot = iq_ring_acquire(&pair.sender)) != NULL; i++) {
            size_t bytes = message_bytes(sent, SLOT_BYTES);
            fill(slot, bytes, sent++);
            iq_ring_commit(&pair.sender, bytes);
        }
        size_t bytes;
        const unsigned char *message = iq_ring_peek(&pair.receiver, &bytes);
        ck_assert_ptr_nonnull(message);
        ck_assert_uint_eq((uintptr_t)message % IQ_CACHE_LINE, 0);
        ck_assert_uint_eq(bytes, message_bytes(received, SLOT_BYTES));
        ck_assert(matches(message, bytes, received));
        received++;
        iq_ring_release(&pair.receiver);
        ck_assert_uint_le(sent - received, SLOTS);
    }
    pair_fini(&pair);
}
END_TEST

START_TEST(sizes)
{
    ck_assert_uint_eq(iq_ring_bytes((iq_ring_shape_t){64, 2, 1}) % IQ_CACHE_LINE, 0);
    ck_assert_uint_ge(iq_ring_bytes((iq_ring_shape_t){64, 2, 1}), 2 * 64 + 2 * 64);
    ck_assert_uint_ge(iq_ring_bytes((iq_ring_shape_t){64, 1000, 1}), 1000 * 64 + 1000 * 4); /* lengths need more than a line */
    ck_assert_uint_eq(iq_ring_bytes((iq_ring_shape_t){(size_t)1 << 33, 2, 1}), 0);
}
END_TEST

/* A board: every receiver reads all of it in the one place, and the slowest decides when a slot is free. */
START_TEST(several_receivers)
{
    iq_ring_shape_t shape = {.slot_bytes = 64, .slots = 2, .receivers = 3};
    unsigned char *memory = aligned_alloc(IQ_CACHE_LINE, iq_ring_bytes(shape));
    iq_ring_t sender, receivers[3];
    const void *place = NULL;
    size_t bytes;
    memset(memory, 0, iq_ring_bytes(shape));
    iq_ring_attach_sender(&sender, memory, shape);
    for (unsigned r = 0; r < 3; r++)
        iq_ring_attach_receiver(&receivers[r], memory, shape, r);
    for (int i = 0; i < 2; i++) {
        void *slot = iq_ring_acquire(&sender);
        ck_assert_ptr_nonnull(slot);
        place = i == 0 ? slot : place;
        iq_ring_commit(&sender, 8);
    }
    ck_assert_ptr_null(iq_ring_acquire(&sender));
    for (unsigned r = 3; r-- > 0;) {
        ck_assert_ptr_eq(iq_ring_peek(&receivers[r], &bytes), place);
        ck_assert(!iq_ring_has_room(&sender));
        iq_ring_release(&receivers[r]);
        ck_assert((iq_ring_acquire(&sender) != NULL) == (r == 0));
        ck_assert(r == 0 || sender.laggard < r);
    }
    ck_assert_ptr_eq(iq_ring_acquire(&sender), place);
    atomic_store(&receivers[1].heads->released, 7); /* beyond what was ever sent */
    iq_ring_commit(&sender, 8);
    ck_assert_ptr_null(iq_ring_acquire(&sender));
    ck_assert(sender.corrupt);
    free(memory);
}
END_TEST

/* ---- foreign bytes ---- */

static void expect_corrupt_receiver(pair_t *pair)
{
    size_t bytes = 0;
    ck_assert_ptr_null(iq_ring_peek(&pair->receiver, &bytes));
    ck_assert(pair->receiver.corrupt);
    ck_assert_ptr_null(iq_ring_peek(&pair->receiver, &bytes)); /* and stays so */
    pair_fini(pair);
}

START_TEST(damaged_length)
{
    static const uint32_t lengths[] = {0, SLOT_BYTES + 1, UINT32_MAX};
    pair_t pair;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    ck_assert_ptr_nonnull(iq_ring_acquire(&pair.sender));
    iq_ring_commit(&pair.sender, 5);
    atomic_store(&pair.receiver.tail->lengths[0], lengths[_i]);
    expect_corrupt_receiver(&pair);
}
END_TEST

START_TEST(damaged_tail)
{
    static const uint64_t tails[] = {SLOTS + 1, UINT64_MAX, (uint64_t)1 << 63};
    pair_t pair;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    for (unsigned i = 0; i < SLOTS; i++)
        atomic_store(&pair.receiver.tail->lengths[i], 8);
    atomic_store(&pair.receiver.tail->committed, tails[_i]);
    expect_corrupt_receiver(&pair);
}
END_TEST

START_TEST(damaged_head)
{
    pair_t pair;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    for (unsigned i = 0; i < SLOTS; i++) {
        ck_assert_ptr_nonnull(iq_ring_acquire(&pair.sender));
        iq_ring_commit(&pair.sender, 1);
    }
    atomic_store(&pair.sender.heads->released, SLOTS + 1); /* more released than committed */
    ck_assert_ptr_null(iq_ring_acquire(&pair.sender));
    ck_assert(pair.sender.corrupt);
    pair_fini(&pair);
}
END_TEST

/* ---- two threads ---- */

#define PUMPED 100000u

static void *pump(void *argument)
{
    pair_t *pair = argument;
    for (uint64_t i = 0; i < pair->messages; i++) {
        unsigned char *slot;
        while ((slot = iq_ring_acquire(&pair->sender)) == NULL)
            sched_yield();
        size_t bytes = message_bytes(i, SLOT_BYTES);
        fill(slot, bytes, i);
        iq_ring_commit(&pair->sender, bytes);
    }
    return NULL;
}

START_TEST(two_threads)
{
    pair_t pair;
    pthread_t thread;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    pair.messages = PUMPED;
    ck_assert_int_eq(pthread_create(&thread, NULL, pump, &pair), 0);
    for (uint64_t i = 0; i < PUMPED; i++) {
        size_t bytes;
        const unsigned char *message;
        while ((message = iq_ring_peek(&pair.receiver, &bytes)) == NULL) {
            ck_assert(!pair.receiver.corrupt);
            sched_yield();
        }
        ck_assert_uint_eq(bytes, message_bytes(i, SLOT_BYTES));
        ck_assert(matches(message, bytes, i));
        iq_ring_release(&pair.receiver);
    }
    pthread_join(thread, NULL);
    pair_fini(&pair);
}
END_TEST

/* ---- sleeping ---- */

#define SLEPT 20000u
#define NAP_NS 20000000000u /* a lost wake-up costs one nap: the test's time limit shows it */

static void sleep_until(iq_doorbell_t *own, bool (*event)(iq_ring_t *), iq_ring_t *ring)
{
    iq_doorbell_prepare(own);
    if (event(ring))
        iq_doorbell_cancel(own);
    else
        iq_doorbell_nap(own, NAP_NS);
}

/* Like pump, but sleeps whenever there is no room. */
static void *pump_asleep(void *argument)
{
    pair_t *pair = argument;
    for (uint64_t i = 0; i < pair->messages; i++) {
        unsigned char *slot;
        while ((slot = iq_ring_acquire(&pair->sender)) == NULL)
            sleep_until(&pair->sender_bell, iq_ring_has_room, &pair->sender);
        fill(slot, 8, i);
        iq_ring_commit(&pair->sender, 8);
        pair->failures += !iq_doorbell_ring(&pair->receiver_bell);
    }
    return NULL;
}

START_TEST(no_wakeup_is_lost)
{
    pair_t pair;
    pthread_t thread;
    uint64_t start = iq_now_ns();
    pair_init(&pair, 64, 2);
    pair.messages = SLEPT;
    ck_assert_int_eq(pthread_create(&thread, NULL, pump_asleep, &pair), 0);
    for (uint64_t i = 0; i < SLEPT; i++) {
        size_t bytes;
        const unsigned char *message;
        while ((message = iq_ring_peek(&pair.receiver, &bytes)) == NULL)
            sleep_until(&pair.receiver_bell, iq_ring_arrived, &pair.receiver);
        ck_assert(matches(message, 8, i));
        iq_ring_release(&pair.receiver);
        ck_assert(iq_doorbell_ring(&pair.sender_bell));
    }
    pthread_join(thread, NULL);
    ck_assert_int_eq(pair.failures, 0);
    ck_assert_uint_lt(iq_now_ns() - start, NAP_NS);
    pair_fini(&pair);
}
END_TEST

/* A message that nobody wants yet is reported once; the next one is news again. */
START_TEST(each_event_is_reported_once)
{
    pair_t pair;
    size_t bytes;
    pair_init(&pair, SLOT_BYTES, SLOTS);
    ck_assert(!iq_ring_arrived(&pair.receiver));
    for (unsigned i = 0; i < SLOTS; i++) {
        ck_assert_ptr_nonnull(iq_ring_acquire(&pair.sender));
        iq_ring_commit(&pair.sender, 1);
    }
    ck_assert(iq_ring_arrived(&pair.receiver));
    ck_assert(!iq_ring_arrived(&pair.receiver));
    ck_assert_ptr_nonnull(iq_ring_peek(&pair.receiver, &bytes));
    ck_assert(!iq_ring_arrived(&pair.receiver));

    ck_assert(!iq_ring_has_room(&pair.sender)); /* nobody has asked for room yet */
    ck_assert_ptr_null(iq_ring_acquire(&pair.sender));
    ck_assert(!iq_ring_has_room(&pair.sender));
    iq_ring_release(&pair.receiver);
    ck_assert(iq_ring_arrived(&pair.receiver)); /* the second message is the oldest now */
    ck_assert(iq_ring_has_room(&pair.sender));
    ck_assert(!iq_ring_has_room(&pair.sender));
    pair_fini(&pair);
}
END_TEST

START_TEST(closed_doorbell)
{
    iq_doorbell_t bell = {.state = IQ_AWAKE};
    ck_assert(iq_doorbell_ring(&bell));
    iq_doorbell_prepare(&bell);
    ck_assert(iq_doorbell_ring(&bell)); /* before the nap: the nap ends at once */
    uint64_t start = iq_now_ns();
    iq_doorbell_nap(&bell, NAP_NS);
    ck_assert_uint_lt(iq_now_ns() - start, NAP_NS / 2);
    iq_doorbell_close(&bell);
    ck_assert(!iq_doorbell_ring(&bell));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("ring");
    TCase *queue = tcase_create("queue");
    TCase *foreign = tcase_create("foreign_bytes");
    TCase *threads = tcase_create("threads");
    TCase *sleeping = tcase_create("sleeping");
    tcase_add_test(queue, empty_and_full);
    tcase_add_test(queue, wraps_around);
    tcase_add_test(queue, sizes);
    tcase_add_test(queue, several_receivers);
    tcase_add_loop_test(foreign, damaged_length, 0, 3);
    tcase_add_loop_test(foreign, damaged_tail, 0, 3);
    tcase_add_test(foreign, damaged_head);
    tcase_add_test(threads, two_threads);
    tcase_add_test(sleeping, no_wakeup_is_lost);
    tcase_add_test(sleeping, each_event_is_reported_once);
    tcase_add_test(sleeping, closed_doorbell);
    tcase_set_timeout(threads, 60);
    tcase_set_timeout(sleeping, 60);
    suite_add_tcase(suite, queue);
    suite_add_tcase(suite, foreign);
    suite_add_tcase(suite, threads);
    suite_add_tcase(suite, sleeping);
    return suite;
}
