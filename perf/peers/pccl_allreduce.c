/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PCCL, measured as peer_measure.h says; PCCL_QUANTIZED=1 has it send 8 bits an element. Its Python package holds the library without a
 * header: what is used of its C interface is declared here, as documented for version 1.0.
 */
#include "perf/peers/peer_measure.h"

#include <arpa/inet.h>
#include <stdint.h>

enum {
    MASTER_PORT = 48148,
    WAIT_MS = 20,
    PCCL_WORLD_SIZE = 1,
    PCCL_UINT8 = 0,
    PCCL_FLOAT = 10,
    PCCL_SUM = 0,
    PCCL_ZERO_POINT_SCALE = 2
};

typedef struct pccl_address {
    int is_v6;
    uint8_t v4[4], v6[16];
    uint16_t port;
} pccl_address_t;

typedef struct pccl_parameters {
    pccl_address_t master;
    uint32_t group, pool;
} pccl_parameters_t;

typedef struct pccl_reduction {
    size_t count;
    int op;
    uint64_t tag;
    int type, distribution;
    int wire_type, quantizer;
} pccl_reduction_t;

typedef struct pccl_traffic {
    uint32_t world;
    uint64_t sent, received;
} pccl_traffic_t;

typedef struct pcclComm_t pcclComm_t;
typedef struct pcclMasterInstanceState_t pcclMasterInstance_t;

int pcclInit(void);
int pcclCreateCommunicator(const pccl_parameters_t *parameters, pcclComm_t **comm);
int pcclConnect(pcclComm_t *comm);
int pcclGetAttribute(const pcclComm_t *comm, int attribute, int *value);
int pcclArePeersPending(const pcclComm_t *comm, bool *pending);
int pcclUpdateTopology(pcclComm_t *comm);
int pcclAllReduce(const void *send, void *receive, const pccl_reduction_t *reduction, const pcclComm_t *comm,
                  pccl_traffic_t *traffic);
int pcclDestroyCommunicator(pcclComm_t *comm);
int pcclCreateMaster(pccl_address_t listen, pcclMasterInstance_t **master);
int pcclRunMaster(pcclMasterInstance_t *master);

static void check(int result, const char *what)
{
    if (result == 0)
        return;
    fprintf(stderr, "PCCL: %s failed with %d\n", what, result);
    exit(1);
}

static bool is_quantized(void) { return getenv("PCCL_QUANTIZED") != NULL; }

static void reduce(void *state, float *send, float *receive, size_t count, bool quantized)
{
    pccl_reduction_t reduction = {.count = count, .op = PCCL_SUM, .type = PCCL_FLOAT, .wire_type = PCCL_FLOAT};
    pccl_traffic_t traffic;

    if (quantized) {
        reduction.wire_type = PCCL_UINT8;
        reduction.quantizer = PCCL_ZERO_POINT_SCALE;
    }
    check(pcclAllReduce(send, receive, &reduction, state, &traffic), "pcclAllReduce");
}

static void allreduce(void *state, float *send, float *receive, size_t count)
{
    reduce(state, send, receive, count, is_quantized());
}

/* It has no barrier. */
static void barrier(void *state)
{
    float send[64] = {0}, receive[64];

    reduce(state, send, receive, 64, false);
}

static pccl_address_t master_address(void)
{
    const char *text = getenv("ISGQ_MASTER_ADDR");
    pccl_address_t address = {.port = MASTER_PORT};

    if (inet_pton(AF_INET, text != NULL ? text : "127.0.0.1", address.v4) != 1)
        peer_die("PCCL: ISGQ_MASTER_ADDR is no IPv4 address");
    return address;
}

static void pause_briefly(void) { nanosleep(&(struct timespec){.tv_nsec = WAIT_MS * 1000000}, NULL); }

/* The master of rank 0 may listen later than others come. */
static void join(pcclComm_t *comm, int nranks)
{
    int found = 0, tries = 0;
    bool pending;

    while (pcclConnect(comm) != 0) {
        if (++tries == 200)
            peer_die("PCCL: no master to connect to");
        pause_briefly();
    }
    for (check(pcclGetAttribute(comm, PCCL_WORLD_SIZE, &found), "pcclGetAttribute"); found < nranks;
         check(pcclGetAttribute(comm, PCCL_WORLD_SIZE, &found), "pcclGetAttribute")) {
        check(pcclArePeersPending(comm, &pending), "pcclArePeersPending");
        if (pending)
            check(pcclUpdateTopology(comm), "pcclUpdateTopology");
        else
            pause_briefly();
    }
}

int main(int argc, char **argv)
{
    peer_t peer = {.exact = !is_quantized(), .allreduce = allreduce, .barrier = barrier};
    pccl_parameters_t parameters = {.master = master_address(), .pool = 1};
    pcclMasterInstance_t *master = NULL;
    pcclComm_t *comm = NULL;

    peer.rank = (int)strtol(peer_environment("ISGQ_RANK"), NULL, 10);
    peer.nranks = (int)strtol(peer_environment("ISGQ_NRANKS"), NULL, 10);
    check(pcclInit(), "pcclInit");
    if (peer.rank == 0) {
        pccl_address_t listen = {.port = MASTER_PORT};
        check(pcclCreateMaster(listen, &master), "pcclCreateMaster");
        check(pcclRunMaster(master), "pcclRunMaster");
    }
    check(pcclCreateCommunicator(&parameters, &comm), "pcclCreateCommunicator");
    join(comm, peer.nranks);
    peer.state = comm;
    int status = peer_measure(&peer, argc, argv);
    barrier(comm);
    fflush(NULL);
    _Exit(status); /* its threads and the master's have nothing to put in order */
}
