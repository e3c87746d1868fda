/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file communicator.hpp
 * Communicators with their collectives, and groups of calls.
 *
 * What a call is given as ranges is checked here (sizes and shapes that do not fit each other); everything else by the library.
 */
#ifndef ISGQCOLL_COMMUNICATOR_HPP
#define ISGQCOLL_COMMUNICATOR_HPP

#include "isgqcoll/objects.hpp"

#include <exception>

namespace isgq {

/** Names one communicator before it exists; copied byte for byte, treated as a password. */
using unique_id = isgq_unique_id_t;

/** Counters of a communicator. */
using statistics = isgq_stats_t;

/** isgq_get_unique_id. */
template <class Errors = errors_t> returns<unique_id, Errors> get_unique_id(Errors = Errors())
{
    unique_id id = {};
    const status answer = isgq_get_unique_id(&id);
    return detail::finish<Errors>(answer, id);
}

/** @cond */
namespace detail {

/** The caller's allgather behind the function that C calls. What it throws waits here until C has returned. */
template <class Allgather> struct oob {
    Allgather &allgather;
#if ISGQ_CPP_EXCEPTIONS
    std::exception_ptr thrown = nullptr;
#endif

    static int exchange(void *context, const void *send, void *recv, std::size_t bytes)
    {
        oob &self = *static_cast<oob *>(context);
#if ISGQ_CPP_EXCEPTIONS
        try {
            return self.answer(send, recv, bytes);
        } catch (...) {
            self.thrown = std::current_exception();
            return -1;
        }
#else
        return self.answer(send, recv, bytes);
#endif
    }

    int answer(const void *send, void *recv, std::size_t bytes)
    {
        if constexpr (std::is_void_v<decltype(allgather(send, recv, bytes))>)
            return allgather(send, recv, bytes), 0;
        else
            return allgather(send, recv, bytes);
    }
};

inline std::string shape_text(std::size_t rows, std::size_t columns)
{
    return "[" + std::to_string(rows) + " x " + std::to_string(columns) + "]";
}

inline std::string sizes_text(const char *operation, std::size_t send, std::size_t recv, const char *rule)
{
    return std::string(operation) + ": send has " + std::to_string(send) + " elements, recv " + std::to_string(recv) + rule;
}

} /* namespace detail */
/** @endcond */

/**
 * A group of ranks; see section 2 of isgqcoll.h. Used by one thread at a time, but for const functions and abort().
 * Where its functions have the names of the C interface, they do what these do.
 */
class communicator : public detail::owner<isgq_comm_t, isgq_comm_destroy> {
public:
    using owner::owner;
    communicator() noexcept = default;

    /* ---- joining ---- */

    /** Join the communicator that the launcher's environment describes. */
    template <class Errors = errors_t> static returns<communicator, Errors> init_env(const config &with = {}, Errors = Errors())
    {
        const isgq_comm_config_t values = with.values();
        isgq_comm_t handle = nullptr;
        const status answer = isgq_comm_init_env(&handle, &values);
        return detail::finish<Errors>(answer, communicator(handle));
    }

    /** Join by an id that rank 0 has made and handed to all others. Not in a group: there it is group::init_rank. */
    template <class Errors = errors_t>
    static returns<communicator, Errors> init_rank(int nranks, const unique_id &id, int rank, const config &with = {},
                                                   Errors = Errors())
    {
        const isgq_comm_config_t values = with.values();
        communicator joined;
        const status answer = isgq_comm_init_rank(&joined.handle_, nranks, id, rank, &values);
        if (answer == ISGQ_SUCCESS && !joined) /* put off to the end of a group, when this object will not be here any more */
            return detail::refuse<communicator, Errors>(nullptr,
                                                        [] { return "init_rank: inside a group it is group::init_rank"; });
        return detail::finish<Errors>(answer, std::move(joined));
    }

    /**
     * Join where ranks can already talk to each other, through `allgather(const void *send, void *recv, std::size_t bytes)`,
     * called during this function only. It returns nothing, or 0 if all is well. What it throws comes out here (with
     * std::nothrow: is a failure).
     */
    template <class Allgather, class Errors = errors_t>
    static returns<communicator, Errors> init_oob(int nranks, int rank, Allgather &&allgather, const config &with = {},
                                                  Errors = Errors())
    {
        using callable = std::remove_reference_t<Allgather>;
        const isgq_comm_config_t values = with.values();
        isgq_comm_t handle = nullptr;
        detail::oob<callable> context{allgather};
        const status answer = isgq_comm_init_oob(&handle, nranks, rank, detail::oob<callable>::exchange, &context, &values);
        communicator joined(handle);
#if ISGQ_CPP_EXCEPTIONS
        if constexpr (std::is_same_v<Errors, throwing_t>)
            if (answer != ISGQ_SUCCESS && context.thrown)
                std::rethrow_exception(context.thrown);
#endif
        return detail::finish<Errors>(answer, std::move(joined));
    }

