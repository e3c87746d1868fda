/* SPDX-License-Identifier: Apache-2.0 */
/* Only compiled: what the C++ headers promise of their types, and every function once, as it is called with exceptions and without. */
#include "isgqcoll.hpp"

#include <array>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

/* ---- what is known at compile time ---- */

template <class T>
constexpr bool is_moved_only = std::is_nothrow_move_constructible_v<T> &&std::is_nothrow_move_assignable_v<T> &&
                               !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;

static_assert(is_moved_only<isgq::communicator> && is_moved_only<isgq::quantizer> && is_moved_only<isgq::tensor> &&
              is_moved_only<isgq::buffer<float>>);
static_assert(!std::is_move_constructible_v<isgq::group> && std::is_nothrow_destructible_v<isgq::group> &&
              std::is_nothrow_destructible_v<isgq::communicator>);
static_assert(sizeof(isgq::communicator) == sizeof(isgq_comm_t) && sizeof(isgq::quantizer) == sizeof(void *) &&
              sizeof(isgq::tensor) == sizeof(void *));
static_assert(sizeof(isgq::span<float>) == 2 * sizeof(void *) && sizeof(isgq::statistics) == sizeof(isgq_stats_t));
static_assert(std::is_base_of_v<std::runtime_error, isgq::error> && std::is_nothrow_copy_constructible_v<isgq::error>);
static_assert(std::is_trivially_copyable_v<isgq::span<float>> && std::is_trivially_copyable_v<isgq::matrix<float>> &&
              std::is_trivially_copyable_v<isgq::call>);

static_assert(isgq::data_type<std::int8_t>() == ISGQ_INT8 && isgq::data_type<std::uint8_t>() == ISGQ_UINT8);
static_assert(isgq::data_type<std::int32_t>() == ISGQ_INT32 && isgq::data_type<std::uint32_t>() == ISGQ_UINT32);
static_assert(isgq::data_type<long long>() == ISGQ_INT64 && isgq::data_type<unsigned long>() == ISGQ_UINT64);
static_assert(isgq::data_type<const float>() == ISGQ_FLOAT32 && isgq::data_type<double>() == ISGQ_FLOAT64);

static_assert(std::is_convertible_v<std::vector<float> &, isgq::span<const float>> &&
              std::is_convertible_v<float (&)[3], isgq::span<float>>);
static_assert(std::is_convertible_v<std::array<int, 4> &, isgq::span<int>> &&
              std::is_convertible_v<isgq::span<int>, isgq::span<const int>>);
static_assert(!std::is_convertible_v<const std::vector<float> &, isgq::span<float>> &&
              !std::is_convertible_v<std::vector<float> &, isgq::span<double>>);
static_assert(!std::is_convertible_v<isgq::matrix<const float>, isgq::matrix<float>> &&
              !std::is_constructible_v<isgq::call, isgq::quantizer>);
static_assert(isgq::detail::outlives_call<std::vector<float> &> && isgq::detail::outlives_call<isgq::span<float>> &&
              !isgq::detail::outlives_call<std::vector<float>>);
static_assert(std::is_same_v<isgq::returns<int, isgq::errors_t>, int> == (ISGQ_CPP_EXCEPTIONS == 1) &&
              std::is_same_v<isgq::returns<int, std::nothrow_t>, isgq::result<int>>);

#define EACH(call) failures += (call) ? 0 : 1

int use_objects(isgq::communicator &comm);
int use_communicators(isgq::communicator &comm, isgq::unique_id id);
int use_collectives(isgq::communicator &comm);

