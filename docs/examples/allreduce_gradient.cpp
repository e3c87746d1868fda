// SPDX-License-Identifier: Apache-2.0
//
// Average one gradient over all ranks, exactly and with four bits a value: what is sent, and how far off the result is.
#include <isgqcoll.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

// Averages `gradient` into `average` and returns the bytes that this rank sent for it.
static std::uint64_t average_over_ranks(const std::vector<float> &gradient, std::vector<float> &average,
                                        const isgq::quantizer &quantizer, isgq::communicator &comm)
{
    comm.reset_stats();
    comm.allreduce(gradient, average, isgq::reduction::avg, quantizer);
    comm.synchronize(); // the call above only queues: here it is done
    return comm.stats().wire_bytes;
}

static void run()
{
    auto comm = isgq::communicator::init_env(); // mpirun, torchrun and srun say who we are
    const isgq::quantizer none("none"), four_bits("uniform:bits=4");
    const int rank = comm.rank();
    std::vector<float> gradient(1000000), exact(gradient.size()), coded(gradient.size());
    for (std::size_t i = 0; i < gradient.size(); i++)
        gradient[i] = std::sin(static_cast<float>(i) * 0.37f + static_cast<float>(rank));

    const std::uint64_t exact_bytes = average_over_ranks(gradient, exact, none, comm);
    const std::uint64_t coded_bytes = average_over_ranks(gradient, coded, four_bits, comm);

    double error = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < gradient.size(); i++) {
        error += std::pow(double{coded[i]} - double{exact[i]}, 2);
        norm += std::pow(double{exact[i]}, 2);
    }
    if (rank == 0)
        std::printf("%d ranks, %zu values: %ju bytes sent exactly, %ju with four bits a value; relative error %.3f\n",
                    comm.count(), gradient.size(), std::uintmax_t{exact_bytes}, std::uintmax_t{coded_bytes},
                    std::sqrt(error / norm));
    comm.finalize(); // left by an exception, the communicator is aborted instead, and no other rank waits
}

int main()
{
    try {
        run();
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
