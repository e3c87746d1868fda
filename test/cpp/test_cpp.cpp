/* SPDX-License-Identifier: Apache-2.0 */
/* The C++ headers: what they own, convert and refuse, and in which words. The arithmetic is the C tests' business. */
#include "test/cpp/cpp_ranks.hpp"

extern "C" {
#include "support/check_main.h"
}

#include <array>
#include <chrono>
#include <cstdlib>

namespace {

using isgq::call;
using isgq::communicator;
using isgq::reduction;
using std::chrono::milliseconds;

/* What a user does for the 16-bit floats of a toolkit. */
struct half {
    std::uint16_t bits;
};

} /* namespace */

template <> struct isgq::data_type_of<half> {
    static constexpr isgq_data_type_t value = ISGQ_FLOAT16;
};

namespace {

/* ---- handles and results ---- */

START_TEST(quantizers_move)
{
    isgq::quantizer first("uniform:bits=4"), second;
    const isgq_quantizer_t handle = first.get();
    ck_assert(first && !second);
    second = std::move(first);
    ck_assert(!first && second.get() == handle);
    isgq::quantizer third(std::move(second));
    third.swap(first);
    ck_assert(first.get() == handle && !second && !third);
    third = isgq::quantizer(first.release());
    ck_assert(!first && third.get() == handle);
    ck_assert_uint_ge(third.max_bytes<float>(1000), 500);
    third.destroy();
    ck_assert(!third);
    rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "quantizer", [&] { third.max_bytes<float>(1000); });
}
END_TEST

START_TEST(results)
{
    isgq::result<isgq::quantizer> good = isgq::quantizer::create("bf16", std::nothrow);
    ck_assert(good && good.code() == ISGQ_SUCCESS && good->get() != nullptr);
    isgq::quantizer taken = std::move(good).value();
    ck_assert(taken && !*good);

    isgq::result<isgq::quantizer> bad = isgq::quantizer::create("unifrom:bits=4", std::nothrow);
    ck_assert(!bad.has_value() && bad.code() == ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_msg(std::strstr(bad.what(), "unifrom") != nullptr && std::strstr(bad.what(), "uniform") != nullptr, "%s",
                  bad.what());
    rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "unifrom", [&] { bad.value(); });
    rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "unifrom", [] { isgq::quantizer("unifrom:bits=4"); });
    try {
        isgq::tensor(nullptr, 1);
        ck_abort_msg("nothing was thrown");
    } catch (const std::runtime_error &e) { /* as which people catch it */
        ck_assert_str_ne(e.what(), "");
    }
    ck_assert_str_eq(isgq::failure(ISGQ_ERR_TIMEOUT, "").what(), isgq_get_error_string(ISGQ_ERR_TIMEOUT));
    ck_assert_int_eq(isgq::get_version(), ISGQ_VERSION_CODE);
}
END_TEST

/* Empty ones are refused, whichever way they became so; none of it brings the program down. */
START_TEST(empty_communicators)
{
    communicator comm;
    std::vector<float> values(8);
    const auto refused = [&](const char *words, auto call) { rank_throws(ISGQ_ERR_INVALID_ARGUMENT, words, call); };
    refused("comm is NULL", [&] { comm.allreduce(values, reduction::sum); });
    refused("comm is NULL", [&] { comm.synchronize(); });
    refused("comm is NULL", [&] { static_cast<void>(comm.rank()); });
    refused("comm is NULL", [&] { comm.mem_alloc<float>(8); });
    refused("comm is NULL", [&] { comm.split(0, 0); });
    refused("comm is NULL", [&] { comm.finalize(); });
    comm.abort();
    comm.destroy();
    ck_assert_str_eq(comm.last_error(), "");

    communicator joined = communicator::init_rank(1, isgq::get_unique_id(), 0);
    communicator other = std::move(joined);
    refused("comm is NULL", [&] { joined.barrier(); });
    ck_assert_int_eq(other.count(), 1);
    other.destroy();
    const isgq::result<int> rank = other.rank(std::nothrow);
    ck_assert(!rank && rank.code() == ISGQ_ERR_INVALID_ARGUMENT);
    other = communicator::init_rank(1, isgq::get_unique_id(), 0);
    other.finalize();
    rank_throws(ISGQ_ERR_INVALID_USAGE, "finalize", [&] { other.barrier(); });
}
END_TEST

