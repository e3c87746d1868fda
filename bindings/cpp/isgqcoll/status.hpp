/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file status.hpp
 * How calls tell that they failed: isgq::error, or isgq::result where std::nothrow is their last argument.
 */
#ifndef ISGQCOLL_STATUS_HPP
#define ISGQCOLL_STATUS_HPP

#include "isgqcoll.h"

#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#if defined(__cpp_exceptions)
#define ISGQ_CPP_EXCEPTIONS 1
#else
#define ISGQ_CPP_EXCEPTIONS 0
#endif

namespace isgq {

/** The status codes of isgqcoll.h: ISGQ_SUCCESS, ISGQ_ERR_TIMEOUT, ... */
using status = isgq_result_t;

/** What went wrong: the code for programs, one sentence for people. */
class failure {
public:
    failure(status code, std::string text) noexcept : code_(code), text_(std::move(text)) {}

    status code() const noexcept { return code_; }

    /** The library's sentence; the code's fixed text if there is none. Never NULL. */
    const char *what() const noexcept { return text_.empty() ? isgq_get_error_string(code_) : text_.c_str(); }

private:
    status code_;
    std::string text_;
};

/** What calls throw. */
class error : public std::runtime_error {
public:
    explicit error(const failure &from) : std::runtime_error(from.what()), code_(from.code()) {}

    status code() const noexcept { return code_; }

private:
    status code_;
};

/**
 * A value or what went wrong instead, in the manner of std::expected. Reading the value of a failure is an error of the
 * program.
 */
template <class T> class [[nodiscard]] result {
public:
    using value_type = T;

    result(T value) : value_(std::move(value)), failure_(ISGQ_SUCCESS, {}) {}
    result(failure reason) noexcept : failure_(std::move(reason)) {}

    bool has_value() const noexcept { return value_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }

    T &operator*() &noexcept { return *value_; }
    const T &operator*() const &noexcept { return *value_; }
    T &&operator*() &&noexcept { return std::move(*value_); }
    T *operator->() noexcept { return &*value_; }
    const T *operator->() const noexcept { return &*value_; }

    /** ISGQ_SUCCESS, or why there is no value. */
    status code() const noexcept { return failure_.code(); }
    const char *what() const noexcept { return failure_.what(); }

#if ISGQ_CPP_EXCEPTIONS
    /** The value, or throws isgq::error. */
    T &value() & { return check(), *value_; }
    const T &value() const & { return check(), *value_; }
    T &&value() && { return check(), std::move(*value_); }
#endif

private:
#if ISGQ_CPP_EXCEPTIONS
    void check() const
    {
        if (!value_)
            throw error(failure_);
    }
#endif

    std::optional<T> value_;
    failure failure_;
};

/** Of calls that give nothing back. */
template <> class [[nodiscard]] result<void> {
public:
    using value_type = void;

    result() noexcept : failure_(ISGQ_SUCCESS, {}) {}
    result(failure reason) noexcept : failure_(std::move(reason)) {}

    bool has_value() const noexcept { return failure_.code() == ISGQ_SUCCESS; }
    explicit operator bool() const noexcept { return has_value(); }
    status code() const noexcept { return failure_.code(); }
    const char *what() const noexcept { return failure_.what(); }

#if ISGQ_CPP_EXCEPTIONS
    void value() const
    {
        if (!has_value())
            throw error(failure_);
    }
#endif

private:
    failure failure_;
};

/** The last argument of every function that can fail, unless std::nothrow is given there. */
#if ISGQ_CPP_EXCEPTIONS
struct throwing_t {};
using errors_t = throwing_t;
#else
using errors_t = std::nothrow_t;
#endif

/** @cond how a function that is written once returns in either way */
namespace detail {

template <class T, class Errors> struct returned; /* not defined: the last argument is neither std::nothrow nor left out */
template <class T> struct returned<T, std::nothrow_t> {
    using type = result<T>;
};
#if ISGQ_CPP_EXCEPTIONS
template <class T> struct returned<T, throwing_t> {
    using type = T;
};
#endif

} /* namespace detail */
/** @endcond */

/** What a function for T returns: T itself, or result<T> if Errors is std::nothrow_t. */
template <class T, class Errors> using returns = typename detail::returned<T, Errors>::type;

/** @cond */
namespace detail {

/** A sentence that is wanted even where there is no memory for it; then the code has to do. */
template <class Make> failure explain(status code, Make make) noexcept
{
#if ISGQ_CPP_EXCEPTIONS
    try {
        return failure(code, make());
    } catch (...) {
        return failure(code, {});
    }
#else
    return failure(code, make());
#endif
}

template <class T, class Errors> returns<T, Errors> fail(failure reason)
{
#if ISGQ_CPP_EXCEPTIONS
    if constexpr (std::is_same_v<Errors, throwing_t>)
        throw error(reason);
    else
#endif
        return result<T>(std::move(reason));
}

/** After a call of the library that failed on this thread. */
template <class T, class Errors> returns<T, Errors> fail(status code)
{
    return fail<T, Errors>(explain(code, [] { return std::string(isgq_get_last_error()); }));
}

/** An argument that is refused here, before the library sees it; an open group is refused with it, as it is by the library. */
template <class T, class Errors, class Make> returns<T, Errors> refuse(isgq_comm_t comm, Make make)
{
    failure reason = explain(ISGQ_ERR_INVALID_ARGUMENT, make);
    (void)isgq_group_refuse(comm, reason.code(), reason.what());
    return fail<T, Errors>(std::move(reason));
}

template <class Errors> returns<void, Errors> finish(status code)
{
    if (code != ISGQ_SUCCESS)
        return fail<void, Errors>(code);
    return returns<void, Errors>();
}

template <class Errors, class T> returns<T, Errors> finish(status code, T value)
{
    if (code != ISGQ_SUCCESS)
        return fail<T, Errors>(code);
    return returns<T, Errors>(std::move(value));
}

} /* namespace detail */
/** @endcond */

/** The version of the library that is loaded, as ISGQ_VERSION_CODE. */
template <class Errors = errors_t> returns<int, Errors> get_version(Errors = Errors())
{
    int code = 0;
    const status answer = isgq_get_version(&code);
    return detail::finish<Errors>(answer, code);
}

} /* namespace isgq */

#endif
