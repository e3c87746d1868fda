/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file objects.hpp
 * Objects that own a handle of the library: quantizers, tensors, memory; and what is said once for a communicator or a call.
 */
#ifndef ISGQCOLL_OBJECTS_HPP
#define ISGQCOLL_OBJECTS_HPP

#include "isgqcoll/ranges.hpp"
#include "isgqcoll/status.hpp"

#include <chrono>
#include <cstdint>
#include <vector>

namespace isgq {

/** Reductions; see isgq_red_op_t. */
enum class reduction { sum = ISGQ_SUM, prod = ISGQ_PROD, max = ISGQ_MAX, min = ISGQ_MIN, avg = ISGQ_AVG };

/** @cond */
namespace detail {

/** What all owners of a handle have in common: they are moved, and end what they own. */
template <class Handle, auto End> class owner {
public:
    owner() noexcept = default;
    /** Takes over a handle of the C interface. */
    explicit owner(Handle handle) noexcept : handle_(handle) {}
    owner(owner &&other) noexcept : handle_(other.release()) {}
    owner &operator=(owner &&other) noexcept
    {
        if (this != &other) {
            destroy();
            handle_ = other.release();
        }
        return *this;
    }
    owner(const owner &) = delete;
    owner &operator=(const owner &) = delete;
    ~owner() { destroy(); }

    /** For functions of isgqcoll.h; NULL if empty. */
    Handle get() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != nullptr; }
    /** Gives up the handle, for a caller that will destroy it. */
    Handle release() noexcept { return std::exchange(handle_, nullptr); }
    /** What the destructor does, now. */
    void destroy() noexcept { static_cast<void>(End(release())); }
    void swap(owner &other) noexcept { std::swap(handle_, other.handle_); }

protected:
    Handle handle_ = nullptr;
};

/**
 * Milliseconds of the C interface, where 0 stands for the default: what is shorter than one is one, what is too long the
 * longest.
 */
constexpr std::uint32_t milliseconds(std::chrono::nanoseconds time)
{
    using std::chrono::milliseconds;
    const auto whole = std::chrono::ceil<milliseconds>(time).count();
    const std::int64_t most = std::numeric_limits<std::uint32_t>::max();
    return whole <= 0 ? 0 : static_cast<std::uint32_t>(whole < most ? whole : most);
}

} /* namespace detail */
/** @endcond */

/** How values are made small. Immutable; shared freely by threads, communicators and calls, which keep what they need of it. */
class quantizer : public detail::owner<isgq_quantizer_t, isgq_quantizer_destroy> {
public:
    using owner::owner;
    quantizer() noexcept = default;

    /** isgq_quantizer_create: create("uniform:bits=4"). */
    template <class Errors = errors_t> static returns<quantizer, Errors> create(const char *text, Errors = Errors())
    {
        isgq_quantizer_t handle = nullptr;
        const status answer = isgq_quantizer_create(&handle, text);
        return detail::finish<Errors>(answer, quantizer(handle));
    }

#if ISGQ_CPP_EXCEPTIONS
    /** create(), as a constructor. */
    explicit quantizer(const char *text) : quantizer(create(text)) {}
#endif

    /** isgq_quantizer_max_bytes for `count` elements of T. */
    template <class T, class Errors = errors_t> returns<std::size_t, Errors> max_bytes(std::size_t count, Errors = Errors()) const
    {
        std::size_t bytes = 0;
        const status answer = isgq_quantizer_max_bytes(get(), data_type<T>(), count, &bytes);
        return detail::finish<Errors>(answer, bytes);
    }
};

/** What one gradient tensor remembers between calls; see isgq_tensor_t. */
class tensor : public detail::owner<isgq_tensor_t, isgq_tensor_destroy> {
public:
    using owner::owner;
    tensor() noexcept = default;

    /** isgq_tensor_create. */
    template <class Errors = errors_t>
    static returns<tensor, Errors> create(const char *name, std::size_t count, Errors = Errors())
    {
        isgq_tensor_t handle = nullptr;
        const status answer = isgq_tensor_create(&handle, name, count);
        return detail::finish<Errors>(answer, tensor(handle));
    }

#if ISGQ_CPP_EXCEPTIONS
    /** create(), as a constructor. */
    tensor(const char *name, std::size_t count) : tensor(create(name, count)) {}
#endif

