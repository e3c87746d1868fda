/* SPDX-License-Identifier: Apache-2.0 */
/* Gloo's ring over TCP, measured as peer_measure.h says. Ranks find each other by files in the folder, which all hosts share. */
#include "perf/peers/peer_measure.h"

#include <chrono>
#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <memory>

using context_t = std::shared_ptr<gloo::rendezvous::Context>;

static void allreduce(void *state, float *send, float *receive, size_t count)
{
    gloo::AllreduceOptions options(*static_cast<context_t *>(state));
    options.setAlgorithm(gloo::AllreduceOptions::Algorithm::RING);
    options.setInput(send, count);
    options.setOutput(receive, count);
    options.setReduceFunction([](void *to, const void *a, const void *b, size_t n) { gloo::sum<float>(to, a, b, n); });
    gloo::allreduce(options);
}

static void barrier(void *state)
{
    gloo::BarrierOptions options(*static_cast<context_t *>(state));
    gloo::barrier(options);
}

int main(int argc, char **argv)
{
    int rank = static_cast<int>(strtol(peer_environment("ISGQ_RANK"), nullptr, 10));
    int nranks = static_cast<int>(strtol(peer_environment("ISGQ_NRANKS"), nullptr, 10));
    context_t context = std::make_shared<gloo::rendezvous::Context>(rank, nranks);
    gloo::transport::tcp::attr address;

    if (argc < 2)
        return 2;
    if (getenv("ISGQ_INTERFACE") != nullptr)
        address.iface = getenv("ISGQ_INTERFACE");
    else
        address.hostname = "127.0.0.1";
    auto device = gloo::transport::tcp::CreateDevice(address);
    gloo::rendezvous::FileStore store(argv[1]);
    context->setTimeout(std::chrono::seconds(600));
    context->connectFullMesh(store, device);
    peer_t peer{rank, nranks, true, &context, allreduce, barrier};
    int status = peer_measure(&peer, argc, argv);
    barrier(&context);
    return status;
}
