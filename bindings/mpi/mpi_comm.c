/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes of MPI communicators: made at the first call, agreed on by all ranks, freed with the communicator or before MPI_Finalize ends. */
#include "bindings/mpi/mpi_comm.h"

#include "bindings/preload/say.h"
#include "bindings/preload/tally.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static iq_policy_t policy;
static iq_mpi_comm_t *states;
static int unused_tag; /* the largest */
static int state_key = MPI_KEYVAL_INVALID, end_key = MPI_KEYVAL_INVALID;

/* A duplicate begins anew: it may be given another name. */
static int copy_nothing(MPI_Comm comm, int key, void *extra, void *value, void *copy, int *copied)
{
    (void)comm, (void)key, (void)extra, (void)value, (void)copy;
    *copied = 0;
    return MPI_SUCCESS;
}

static int forget(MPI_Comm comm, int key, void *value, void *extra)
{
    iq_mpi_comm_t *state = value;
    (void)comm, (void)key, (void)extra;
    iq_mpi_comm_close(state);
    pthread_mutex_lock(&lock);
    *state->before = state->next;
    if (state->next != NULL)
        state->next->before = state->before;
    pthread_mutex_unlock(&lock);
    free(state);
    return MPI_SUCCESS;
}

/* MPI_Finalize deletes the attributes of MPI_COMM_SELF first, while everything still works. */
static int end(MPI_Comm comm, int key, void *value, void *extra)
{
    (void)comm, (void)key, (void)value, (void)extra;
    for (iq_mpi_comm_t *state = states; state != NULL; state = state->next)
        iq_mpi_comm_close(state);
    int rank = 0;
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    iq_tally_report(&policy, rank);
    return MPI_SUCCESS;
}

static void begin(void)
{
    char error[IQ_POLICY_ERROR];
    int rank = -1;
    int *largest = NULL, found = 0;
    PMPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest, &found);
    unused_tag = found ? *largest : 32767;
    PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
    iq_say_as("isgq mpi", rank);
    if (!iq_policy_parse(&policy, secure_getenv("ISGQ_POLICY"), error))
        iq_say(IQ_SAY_WARN, "%s; nothing is quantized", error);
    PMPI_Comm_create_keyval(copy_nothing, forget, &state_key, NULL);
    PMPI_Comm_create_keyval(copy_nothing, end, &end_key, NULL);
    PMPI_Comm_set_attr(MPI_COMM_SELF, end_key, NULL);
}

const iq_policy_t *iq_mpi_policy(void)
{
    pthread_once(&once, begin);
    return &policy;
}

/* Have all ranks the same number? One MIN tells: of the number and of its complement. */
static bool agree(MPI_Comm comm, uint64_t first, uint64_t second, bool *first_differs)
{
    uint64_t mine[4] = {first, ~first, second, ~second}, least[4];
    if (PMPI_Allreduce(mine, least, 4, MPI_UINT64_T, MPI_MIN, comm) != MPI_SUCCESS)
        return false;
    *first_differs = least[0] != ~least[1];
    return least[0] == ~least[1] && least[2] == ~least[3];
}

static void meet(iq_mpi_comm_t *state, MPI_Comm comm)
{
    int inter = 0, length = 0;
    bool policies_differ = false;
    PMPI_Comm_test_inter(comm, &inter);
    if (inter)
        return;
    PMPI_Comm_rank(comm, &state->rank);
    PMPI_Comm_size(comm, &state->nranks);
    PMPI_Comm_get_name(comm, state->name, &length);
    uint32_t named = iq_policy_named(&policy, state->name, state->nranks);
    if (agree(comm, policy.hash + ISGQ_VERSION_CODE, named, &policies_differ))
        state->named = named;
    else if (state->rank == 0)
        iq_say(IQ_SAY_WARN, "communicator \"%s\": %s between its ranks, so nothing is quantized on it", state->name,
               policies_differ ? "ISGQ_POLICY or the library's version differs"
                               : "the name, and with it the rules that fit, differs");
}

iq_mpi_comm_t *iq_mpi_comm_of(MPI_Comm comm)
{
    iq_mpi_comm_t *state = NULL;
    int found = 0;
    (void)iq_mpi_policy();
    PMPI_Comm_get_attr(comm, state_key, &state, &found);
    if (found)
        return state;
    state = calloc(1, sizeof(*state));
    if (state == NULL) { /* the other ranks are about to compare policies with this one */
        iq_say(IQ_SAY_ERROR, "no memory for the state of a communicator");
        abort();
    }
    meet(state, comm);
    pthread_mutex_lock(&lock);
    state->next = states;
    state->before = &states;
    if (states != NULL)
        states->before = &state->next;
    states = state;
    pthread_mutex_unlock(&lock);
    PMPI_Comm_set_attr(comm, state_key, state);
    return state;
}

