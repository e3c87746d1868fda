/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Graphs that can be launched. Each captured stream is a lane: the first is run by the stream of the launch, every other one by a
 * stream that only the graph has, so that lanes that wait for each other's words go on. With CUDASIM_GRAPHS=serial all nodes run one
 * after another in the order in which they were captured, as a GPU may do: what hangs then needs branches that run at the same time,
 * which CUDA does not promise.
 */
#include "cudasim/sim.h"

#include <stdlib.h>
#include <string.h>

namespace cudasim {

/* What one launch has of a node that other lanes wait for. */
typedef std::vector<std::shared_ptr<Record>> Records;

class Exec {
  public:
    explicit Exec(std::shared_ptr<Graph> what);
    ~Exec();
    cudaError_t launch(const std::shared_ptr<Stream> &stream);

  private:
    void push_node(const std::shared_ptr<Stream> &stream, size_t number, const Records &of_nodes);

    const std::shared_ptr<Graph> graph;
    std::vector<bool> awaited; /* by nodes of other lanes */
    std::mutex lock;
    std::vector<std::shared_ptr<Stream>> lanes; /* from the second one */
    std::shared_ptr<Record> last;               /* the end of the launch before */
};

static Handles<Graph> &graphs()
{
    static Handles<Graph> *made = new Handles<Graph>(0x60000000);
    return *made;
}

static Handles<Exec> &execs()
{
    static Handles<Exec> *made = new Handles<Exec>(0x70000000);
    return *made;
}

cudaGraph_t add_graph(std::shared_ptr<Graph> graph) { return reinterpret_cast<cudaGraph_t>(graphs().add(std::move(graph))); }

int graph_count() { return graphs().size() + execs().size(); }

static bool is_serial()
{
    const char *set = getenv("CUDASIM_GRAPHS");
    return set != nullptr && strcmp(set, "serial") == 0;
}

Exec::Exec(std::shared_ptr<Graph> what) : graph(std::move(what)), awaited(graph->nodes.size(), false)
{
    for (const Node &node : graph->nodes)
        for (size_t number : node.after)
            if (graph->nodes[number].lane != node.lane)
                awaited[number] = true;
    for (size_t lane = 1; lane < graph->devices.size(); lane++)
        lanes.push_back(make_stream(graph->devices[lane], false, false));
}

/* Launches go on: their operations hold the graph. */
Exec::~Exec()
{
    for (const std::shared_ptr<Stream> &lane : lanes)
        lane->close();
}

/* A node waits for the nodes of other lanes; those of its own are before it in the stream. */
void Exec::push_node(const std::shared_ptr<Stream> &stream, size_t number, const Records &of_nodes)
{
    const Node &node = graph->nodes[number];
    Records before;
    for (size_t other : node.after)
        if (graph->nodes[other].lane != node.lane)
            before.push_back(of_nodes[other]);
    stream->push([before, done = of_nodes[number], kept = graph, number] {
        for (const std::shared_ptr<Record> &record : before)
            record->wait();
        kept->nodes[number].operation();
        if (done != nullptr)
            done->complete();
    });
}

cudaError_t Exec::launch(const std::shared_ptr<Stream> &stream)
{
    std::lock_guard<std::mutex> guard(lock);
    cudaError_t error = check_not_captured(stream); /* a graph in a graph is not supported */
    if (error != cudaSuccess)
        return error;
    bool serial = is_serial();
    std::shared_ptr<Record> begun = std::make_shared<Record>(), ended = std::make_shared<Record>();
    stream->push([begun, before = last] {
        if (before != nullptr)
            before->wait();
        begun->complete();
    });
    for (const std::shared_ptr<Stream> &lane : lanes)
        lane->push([begun] { begun->wait(); });
    Records of_nodes(graph->nodes.size());
    for (size_t i = 0; i < of_nodes.size(); i++)
        of_nodes[i] = awaited[i] ? std::make_shared<Record>() : nullptr;
    for (size_t i = 0; i < of_nodes.size(); i++) {
        size_t lane = serial ? 0 : graph->nodes[i].lane;
        push_node(lane == 0 ? stream : lanes[lane - 1], i, of_nodes);
    }
    for (const std::shared_ptr<Stream> &lane : lanes) {
        std::shared_ptr<Record> done = std::make_shared<Record>();
        lane->push([done] { done->complete(); });
        stream->push([done] { done->wait(); });
    }
    stream->push([ended] { ended->complete(); });
    last = ended;
    return cudaSuccess;
}

} // namespace cudasim

using namespace cudasim;

static std::shared_ptr<Graph> find_graph(cudaGraph_t graph) { return graphs().find(reinterpret_cast<uintptr_t>(graph)); }

/* Nodes have numbers of their graph, from 1. */
CUDASIM_EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *numNodes)
{
    CUDASIM_ENTER();
    std::shared_ptr<Graph> found = find_graph(graph);
    if (found == nullptr || numNodes == nullptr)
        return report(cudaErrorInvalidValue);
    size_t room = nodes == nullptr ? 0 : *numNodes;
    for (size_t i = 0; i < room; i++)
        nodes[i] = i < found->nodes.size() ? reinterpret_cast<cudaGraphNode_t>(i + 1) : nullptr;
    if (nodes == nullptr || *numNodes > found->nodes.size())
        *numNodes = found->nodes.size();
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *pGraphExec, cudaGraph_t graph, unsigned long long flags)
{
    CUDASIM_ENTER();
    std::shared_ptr<Graph> found = find_graph(graph);
    if (found == nullptr || pGraphExec == nullptr)
        return report(cudaErrorInvalidValue);
    if (flags != 0)
        return report(cudaErrorNotSupported);
    *pGraphExec = reinterpret_cast<cudaGraphExec_t>(execs().add(std::make_shared<Exec>(found)));
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t graphExec, cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Exec> exec = execs().find(reinterpret_cast<uintptr_t>(graphExec));
    std::shared_ptr<Stream> found = find_stream(stream);
    if (exec == nullptr || found == nullptr)
        return report(cudaErrorInvalidValue);
    return report(exec->launch(found));
}

CUDASIM_EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graphExec)
{
    CUDASIM_ENTER();
    return report(execs().remove(reinterpret_cast<uintptr_t>(graphExec)) == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}

CUDASIM_EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    CUDASIM_ENTER();
    return report(graphs().remove(reinterpret_cast<uintptr_t>(graph)) == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}
