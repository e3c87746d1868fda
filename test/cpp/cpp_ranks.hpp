/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks as threads for tests in C++, whose bodies end by exceptions: the C tests' harness jumps out of them, past destructors.
 */
#ifndef ISGQ_TEST_CPP_RANKS_HPP
#define ISGQ_TEST_CPP_RANKS_HPP

#include "cpp/isgqcoll.hpp"

#include <check.h>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

/* In a body: ends the rank with a sentence. */
#define RANK_REQUIRE(condition)                                                                                     \
    do {                                                                                                            \
        if (!(condition))                                                                                           \
            throw std::logic_error(std::string(__FILE__ ":") + std::to_string(__LINE__) + ": not so: " #condition); \
    } while (0)

/* The call throws isgq::error with this status, and these words in its sentence. */
template <class Call> void rank_throws(isgq::status code, const char *words, Call call)
{
    try {
        call();
    } catch (const isgq::error &e) {
        if (e.code() != code || std::strstr(e.what(), words) == nullptr)
            throw std::logic_error("status " + std::to_string(e.code()) + ", \"" + e.what() + "\" instead of " +
                                   std::to_string(code) + ", \"" + words + "\"");
        return;
    }
    throw std::logic_error(std::string("nothing was thrown instead of \"") + words + "\"");
}

/* body(communicator, rank) on threads. A communicator that the body has destroyed is left alone, all others are finalized. */
template <class Body> void run_ranks(int nranks, Body body)
{
    const isgq::unique_id id = isgq::get_unique_id();
    std::vector<std::string> failures(static_cast<std::size_t>(nranks));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < nranks; rank++)
        threads.emplace_back([&, rank] {
            try {
                auto comm = isgq::communicator::init_rank(nranks, id, rank);
                body(comm, rank);
                if (comm)
                    comm.finalize();
            } catch (const std::exception &e) {
                failures[static_cast<std::size_t>(rank)] = "rank " + std::to_string(rank) + ": " + e.what() + "\n";
            }
        });
    std::string all;
    for (std::size_t i = 0; i < threads.size(); i++) {
        threads[i].join();
        all += failures[i];
    }
    ck_assert_msg(all.empty(), "%s", all.c_str());
}

/* Threads that exchange bytes by themselves: what MPI_Allgather is to a program. */
class Exchange {
public:
    explicit Exchange(std::size_t nranks) : parts_(nranks) {}

    void operator()(std::size_t rank, const void *send, void *recv, std::size_t bytes)
    {
        std::unique_lock<std::mutex> lock(mutex_);
        const std::size_t round = rounds_;
        const char *from = static_cast<const char *>(send);
        parts_[rank].assign(from, from + bytes);
        if (++arrived_ == parts_.size()) {
            arrived_ = 0;
            rounds_++;
            whole_.clear();
            for (const std::vector<char> &part : parts_)
                whole_.insert(whole_.end(), part.begin(), part.end());
            changed_.notify_all();
        }
        changed_.wait(lock, [&] { return rounds_ != round; });
        std::memcpy(recv, whole_.data(), whole_.size());
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::vector<char>> parts_;
    std::vector<char> whole_;
    std::size_t arrived_ = 0, rounds_ = 0;
};

#endif