    /** Join the ranks of an ncclComm_t, which must outlive the new communicator. */
    template <class Errors = errors_t>
    static returns<communicator, Errors> init_nccl(struct ncclComm *nccl_comm, const config &with = {}, Errors = Errors())
    {
        const isgq_comm_config_t values = with.values();
        isgq_comm_t handle = nullptr;
        const status answer = isgq_comm_init_nccl(&handle, nccl_comm, &values);
        return detail::finish<Errors>(answer, communicator(handle));
    }

    /**
     * Ranks of equal color share the new communicator, ordered by key; with a negative color it is empty. Options are the
     * parent's.
     */
    template <class Errors = errors_t> returns<communicator, Errors> split(int color, int key, Errors = Errors())
    {
        return split_as<Errors>(color, key, nullptr);
    }
    template <class Errors = errors_t>
    returns<communicator, Errors> split(int color, int key, const config &with, Errors = Errors())
    {
        const isgq_comm_config_t values = with.values();
        return split_as<Errors>(color, key, &values);
    }

    /* ---- leaving ---- */

    /** Wait for all calls, then leave together with all ranks. Afterwards destruction is quiet. */
    template <class Errors = errors_t> returns<void, Errors> finalize(Errors = Errors())
    {
        return detail::finish<Errors>(isgq_comm_finalize(get()));
    }

    /** Stop outstanding work on every rank; from any thread, at any time before destruction. */
    void abort() noexcept { static_cast<void>(isgq_comm_abort(get())); }

    /* ---- waiting ---- */

    /** Block until all calls are complete. */
    template <class Errors = errors_t> returns<void, Errors> synchronize(Errors = Errors())
    {
        return detail::finish<Errors>(isgq_comm_synchronize(get()));
    }

    /** Number of the last call, for wait() and test(). */
    template <class Errors = errors_t> returns<std::uint64_t, Errors> sequence(Errors = Errors())
    {
        std::uint64_t number = 0;
        const status answer = isgq_comm_get_sequence(get(), &number);
        return detail::finish<Errors>(answer, number);
    }

    /** Block until this call and all before it are complete. */
    template <class Errors = errors_t> returns<void, Errors> wait(std::uint64_t sequence, Errors = Errors())
    {
        return detail::finish<Errors>(isgq_comm_wait(get(), sequence));
    }

    /** The same for no longer than `time`; whether they are complete. */
    template <class Errors = errors_t>
    returns<bool, Errors> wait_for(std::uint64_t sequence, std::chrono::nanoseconds time, Errors = Errors())
    {
        int done = 0;
        const status answer = isgq_comm_wait_for(get(), sequence, detail::milliseconds(time), &done);
        return detail::finish<Errors>(answer, done != 0);
    }

    /** Whether this call and all before it are complete; never blocks. */
    template <class Errors = errors_t> returns<bool, Errors> test(std::uint64_t sequence, Errors = Errors())
    {
        int done = 0;
        const status answer = isgq_comm_test(get(), sequence, &done);
        return detail::finish<Errors>(answer, done != 0);
    }

    /* ---- questions ---- */

    /** Number of ranks. */
    template <class Errors = errors_t> returns<int, Errors> count(Errors = Errors()) const
    {
        int nranks = 0;
        const status answer = isgq_comm_count(get(), &nranks);
        return detail::finish<Errors>(answer, nranks);
    }

    /** This rank, 0 .. count() - 1. */
    template <class Errors = errors_t> returns<int, Errors> rank(Errors = Errors()) const
    {
        int own = 0;
        const status answer = isgq_comm_user_rank(get(), &own);
        return detail::finish<Errors>(answer, own);
    }

    /** The communicator's failure, ISGQ_SUCCESS while all is well. */
    template <class Errors = errors_t> returns<status, Errors> async_error(Errors = Errors()) const
    {
        status failed = ISGQ_SUCCESS;
        const status answer = isgq_comm_get_async_error(get(), &failed);
        return detail::finish<Errors>(answer, failed);
    }

    /** Its sentence, "" while all is well. */
    const char *last_error() const noexcept { return isgq_comm_get_last_error(get()); }

    /** Counters since the beginning or the last reset_stats(). */
    template <class Errors = errors_t> returns<statistics, Errors> stats(Errors = Errors()) const
    {
        statistics counters = {};
        counters.size = sizeof(counters);
        const status answer = isgq_comm_get_stats(get(), &counters);
        return detail::finish<Errors>(answer, counters);
    }
    template <class Errors = errors_t> returns<void, Errors> reset_stats(Errors = Errors())
    {
        return detail::finish<Errors>(isgq_comm_reset_stats(get()));
    }

