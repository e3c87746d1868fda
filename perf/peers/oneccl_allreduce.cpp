/* SPDX-License-Identifier: Apache-2.0 */
/* oneCCL on CPUs, measured as peer_measure.h says. Rank 0's address reaches the others by a file in the folder, which all hosts share. */
#include "perf/peers/peer_measure.h"

#include <oneapi/ccl.hpp>
#include <string>

static void allreduce(void *state, float *send, float *receive, size_t count)
{
    ccl::allreduce(send, receive, count, ccl::reduction::sum, *static_cast<ccl::communicator *>(state)).wait();
}

static void barrier(void *state) { ccl::barrier(*static_cast<ccl::communicator *>(state)).wait(); }

using address_t = ccl::kvs::address_type;

static void publish(const std::string &path, const address_t &address)
{
    FILE *file = fopen((path + ".new").c_str(), "wb");

    if (file == nullptr || fwrite(address.data(), address.size(), 1, file) != 1 || fclose(file) != 0 ||
        rename((path + ".new").c_str(), path.c_str()) != 0)
        peer_die("oneCCL: cannot write rank 0's address");
}

static address_t look_up(const std::string &path)
{
    address_t address;
    FILE *file;

    while ((file = fopen(path.c_str(), "rb")) == nullptr) {
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, nullptr);
    }
    if (fread(address.data(), address.size(), 1, file) != 1)
        peer_die("oneCCL: cannot read rank 0's address");
    fclose(file);
    return address;
}

int main(int argc, char **argv)
{
    int rank = static_cast<int>(strtol(peer_environment("ISGQ_RANK"), nullptr, 10));
    int nranks = static_cast<int>(strtol(peer_environment("ISGQ_NRANKS"), nullptr, 10));
    ccl::shared_ptr_class<ccl::kvs> store;

    if (argc < 2)
        return 2;
    ccl::init();
    std::string path = std::string(argv[1]) + "/address";
    if (rank == 0) {
        store = ccl::create_main_kvs();
        publish(path, store->get_address());
    } else {
        store = ccl::create_kvs(look_up(path));
    }
    auto comm = ccl::create_communicator(nranks, rank, store);
    peer_t peer{rank, nranks, true, &comm, allreduce, barrier};
    int status = peer_measure(&peer, argc, argv);
    barrier(&comm);
    return status;
}