static int allgather(void *context, const void *send, void *recv, size_t bytes)
{
    return PMPI_Allgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, *(MPI_Comm *)context);
}

/* What can go wrong on this rank alone, before anybody is met. */
static const char *prepare(iq_mpi_comm_t *state)
{
    const char *error;
    const iq_library_t *library = iq_library(&error);
    if (library == NULL)
        return error;
    for (size_t i = 0; i < policy.nrules; i++)
        if (!policy.rules[i].exclude && library->quantizer_create(&state->quantizers[i], policy.rules[i].with) != ISGQ_SUCCESS)
            return library->get_last_error();
    return NULL;
}

static bool all_well(MPI_Comm comm, bool well)
{
    int mine = well, all = 0;
    return PMPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, comm) == MPI_SUCCESS && all != 0;
}

bool iq_mpi_comm_open(iq_mpi_comm_t *state, MPI_Comm comm)
{
    const char *error = prepare(state), *ignored;
    const iq_library_t *library = iq_library(&ignored);
    if (all_well(comm, error == NULL)) {
        isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
        config.device_type = ISGQ_DEVICE_HOST;
        if (library->comm_init_oob(&state->comm, state->nranks, state->rank, allgather, &comm, &config) != ISGQ_SUCCESS)
            error = library->get_last_error();
        if (all_well(comm, error == NULL)) {
            iq_say(state->rank == 0 ? IQ_SAY_INFO : IQ_SAY_DEBUG,
                   "communicator \"%s\", %d ranks: sums are quantized as the policy says", state->name, state->nranks);
            return true;
        }
    }
    if (error != NULL)
        iq_say(IQ_SAY_WARN, "communicator \"%s\": %s; its calls pass through", state->name, error);
    iq_mpi_comm_close(state);
    state->refused = true;
    return false;
}

void iq_mpi_keep_going(unsigned turn)
{
    enum { BUSY_TURNS = 16, PAUSE_NS = 50000 };
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    int ignored;
    /* A probe that finds a message, or that asks MPI_COMM_SELF, may come back without having moved anything (MPICH): so, one for nothing. */
    PMPI_Iprobe(MPI_ANY_SOURCE, unused_tag, MPI_COMM_WORLD, &ignored, MPI_STATUS_IGNORE);
    if (turn < BUSY_TURNS)
        (void)sched_yield();
    else
        (void)nanosleep(&pause, NULL);
}

typedef struct leaving {
    isgq_comm_t comm;
    const iq_library_t *library;
    _Atomic bool gone;
} leaving_t;

static void *leave(void *argument)
{
    leaving_t *leaving = argument;
    (void)leaving->library->comm_finalize(leaving->comm); /* what went wrong was said when it did */
    (void)leaving->library->comm_destroy(leaving->comm);
    leaving->gone = true;
    return NULL;
}

/* Leaving waits for the other ranks, who may still be receiving from this one by MPI. */
static void leave_and_keep_going(const iq_library_t *library, isgq_comm_t comm)
{
    leaving_t leaving = {.comm = comm, .library = library};
    pthread_t thread;
    if (pthread_create(&thread, NULL, leave, &leaving) != 0) {
        (void)leave(&leaving);
        return;
    }
    for (unsigned turn = 0; !leaving.gone; turn++)
        iq_mpi_keep_going(turn);
    pthread_join(thread, NULL);
}

void iq_mpi_comm_close(iq_mpi_comm_t *state)
{
    const char *error;
    const iq_library_t *library = state->comm != NULL || state->quantizers[0] != NULL ? iq_library(&error) : NULL;
    if (state->comm != NULL) {
        isgq_stats_t stats = {.size = sizeof(stats)};
        if (library->comm_get_stats(state->comm, &stats) == ISGQ_SUCCESS)
            iq_tally_bytes(stats.input_bytes, stats.wire_bytes);
        leave_and_keep_going(library, state->comm);
        state->comm = NULL;
    }
    for (size_t i = 0; i < policy.nrules; i++)
        if (state->quantizers[i] != NULL)
            library->quantizer_destroy(state->quantizers[i]);
    memset(state->quantizers, 0, sizeof(state->quantizers));
    free(state->buffer);
    state->buffer = NULL;
    state->buffer_bytes = 0;
    state->refused = true; /* nothing begins after the end */
}