    /** Memory in which large sums are fastest (isgq_mem_alloc); it must be gone before this communicator is. */
    template <class T, class Errors = errors_t> returns<buffer<T>, Errors> mem_alloc(std::size_t count, Errors = Errors())
    {
        const std::size_t most = std::numeric_limits<std::size_t>::max() / sizeof(T);
        void *data = nullptr;
        const status answer = isgq_mem_alloc(&data, get(), count <= most ? count * sizeof(T) : most * sizeof(T));
        return detail::finish<Errors>(answer, buffer<T>(static_cast<T *>(data), count, get()));
    }

    /* ---- collectives ---- */

    /** Reduce over all ranks; every rank gets the result in `recv`, which has as many elements as `send`. */
    template <class Send, class Recv, class Errors = errors_t, class T = detail::element<std::remove_reference_t<Recv>>,
              class = detail::element<std::remove_reference_t<Send>>>
    returns<void, Errors> allreduce(Send &&send, Recv &&recv, reduction op, const call &with = {}, Errors = Errors())
    {
        const span<const T> from(std::forward<Send>(send));
        const span<T> to(std::forward<Recv>(recv));
        if (from.size() != to.size())
            return detail::refuse<void, Errors>(
                get(), [&] { return detail::sizes_text("allreduce", from.size(), to.size(), ", not the same"); });
        return detail::finish<Errors>(isgq_allreduce(from.data(), to.data(), to.size(), data_type<T>(),
                                                     static_cast<isgq_red_op_t>(op), with.quantizer(), get(), with.stream(),
                                                     with.options()));
    }

    /** The same in place. */
    template <class Range, class Errors = errors_t, class T = detail::element<std::remove_reference_t<Range>>>
    returns<void, Errors> allreduce(Range &&range, reduction op, const call &with = {}, Errors errors = Errors())
    {
        const span<T> both(std::forward<Range>(range));
        return allreduce(both, both, op, with, errors);
    }

    /** Sum over ranks of transpose(x) * delta into `gradient` [columns of x, columns of delta], by exchanging the factors. */
    template <class T, class Errors = errors_t>
    returns<void, Errors> allreduce_factored(const factors<T> &parts, matrix<T> gradient, reduction op, const call &with = {},
                                             Errors = Errors())
    {
        const matrix<const T> x = parts.x(), delta = parts.delta();
        const char *wrong = wrong_shape(parts, gradient);
        if (wrong != nullptr)
            return detail::refuse<void, Errors>(get(), [&] {
                using detail::shape_text;
                return "allreduce_factored: " + std::string(wrong) + "; x is " + shape_text(x.rows(), x.columns()) + ", delta " +
                       shape_text(delta.rows(), delta.columns()) + ", the gradient " +
                       shape_text(gradient.rows(), gradient.columns());
            });
        isgq_factors_t own = {};
        own.size = sizeof(own);
        own.x = x.data();
        own.delta = delta.data();
        own.batch = x.rows();
        own.m = x.columns();
        own.n = delta.columns();
        own.bias = parts.has_bias() ? parts.bias().data() : nullptr;
        return detail::finish<Errors>(isgq_allreduce_factored(&own, parts.max_batch(), gradient.data(), data_type<T>(),
                                                              static_cast<isgq_red_op_t>(op), with.quantizer(), get(),
                                                              with.stream(), with.options()));
    }

    /**
     * Reduce over all ranks; rank r gets the r-th part of the result, recv.size() elements of send.size() = count() *
     * recv.size().
     */
    template <class Send, class Recv, class Errors = errors_t, class T = detail::element<std::remove_reference_t<Recv>>>
    returns<void, Errors> reduce_scatter(Send &&send, Recv &&recv, reduction op, const call &with = {}, Errors = Errors())
    {
        const span<const T> from(std::forward<Send>(send));
        const span<T> to(std::forward<Recv>(recv));
        if (!is_multiple(from.size(), to.size()))
            return detail::refuse<void, Errors>(get(), [&] {
                return detail::sizes_text("reduce_scatter", from.size(), to.size(), "; send takes that of every rank");
            });
        return detail::finish<Errors>(isgq_reduce_scatter(from.data(), to.data(), to.size(), data_type<T>(),
                                                          static_cast<isgq_red_op_t>(op), with.quantizer(), get(), with.stream(),
                                                          with.options()));
    }