START_TEST(tensors_and_memory)
{
    run_ranks(2, [](communicator &comm, int rank) {
        const isgq::quantizer signs("onebit");
        isgq::tensor state("layer", 6);
        std::vector<float> values = {1, 2, 3, -4, 5, 6}, twice = values, again = values;
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "layer", [&] { state.shape(2, 4); });
        state.shape(2, 3);
        comm.allreduce(values, reduction::sum, call(signs).tensor(state));
        comm.synchronize();
        const std::vector<std::byte> saved = state.save();
        comm.allreduce(twice, reduction::sum, call(signs).tensor(state));
        comm.synchronize();
        state.reset();
        state.load(saved);
        comm.allreduce(again, reduction::sum, call(signs).tensor(state));
        comm.synchronize();
        RANK_REQUIRE(twice == again && twice != values); /* the residual was remembered, and came back */
        rank_throws(ISGQ_ERR_CORRUPT, "", [&] { state.load(isgq::span<const std::byte>(saved.data(), saved.size() - 1)); });

        isgq::buffer<double> memory = comm.mem_alloc<double>(5), moved;
        RANK_REQUIRE(memory.size() == 5 && reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
        for (double &value : memory)
            value = rank + 1;
        moved = std::move(memory);
        RANK_REQUIRE(memory.empty() && memory.data() == nullptr);
        comm.allreduce(moved, reduction::prod);
        comm.synchronize();
        RANK_REQUIRE(moved[0] == 2 && moved[4] == 2);
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "bytes", [&] { comm.mem_alloc<double>(~std::size_t(0)); });
    });
}
END_TEST

/* ---- joining ---- */

START_TEST(from_the_environment)
{
    const std::string job = "cpp-" + std::to_string(std::chrono::steady_clock::now().time_since_epoch().count());
    setenv("ISGQ_JOB", job.c_str(), 1);
    setenv("ISGQ_RANK", "0", 1);
    setenv("ISGQ_NRANKS", "1", 1);
    communicator comm = communicator::init_env(isgq::config{}.seed(7).timeout(std::chrono::seconds(9)));
    ck_assert_int_eq(comm.rank(), 0);
    comm.finalize();
    for (const char *name : {"ISGQ_JOB", "ISGQ_RANK", "ISGQ_NRANKS"})
        unsetenv(name);
    const isgq::config pigeons = isgq::config{}.transports("carrier-pigeon").device(ISGQ_DEVICE_HOST).chunk_bytes(1 << 16);
    ck_assert_str_eq(pigeons.values().transports, "carrier-pigeon");
    const isgq::result<communicator> none =
        communicator::init_rank(1, isgq::get_unique_id(), 0, pigeons.chunk_bytes(1), std::nothrow);
    ck_assert_msg(!none && std::strstr(none.what(), "chunk_bytes") != nullptr, "%s", none.what());
}
END_TEST

START_TEST(durations)
{
    using isgq::detail::milliseconds;
    ck_assert_uint_eq(milliseconds(std::chrono::seconds(3)), 3000);
    ck_assert_uint_eq(milliseconds(std::chrono::microseconds(1)), 1);
    ck_assert_uint_eq(milliseconds(std::chrono::seconds(-1)), 0);
    ck_assert_uint_eq(milliseconds(std::chrono::hours(24 * 365)), UINT32_MAX);
    ck_assert_uint_eq(call{}.timeout(std::chrono::seconds(2)).accumulate().options()->timeout_ms, 2000);
}
END_TEST

