/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file ranges.hpp
 * What collectives work on: contiguous ranges of elements whose type the library knows, and matrices over such ranges.
 */
#ifndef ISGQCOLL_RANGES_HPP
#define ISGQCOLL_RANGES_HPP

#include "isgqcoll.h"

#include <cstddef>
#include <iterator>
#include <limits>
#include <type_traits>
#if defined(__has_include)
#if __has_include(<stdfloat>) && __cplusplus > 202002L
#include <stdfloat>
#endif
#endif

namespace isgq {

/**
 * Which isgq_data_type_t a C++ type is. float, double and the integers of 1, 4 and 8 bytes are known, with C++23 also
 * std::float16_t and std::bfloat16_t; specialise it for others, before their first use:
 *
 *     template <> struct isgq::data_type_of<__half> { static constexpr isgq_data_type_t value = ISGQ_FLOAT16; };
 */
template <class T, class = void> struct data_type_of;

template <class T>
struct data_type_of<T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool> &&
                                        (sizeof(T) == 1 || sizeof(T) == 4 || sizeof(T) == 8)>> {
    static constexpr isgq_data_type_t value = sizeof(T) == 1   ? (std::is_signed_v<T> ? ISGQ_INT8 : ISGQ_UINT8)
                                              : sizeof(T) == 4 ? (std::is_signed_v<T> ? ISGQ_INT32 : ISGQ_UINT32)
                                                               : (std::is_signed_v<T> ? ISGQ_INT64 : ISGQ_UINT64);
};

template <> struct data_type_of<float> {
    static constexpr isgq_data_type_t value = ISGQ_FLOAT32;
};
template <> struct data_type_of<double> {
    static constexpr isgq_data_type_t value = ISGQ_FLOAT64;
};
#if defined(__STDCPP_FLOAT16_T__)
template <> struct data_type_of<std::float16_t> {
    static constexpr isgq_data_type_t value = ISGQ_FLOAT16;
};
#endif
#if defined(__STDCPP_BFLOAT16_T__)
template <> struct data_type_of<std::bfloat16_t> {
    static constexpr isgq_data_type_t value = ISGQ_BFLOAT16;
};
#endif

/** @cond */
namespace detail {

constexpr std::size_t data_type_bytes(isgq_data_type_t type)
{
    switch (type) {
    case ISGQ_INT8:
    case ISGQ_UINT8: return 1;
    case ISGQ_FLOAT16:
    case ISGQ_BFLOAT16: return 2;
    case ISGQ_INT32:
    case ISGQ_UINT32:
    case ISGQ_FLOAT32: return 4;
    case ISGQ_INT64:
    case ISGQ_UINT64:
    case ISGQ_FLOAT64: return 8;
    }
    return 0;
}

} /* namespace detail */
/** @endcond */

/** data_type_of, checked. */
template <class T> constexpr isgq_data_type_t data_type()
{
    using element = std::remove_cv_t<T>;
    static_assert(detail::data_type_bytes(data_type_of<element>::value) == sizeof(element),
                  "data_type_of names a type of another size");
    static_assert(std::is_trivially_copyable_v<element>, "elements are copied byte for byte");
    return data_type_of<element>::value;
}

/** @cond */
namespace detail {

/** The element type of a contiguous range, const where the range is; not there for anything else. */
template <class Range> using element = std::remove_pointer_t<decltype(std::data(std::declval<Range &>()))>;

/**
 * A temporary is taken only if it owns nothing, since its elements are read after the call. In C++17 one sees that by
 * constness: a const container has const elements, a const view need not have.
 */
template <class Range>
inline constexpr bool outlives_call =
    std::is_lvalue_reference_v<Range> ||
    std::is_same_v<element<std::remove_reference_t<Range>>, element<const std::remove_reference_t<Range>>>;

template <class From, class To> inline constexpr bool elements_convert = std::is_convertible_v<From (*)[], To (*)[]>;

} /* namespace detail */
/** @endcond */

/** A pointer and a count of elements, as std::span (which converts to it, and is made from it by data() and size()). */
template <class T> class span {
public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using iterator = T *;

    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}

    /** std::vector, std::array, arrays, std::span, isgq::buffer: whatever std::data and std::size know. */
    template <class Range, std::enable_if_t<!std::is_same_v<std::remove_cv_t<std::remove_reference_t<Range>>, span> &&
                                                detail::elements_convert<detail::element<std::remove_reference_t<Range>>, T>,
                                            int> = 0>
    constexpr span(Range &&range) noexcept : data_(std::data(range)), size_(std::size(range))
    {
        static_assert(detail::outlives_call<Range>, "a temporary container is gone before the call has read it");
    }

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t index) const { return data_[index]; }

    /** Elements first .. first + count - 1, which must be there. */
    constexpr span subspan(std::size_t first, std::size_t count) const { return span(data_ + first, count); }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

template <class Range> span(Range &&) -> span<detail::element<std::remove_reference_t<Range>>>;

/**
 * A dense row-major matrix over elements of somebody else. Whether there are as many elements as it needs is checked by the
 * calls that take it.
 */
template <class T> class matrix {
public:
    using element_type = T;

    constexpr matrix() noexcept = default;
    constexpr matrix(span<T> elements, std::size_t rows, std::size_t columns) noexcept
        : elements_(elements), rows_(rows), columns_(columns)
    {
    }

    /** A matrix of T is one of const T. */
    template <class U, std::enable_if_t<!std::is_same_v<U, T> && detail::elements_convert<U, T>, int> = 0>
    constexpr matrix(const matrix<U> &other) noexcept : matrix(other.elements(), other.rows(), other.columns())
    {
    }

    constexpr span<T> elements() const noexcept { return elements_; }
    constexpr T *data() const noexcept { return elements_.data(); }
    constexpr std::size_t rows() const noexcept { return rows_; }
    constexpr std::size_t columns() const noexcept { return columns_; }
    constexpr T &operator()(std::size_t row, std::size_t column) const { return elements_[row * columns_ + column]; }

    /** It has rows() * columns() elements. */
    constexpr bool is_whole() const noexcept
    {
        const bool fits = columns_ == 0 || rows_ <= std::numeric_limits<std::size_t>::max() / columns_;
        return fits && elements_.size() == rows_ * columns_;
    }

private:
    span<T> elements_;
    std::size_t rows_ = 0, columns_ = 0;
};

template <class Range> matrix(Range &&, std::size_t, std::size_t) -> matrix<detail::element<std::remove_reference_t<Range>>>;

} /* namespace isgq */

#endif