    /** Every rank's elements in rank order; recv.size() = count() * send.size(). */
    template <class Send, class Recv, class Errors = errors_t, class T = detail::element<std::remove_reference_t<Recv>>>
    returns<void, Errors> allgather(Send &&send, Recv &&recv, const call &with = {}, Errors = Errors())
    {
        const span<const T> from(std::forward<Send>(send));
        const span<T> to(std::forward<Recv>(recv));
        if (!is_multiple(to.size(), from.size()))
            return detail::refuse<void, Errors>(get(), [&] {
                return detail::sizes_text("allgather", from.size(), to.size(), "; recv takes that of every rank");
            });
        return detail::finish<Errors>(isgq_allgather(from.data(), to.data(), from.size(), data_type<T>(), with.quantizer(), get(),
                                                     with.stream(), with.options()));
    }

    /** Copy the root's elements to every rank, in place. Never quantized. */
    template <class Range, class Errors = errors_t, class T = detail::element<std::remove_reference_t<Range>>>
    returns<void, Errors> broadcast(Range &&range, int root, isgq_stream_t stream = nullptr, Errors = Errors())
    {
        const span<T> both(std::forward<Range>(range));
        return detail::finish<Errors>(isgq_broadcast(both.data(), both.data(), both.size(), data_type<T>(), root, get(), stream));
    }

    /** Complete once every rank has called it. */
    template <class Errors = errors_t> returns<void, Errors> barrier(isgq_stream_t stream = nullptr, Errors = Errors())
    {
        return detail::finish<Errors>(isgq_barrier(get(), stream));
    }

private:
    friend class group; /* the end of a group writes handle_ */

    template <class Errors> returns<communicator, Errors> split_as(int color, int key, const isgq_comm_config_t *values)
    {
        isgq_comm_t handle = nullptr;
        const status answer = isgq_comm_split(get(), color, key, &handle, values);
        return detail::finish<Errors>(answer, communicator(handle));
    }

    /** `all` elements are `each` for every rank. An empty communicator is the library's to refuse. */
    bool is_multiple(std::size_t all, std::size_t each) const noexcept
    {
        int nranks = 0;
        if (isgq_comm_count(get(), &nranks) != ISGQ_SUCCESS)
            return true;
        const auto ranks = static_cast<std::size_t>(nranks);
        return all / ranks == each && all % ranks == 0;
    }

    /** NULL if all fit together. */
    template <class T> static const char *wrong_shape(const factors<T> &parts, const matrix<T> &gradient) noexcept
    {
        if (!parts.x().is_whole() || !parts.delta().is_whole() || !gradient.is_whole())
            return "a matrix has another number of elements than its shape";
        if (parts.x().rows() != parts.delta().rows())
            return "x and delta differ in rows";
        if (gradient.rows() != parts.x().columns() || gradient.columns() != parts.delta().columns())
            return "the gradient is not of x's columns times delta's columns";
        if (parts.has_bias() && parts.bias().size() != parts.delta().columns())
            return "the bias does not have an element for each column of delta";
        return nullptr;
    }
};

/**
 * A scope in which this thread's collectives are put off: they run together from launch() on. Scopes nest; the outermost
 * launches. A scope that is left without launch(), by an exception say, launches nothing, and the communicators of its calls
 * fail on every rank, so that none waits for what will not come. launch() throws what any of its calls would have.
 */
class group {
public:
    group() noexcept { static_cast<void>(isgq_group_start()); }
    group(const group &) = delete;
    group &operator=(const group &) = delete;
    ~group()
    {
        if (!open_)
            return;
        static_cast<void>(
            isgq_group_refuse(nullptr, ISGQ_ERR_INVALID_USAGE, "the scope of a group was left before its launch()"));
        static_cast<void>(isgq_group_end());
    }

    /** isgq_group_end. */
    template <class Errors = errors_t> returns<void, Errors> launch(Errors = Errors())
    {
        if (!std::exchange(open_, false))
            return detail::fail<void, Errors>(failure(ISGQ_ERR_INVALID_USAGE, "group: launched twice"));
        return detail::finish<Errors>(isgq_group_end());
    }

    /**
     * Join when the outermost group is launched: one thread may hold several ranks. `joined` is empty, and stays where it is
     * until then.
     */
    template <class Errors = errors_t>
    returns<void, Errors> init_rank(communicator &joined, int nranks, const unique_id &id, int rank, const config &with = {},
                                    Errors = Errors())
    {
        const isgq_comm_config_t values = with.values();
        if (joined || !open_)
            return detail::refuse<void, Errors>(nullptr, [&] {
                return joined ? "init_rank: this communicator has been joined already"
                              : "init_rank: the group was launched already";
            });
        return detail::finish<Errors>(isgq_comm_init_rank(&joined.handle_, nranks, id, rank, &values));
    }

private:
    bool open_ = true;
};

} /* namespace isgq */

#endif