START_TEST(callers_allgather)
{
    Exchange exchange(2);
    std::string failures[2];
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < 2; rank++)
        threads.emplace_back([&, rank] {
            try {
                auto comm =
                    communicator::init_oob(2, static_cast<int>(rank), [&](const void *send, void *recv, std::size_t bytes) {
                        exchange(rank, send, recv, bytes);
                    });
                std::int32_t one = 1;
                comm.allreduce(isgq::span(&one, 1), reduction::sum);
                comm.synchronize();
                RANK_REQUIRE(one == 2);
                comm.finalize();
            } catch (const std::exception &e) {
                failures[rank] = e.what();
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    ck_assert_str_eq(failures[0].c_str(), "");
    ck_assert_str_eq(failures[1].c_str(), "");

    auto throwing = [](const void *, void *, std::size_t) -> int { throw std::out_of_range("mine"); };
    try {
        communicator::init_oob(1, 0, throwing);
        ck_abort_msg("the callable's exception was lost");
    } catch (const std::out_of_range &e) {
        ck_assert_str_eq(e.what(), "mine");
    }
    ck_assert_int_eq(communicator::init_oob(1, 0, throwing, {}, std::nothrow).code(), ISGQ_ERR_SYSTEM);
    rank_throws(ISGQ_ERR_SYSTEM, "42",
                [] { communicator::init_oob(1, 0, [](const void *, void *, std::size_t) { return 42; }); });
}
END_TEST

START_TEST(splits)
{
    run_ranks(3, [](communicator &comm, int rank) {
        communicator part = comm.split(rank == 2 ? -1 : 0, -rank);
        RANK_REQUIRE(static_cast<bool>(part) == (rank != 2));
        if (part) {
            RANK_REQUIRE(part.count() == 2 && part.rank() == 1 - rank);
            part.finalize();
        }
        communicator all = comm.split(0, rank, isgq::config{}.seed(3));
        RANK_REQUIRE(all.count() == 3 && all.rank() == rank);
        all.finalize();
        RANK_REQUIRE(comm.split(-1, 0, std::nothrow).has_value());
    });
}
END_TEST

/* ---- calls ---- */

START_TEST(every_range)
{
    run_ranks(2, [](communicator &comm, int rank) {
        const std::vector<float> constant = {1, 2, 3};
        std::vector<float> sum(3);
        comm.allreduce(constant, sum, reduction::sum);
        std::array<std::int64_t, 2> largest = {rank, -rank};
        comm.allreduce(largest, reduction::max);
        unsigned char bytes[4] = {1, 2, 3, 4};
        comm.allreduce(bytes, reduction::avg);
        std::vector<half> halves(5, half{0x3c00}); /* 1 */
        comm.allreduce(halves, reduction::sum);
        std::vector<std::int32_t> parts = {1, 2, 3, 4}, own(2), everything(4);
        comm.reduce_scatter(parts, own, reduction::sum);
        comm.allgather(own, everything);
        double value[2] = {rank + 0.5, 7};
        comm.broadcast(isgq::span(value).subspan(0, 1), 1);
        comm.barrier();
        comm.synchronize();
        RANK_REQUIRE(sum == std::vector<float>({2, 4, 6}));
        RANK_REQUIRE(largest[0] == 1 && largest[1] == 0);
        RANK_REQUIRE(bytes[0] == 1 && bytes[3] == 4);
        RANK_REQUIRE(halves[4].bits == 0x4000); /* 2 */
        RANK_REQUIRE(own[0] == (rank == 0 ? 2 : 6) && everything == std::vector<std::int32_t>({2, 4, 6, 8}));
        RANK_REQUIRE(value[0] == 1.5 && value[1] == 7);
    });
}
END_TEST

START_TEST(options_reach_calls)
{
    run_ranks(2, [](communicator &comm, int) {
        const isgq::quantizer eight("uniform:bits=8,rounding=nearest");
        const std::vector<float> in(4096, 1.0f);
        std::vector<float> out(4096, 10.0f);
        comm.allreduce(in, out, reduction::sum, call(eight).accumulate().algorithm("direct"));
        const std::uint64_t number = comm.sequence();
        while (!comm.wait_for(number, milliseconds(50)))
            ;
        comm.wait(number);
        RANK_REQUIRE(number == 1 && comm.test(number) && out[0] == 12.0f && out[4095] == 12.0f);
        const isgq::statistics counters = comm.stats();
        RANK_REQUIRE(counters.calls == 1 && counters.input_bytes == 16384 && counters.wire_bytes > 0 &&
                     counters.wire_bytes < 16384);
        comm.barrier();
        comm.synchronize();
        comm.reset_stats();
        RANK_REQUIRE(comm.stats().calls == 0 && comm.async_error() == ISGQ_SUCCESS);
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "no-such-way",
                    [&] { comm.allreduce(out, reduction::sum, call{}.algorithm("no-such-way")); });
        rank_throws(ISGQ_ERR_UNSUPPORTED, "takes sum and avg", [&] { comm.allreduce(out, reduction::max, eight); });
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "comm_wait", [&] { comm.wait(99); });
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "root", [&] { comm.broadcast(out, 2); });
        RANK_REQUIRE(comm.allreduce(out, reduction::max, call(eight), std::nothrow).code() == ISGQ_ERR_UNSUPPORTED);
    });
}
END_TEST

