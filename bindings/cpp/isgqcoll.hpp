/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file isgqcoll.hpp
 * isgqcoll for C++17 and later: objects that own what the C interface hands out, ranges instead of pointers and counts,
 * exceptions or results instead of status codes. Header-only: it calls the functions of isgqcoll.h, whose comments say what
 * each of them does, and adds no thread, no lock, no copy of data and no waiting.
 *
 * Reading order: isgqcoll/status.hpp (errors), ranges.hpp (spans, matrices, element types), objects.hpp (quantizers, tensors,
 * memory, options), communicator.hpp (communicators, collectives, groups).
 *
 * Errors. Every function that can fail takes one more argument at its end that nobody has to give. Without it the function
 * returns its value or throws isgq::error (a std::runtime_error with the status code and the library's sentence). With
 * std::nothrow there it returns an isgq::result, which holds the value or code and sentence. One rule for all functions,
 * written down once for each: a second set of names or a second set of classes would have to be learned, and a result that
 * everybody must unpack would be in the way of those who want exceptions. Compiled with -fno-exceptions the argument is
 * std::nothrow by itself, so results are all there is.
 *
 * Ownership. Objects are moved, never copied. An empty one (default, moved from, destroyed) is refused by the library as a NULL
 * handle is, in a sentence. Destructors neither throw nor wait for other ranks: ~communicator() aborts the communicator, so
 * that no other rank waits for this one, unless finalize() was called before; that is what a scope left by an exception wants,
 * and the reason why a program that ends well calls finalize() itself. Memory of mem_alloc() is gone with its communicator:
 * declare buffers after it.
 *
 * Calls are asynchronous as in C: ranges that were given to a call stay borrowed until synchronize() or wait() has returned.
 * Temporary containers are therefore refused by the compiler.
 *
 * Constness says what may be called from several threads at once: const functions may, and abort().
 */
#ifndef ISGQCOLL_HPP
#define ISGQCOLL_HPP

#include "isgqcoll/communicator.hpp"

#endif