    /** isgq_tensor_shape. */
    template <class Errors = errors_t> returns<void, Errors> shape(std::size_t rows, std::size_t columns, Errors = Errors())
    {
        return detail::finish<Errors>(isgq_tensor_shape(get(), rows, columns));
    }

    /** isgq_tensor_reset: forget everything. */
    template <class Errors = errors_t> returns<void, Errors> reset(Errors = Errors())
    {
        return detail::finish<Errors>(isgq_tensor_reset(get()));
    }

    /** isgq_tensor_save: this rank's state, for a checkpoint. Memory that ends while it is made is std::bad_alloc. */
    template <class Errors = errors_t> returns<std::vector<std::byte>, Errors> save(Errors = Errors()) const
    {
        std::vector<std::byte> state;
        std::size_t bytes = 0;
        status answer = isgq_tensor_save(get(), nullptr, &bytes);
        if (answer == ISGQ_SUCCESS) {
            state.resize(bytes);
            answer = isgq_tensor_save(get(), state.data(), &bytes);
        }
        return detail::finish<Errors>(answer, std::move(state));
    }

    /** isgq_tensor_load. */
    template <class Errors = errors_t> returns<void, Errors> load(span<const std::byte> state, Errors = Errors())
    {
        return detail::finish<Errors>(isgq_tensor_load(get(), state.data(), state.size()));
    }
};

/**
 * Options of a communicator, as isgq_comm_config_t: config{}.seed(7).timeout(std::chrono::seconds(30)). What is not set follows
 * the environment.
 */
class config {
public:
    [[nodiscard]] config device(isgq_device_type_t type) const
    {
        return with([type](config &c) { c.values_.device_type = type; });
    }
    [[nodiscard]] config transports(std::string list) const
    {
        return with([&list](config &c) { c.transports_ = std::move(list); });
    }
    /** The default of all calls. Read when a communicator is made, which keeps it. */
    [[nodiscard]] config quantizer(const isgq::quantizer &q) const
    {
        return with([&q](config &c) { c.values_.quantizer = q.get(); });
    }
    config quantizer(isgq::quantizer &&) const = delete;
    [[nodiscard]] config chunk_bytes(std::size_t bytes) const
    {
        return with([bytes](config &c) { c.values_.chunk_bytes = bytes; });
    }
    [[nodiscard]] config timeout(std::chrono::nanoseconds time) const
    {
        return with([time](config &c) { c.values_.timeout_ms = detail::milliseconds(time); });
    }
    [[nodiscard]] config seed(std::uint64_t number) const
    {
        return with([number](config &c) { c.values_.seed = number; });
    }

    /** For functions of isgqcoll.h. Its text lives as long as this object. */
    isgq_comm_config_t values() const noexcept
    {
        isgq_comm_config_t filled = values_;
        filled.transports = transports_.empty() ? nullptr : transports_.c_str();
        return filled;
    }

private:
    template <class Change> config with(Change change) const
    {
        config changed = *this;
        change(changed);
        return changed;
    }

    isgq_comm_config_t values_ = ISGQ_COMM_CONFIG_INIT;
    std::string transports_;
};

/** Settings of one call: call{}.quantizer(q).tensor(t). A quantizer alone stands for call{}.quantizer(q). */
class call {
public:
    constexpr call() noexcept = default;
    call(const isgq::quantizer &q) noexcept : quantizer_(q.get()) {}
    call(isgq::quantizer &&) = delete;

    /** Instead of the communicator's. */
    [[nodiscard]] call quantizer(const isgq::quantizer &q) const noexcept
    {
        return with([&q](call &c) { c.quantizer_ = q.get(); });
    }
    call quantizer(isgq::quantizer &&) const = delete;
    /** What is remembered of earlier calls. */
    [[nodiscard]] call tensor(const isgq::tensor &t) const noexcept
    {
        return with([&t](call &c) { c.options_.tensor = t.get(); });
    }
    call tensor(isgq::tensor &&) const = delete;
    /** Add to the output instead of overwriting it. */
    [[nodiscard]] call accumulate() const noexcept
    {
        return with([](call &c) { c.options_.accumulate = 1; });
    }
    /** "direct", "ring", ...; the text is read by the call. */
    [[nodiscard]] call algorithm(const char *name) const noexcept
    {
        return with([name](call &c) { c.options_.algorithm = name; });
    }
    [[nodiscard]] call timeout(std::chrono::nanoseconds time) const noexcept
    {
        return with([time](call &c) { c.options_.timeout_ms = detail::milliseconds(time); });
    }
    /** Of the communicator's device. */
    [[nodiscard]] call stream(isgq_stream_t where) const noexcept
    {
        return with([where](call &c) { c.stream_ = where; });
    }