/* Ranges that do not fit each other never reach the library, and the communicator goes on. */
START_TEST(sizes)
{
    run_ranks(2, [](communicator &comm, int) {
        std::vector<float> three(3), four(4), eight(8);
        const auto refused = [&](const char *words, auto call) { rank_throws(ISGQ_ERR_INVALID_ARGUMENT, words, call); };
        refused("allreduce: send has 3 elements, recv 4, not the same", [&] { comm.allreduce(three, four, reduction::sum); });
        refused("reduce_scatter: send has 8 elements, recv 3; send takes",
                [&] { comm.reduce_scatter(eight, three, reduction::sum); });
        refused("allgather: send has 3 elements, recv 8; recv takes", [&] { comm.allgather(three, eight); });
        const isgq::result<void> result = comm.allgather(three, eight, {}, std::nothrow);
        RANK_REQUIRE(!result && std::strcmp(result.what(), isgq_get_last_error()) == 0);
        comm.reduce_scatter(eight, four, reduction::sum);
        comm.synchronize();
    });
}
END_TEST

START_TEST(factors_have_shapes)
{
    run_ranks(2, [](communicator &comm, int rank) {
        const isgq::quantizer none("none");
        const std::vector<float> inputs = {1, 2, 3, 4, 5, 6}, deltas = {1, 0, 0, 1};
        std::vector<float> sums(6), bias(2);
        const std::size_t rows = rank == 0 ? 2 : 1; /* of 2 */
        const isgq::matrix x(isgq::span{inputs}.subspan(0, rows * 3), rows, 3),
            delta(isgq::span{deltas}.subspan(0, rows * 2), rows, 2);
        const isgq::matrix gradient(sums, 3, 2);
        comm.allreduce_factored(isgq::factors(x, delta).bias(bias).max_batch(2), gradient, reduction::sum, none);
        comm.synchronize();
        RANK_REQUIRE(sums == std::vector<float>({2, 4, 4, 5, 6, 6})); /* rank 0: [1 4; 2 5; 3 6], rank 1: [1 0; 2 0; 3 0] */
        RANK_REQUIRE(bias == std::vector<float>({2, 1}) && gradient(1, 1) == 5);

        const auto refused = [&](const char *words, isgq::factors<float> parts, isgq::matrix<float> to) {
            rank_throws(ISGQ_ERR_INVALID_ARGUMENT, words, [&] { comm.allreduce_factored(parts, to, reduction::sum, none); });
        };
        refused("differ in rows; x is [2 x 3], delta [1 x 4], the gradient [3 x 2]",
                isgq::factors(isgq::matrix(inputs, 2, 3), isgq::matrix(deltas, 1, 4)), gradient);
        refused("another number of elements than its shape",
                isgq::factors(isgq::matrix(inputs, 2, 4), isgq::matrix(deltas, 2, 2)), gradient);
        refused("another number of elements than its shape", isgq::factors(x, delta),
                isgq::matrix(sums, ~std::size_t(0) / 2 + 4, 2));
        refused("not of x's columns", isgq::factors(x, delta), isgq::matrix(sums, 2, 3));
        refused("bias", isgq::factors(x, delta).bias(sums), gradient);
        refused("exceeds max_batch 0", isgq::factors(x, delta).max_batch(0), gradient);
    });
}
END_TEST

/* ---- failures ---- */

START_TEST(aborted)
{
    run_ranks(2, [](communicator &comm, int rank) {
        std::vector<float> values(100);
        if (rank == 1) {
            comm.destroy(); /* without finalize: rank 0 does not wait for it */
            return;
        }
        rank_throws(ISGQ_ERR_REMOTE, "rank 1", [&] {
            comm.allreduce(values, reduction::sum);
            comm.synchronize();
        });
        RANK_REQUIRE(comm.async_error() == ISGQ_ERR_REMOTE && std::strstr(comm.last_error(), "rank 1") != nullptr);
        comm.destroy();
    });
}
END_TEST

/* ---- groups ---- */