int use_objects(isgq::communicator &comm)
{
    int failures = 0;
    isgq::result<isgq::quantizer> quantizer = isgq::quantizer::create("uniform:bits=4", std::nothrow);
    isgq::result<isgq::tensor> tensor = isgq::tensor::create("layer", 12, std::nothrow);
    EACH(quantizer && tensor);
    EACH(quantizer->max_bytes<float>(12, std::nothrow));
    EACH(tensor->shape(3, 4, std::nothrow));
    EACH(tensor->reset(std::nothrow));
    const isgq::result<std::vector<std::byte>> state = tensor->save(std::nothrow);
    EACH(state);
    EACH(tensor->load(*state, std::nothrow));
    isgq::result<isgq::buffer<float>> memory = comm.mem_alloc<float>(12, std::nothrow);
    EACH(memory);
    for (float &value : *memory)
        value = 0;
    EACH(comm.allreduce(*memory, isgq::reduction::sum, isgq::call(*quantizer).tensor(*tensor).stream(nullptr), std::nothrow));
    const isgq::config config = isgq::config{}.quantizer(*quantizer).device(ISGQ_DEVICE_HOST).seed(1).chunk_bytes(1 << 20);
    return failures + static_cast<int>(config.values().seed) + isgq::failure(memory.code(), memory.what()).code();
}

int use_communicators(isgq::communicator &comm, isgq::unique_id id)
{
    int failures = 0;
    EACH(isgq::get_version(std::nothrow) && isgq::get_unique_id(std::nothrow));
    EACH(isgq::communicator::init_env({}, std::nothrow));
    EACH(isgq::communicator::init_rank(2, id, 0, isgq::config{}.transports("shm"), std::nothrow));
    EACH(isgq::communicator::init_oob(
        2, 0, [](const void *, void *, std::size_t) {}, {}, std::nothrow));
    EACH(isgq::communicator::init_nccl(nullptr, {}, std::nothrow));
    EACH(comm.split(0, 0, std::nothrow));
    EACH(comm.split(0, 0, isgq::config{}, std::nothrow));
    EACH(comm.count(std::nothrow) && comm.rank(std::nothrow));
    const isgq::result<std::uint64_t> number = comm.sequence(std::nothrow);
    EACH(number && comm.wait(*number, std::nothrow) && comm.wait_for(*number, std::chrono::seconds(1), std::nothrow) &&
         comm.test(*number, std::nothrow));
    EACH(comm.async_error(std::nothrow) && comm.stats(std::nothrow) && comm.reset_stats(std::nothrow));
    EACH(comm.synchronize(std::nothrow) && comm.finalize(std::nothrow));
    isgq::communicator moved = std::move(comm), late;
    isgq::group group;
    EACH(group.init_rank(late, 2, id, 1, {}, std::nothrow));
    EACH(group.launch(std::nothrow));
    moved.abort();
    moved.swap(comm);
    return failures + (*comm.last_error() != '\0');
}

int use_collectives(isgq::communicator &comm)
{
    int failures = 0;
    const std::vector<float> in(6);
    std::vector<float> out(6);
    std::array<float, 12> both{};
    float three[3] = {};
    EACH(comm.allreduce(in, out, isgq::reduction::avg, isgq::call{}.accumulate().algorithm("ring"), std::nothrow));
    EACH(comm.allreduce(both, isgq::reduction::sum, {}, std::nothrow));
    EACH(comm.reduce_scatter(both, out, isgq::reduction::sum, {}, std::nothrow));
    EACH(comm.allgather(out, both, {}, std::nothrow));
    EACH(comm.broadcast(three, 0, nullptr, std::nothrow));
    EACH(comm.barrier(nullptr, std::nothrow));
    const isgq::matrix x(in, 2, 3);
    const isgq::matrix delta(out, 2, 3);
    isgq::matrix<float> gradient(isgq::span{both}.subspan(0, 9), 3, 3);
    EACH(comm.allreduce_factored(isgq::factors(x, delta).bias(three).max_batch(2), gradient, isgq::reduction::sum, {},
                                 std::nothrow));
#if __cplusplus >= 202002L
    const std::span<float> standard(out);
    EACH(comm.allreduce(std::span<const float>(in), standard, isgq::reduction::sum, {}, std::nothrow));
    EACH(comm.allreduce(std::span(three), isgq::reduction::sum, {}, std::nothrow));
#endif
    return failures;
}