    /** For functions of isgqcoll.h. */
    const isgq_call_options_t *options() const noexcept { return &options_; }
    isgq_quantizer_t quantizer() const noexcept { return quantizer_; }
    isgq_stream_t stream() const noexcept { return stream_; }

private:
    template <class Change> call with(Change change) const noexcept
    {
        call changed = *this;
        change(changed);
        return changed;
    }

    isgq_call_options_t options_ = {sizeof(isgq_call_options_t), nullptr, 0, nullptr, 0};
    isgq_quantizer_t quantizer_ = nullptr;
    isgq_stream_t stream_ = nullptr;
};

/**
 * One rank's factors of a gradient transpose(x) * delta, as isgq_factors_t: factors(x, delta).bias(b). Ranks whose batches differ
 * say max_batch(), the same on all; without it every rank has as many rows as this one.
 */
template <class T> class factors {
public:
    constexpr factors(matrix<const T> x, matrix<const T> delta) noexcept : x_(x), delta_(delta), max_batch_(x.rows()) {}

    /** [columns of delta] receives the summed columns of delta. */
    [[nodiscard]] constexpr factors bias(span<T> sums) const noexcept
    {
        factors changed = *this;
        changed.bias_ = sums;
        changed.has_bias_ = true;
        return changed;
    }
    /** Upper bound of the rows over all ranks. */
    [[nodiscard]] constexpr factors max_batch(std::size_t rows) const noexcept
    {
        factors changed = *this;
        changed.max_batch_ = rows;
        return changed;
    }

    constexpr matrix<const T> x() const noexcept { return x_; }
    constexpr matrix<const T> delta() const noexcept { return delta_; }
    constexpr span<T> bias() const noexcept { return bias_; }
    constexpr bool has_bias() const noexcept { return has_bias_; }
    constexpr std::size_t max_batch() const noexcept { return max_batch_; }

private:
    matrix<const T> x_, delta_;
    span<T> bias_;
    bool has_bias_ = false;
    std::size_t max_batch_;
};

template <class X, class D> factors(matrix<X>, matrix<D>) -> factors<std::remove_const_t<X>>;

/**
 * Elements in memory of isgq_mem_alloc, not initialised; see communicator::mem_alloc. It is the communicator's memory and gone
 * with it, so a buffer is destroyed first: declare it after its communicator.
 */
template <class T> class buffer {
    static_assert(std::is_trivially_copyable_v<T>, "the library moves bytes");

public:
    using value_type = T;

    buffer() noexcept = default;
    /** Takes over `size` elements that came from isgq_mem_alloc of `comm`. */
    buffer(T *data, std::size_t size, isgq_comm_t comm) noexcept : data_(data), size_(size), comm_(comm) {}
    buffer(buffer &&other) noexcept { swap(other); }
    buffer &operator=(buffer &&other) noexcept
    {
        buffer(std::move(other)).swap(*this);
        return *this;
    }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;
    ~buffer() { static_cast<void>(isgq_mem_free(data_, comm_)); }

    T *data() noexcept { return data_; }
    const T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    T *begin() noexcept { return data_; }
    T *end() noexcept { return data_ + size_; }
    const T *begin() const noexcept { return data_; }
    const T *end() const noexcept { return data_ + size_; }
    T &operator[](std::size_t index) { return data_[index]; }
    const T &operator[](std::size_t index) const { return data_[index]; }

    void swap(buffer &other) noexcept
    {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(comm_, other.comm_);
    }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
    isgq_comm_t comm_ = nullptr;
};

} /* namespace isgq */

#endif