START_TEST(groups_launch)
{
    run_ranks(2, [](communicator &comm, int) {
        std::vector<std::int32_t> a = {1, 2}, b = {3};
        isgq::group outer;
        comm.allreduce(a, reduction::sum);
        {
            isgq::group inner;
            comm.allreduce(b, reduction::sum);
            inner.launch();
        }
        RANK_REQUIRE(comm.sequence() == 0);
        outer.launch();
        comm.synchronize();
        RANK_REQUIRE(comm.sequence() == 2 && a[1] == 4 && b[0] == 6);
        rank_throws(ISGQ_ERR_INVALID_USAGE, "twice", [&] { outer.launch(); });
    });
}
END_TEST

/* Rank 1 leaves its group by an exception, in an inner scope or after a refused call: nobody waits, and everybody reads why. */
START_TEST(groups_left_early)
{
    const bool throws = _i == 0;
    const char *reason = throws ? "left before its launch()" : "send has 2 elements, recv 1";
    run_ranks(2, [throws, reason](communicator &comm, int rank) {
        std::vector<float> a(2), b(1), c(2);
        if (rank == 1) {
            try {
                isgq::group outer;
                comm.allreduce(a, reduction::sum);
                isgq::group inner;
                if (throws)
                    throw std::out_of_range("of the program's own");
                comm.allreduce(a, b, reduction::sum);
                outer.launch();
                RANK_REQUIRE(false);
            } catch (const std::out_of_range &) {
                RANK_REQUIRE(throws);
            } catch (const isgq::error &e) {
                RANK_REQUIRE(!throws && std::strstr(e.what(), reason) != nullptr);
            }
            RANK_REQUIRE(comm.async_error() != ISGQ_SUCCESS && comm.sequence() == 0);
            RANK_REQUIRE(isgq_group_end() == ISGQ_ERR_INVALID_USAGE); /* both scopes are closed */
            comm.destroy();
            return;
        }
        rank_throws(throws ? ISGQ_ERR_INVALID_USAGE : ISGQ_ERR_INVALID_ARGUMENT, reason, [&] {
            isgq::group together;
            comm.allreduce(a, reduction::sum);
            comm.allreduce(c, reduction::sum);
            together.launch();
            comm.synchronize();
        });
        comm.destroy();
    });
}
END_TEST

/* One thread holds two ranks. */
START_TEST(groups_join)
{
    const isgq::unique_id id = isgq::get_unique_id();
    communicator comms[2];
    std::int32_t values[2] = {3, 4};
    {
        isgq::group joining;
        for (int rank = 0; rank < 2; rank++)
            joining.init_rank(comms[rank], 2, id, rank);
        ck_assert(!comms[0]);
        joining.launch();
    }
    {
        isgq::group calls;
        for (std::size_t rank = 0; rank < 2; rank++)
            comms[rank].allreduce(isgq::span(&values[rank], 1), reduction::sum);
        calls.launch();
    }
    for (communicator &comm : comms)
        comm.synchronize();
    ck_assert(values[0] == 7 && values[1] == 7);
    {
        isgq::group refused;
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "joined already",
                    [&] { refused.init_rank(comms[0], 1, isgq::get_unique_id(), 0); });
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "joined already", [&] { refused.launch(); });
    }
    {
        isgq::group putting_off; /* into an object that would not live to see it */
        rank_throws(ISGQ_ERR_INVALID_ARGUMENT, "group::init_rank", [&] { communicator::init_rank(1, isgq::get_unique_id(), 0); });
    }
    std::thread other([&] { comms[1].finalize(); });
    comms[0].finalize();
    other.join();
}
END_TEST

} /* namespace */

static void add(Suite *suite, TCase *tcase, std::initializer_list<const TTest *> tests, int loops = 1)
{
    for (const TTest *test : tests)
        tcase_add_loop_test(tcase, test, 0, loops);
    suite_add_tcase(suite, tcase);
}

extern "C" Suite *iq_suite(void)
{
    Suite *suite = suite_create("cpp");
    add(suite, tcase_create("objects"), {quantizers_move, results, empty_communicators, tensors_and_memory, durations});
    add(suite, tcase_create("environment"), {from_the_environment}); /* read at a process's first call */
    add(suite, tcase_create("joining"), {callers_allgather, splits});
    add(suite, tcase_create("calls"), {every_range, options_reach_calls, sizes, factors_have_shapes, aborted});
    add(suite, tcase_create("groups"), {groups_launch, groups_join});
    add(suite, tcase_create("left_groups"), {groups_left_early}, 2);
    return suite;
}
