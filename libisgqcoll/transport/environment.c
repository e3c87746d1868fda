/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who the launcher says we are, and where such ranks meet. iq_launch_parse only looks variables up; the rest turns its answer
 * into a rendezvous: a unix socket named by user, job and count where all ranks are local, TCP with a secret otherwise, or a file
 * store.
 */
#include "base/config.h"
#include "base/util.h"
#include "transport/auth.h"
#include "transport/control_internal.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_PORT 29533
#define PORTS_ABOVE_MASTER 16 /* MASTER_PORT itself belongs to torch: its agent or its rank 0 listens there */
#define SECRET_ROOM 65536

/* The variables of one launcher; `local` counts ranks of this host, `hosts` counts hosts. */
typedef struct launcher {
    const char *name, *rank, *nranks, *local, *hosts;
} launcher_t;

static const launcher_t launchers[] = {
    {"isgqcoll", "ISGQ_RANK", "ISGQ_NRANKS", NULL, NULL},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", NULL},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", NULL},
    {"MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_NODES"},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", NULL, "SLURM_STEP_NUM_NODES"},
};

typedef struct source {
    iq_lookup_fn lookup;
    void *context;
} source_t;

/* NULL for unset and for empty. */
static const char *look(const source_t *source, const char *name)
{
    const char *text = name == NULL ? NULL : source->lookup(source->context, name);
    return text != NULL && text[0] != '\0' ? text : NULL;
}

static isgq_result_t parse_number(const char *name, const char *text, long least, long most, int *value)
{
    char *end;
    errno = 0;
    long number = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || number < least || number > most)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s is \"%.64s\", must be a number in %ld..%ld", name, text, least, most);
    *value = (int)number;
    return ISGQ_SUCCESS;
}

static isgq_result_t find_launcher(const source_t *source, iq_launch_t *launch, const launcher_t **found)
{
    const char *our_rank = look(source, "ISGQ_RANK"), *our_nranks = look(source, "ISGQ_NRANKS");

    if ((our_rank == NULL) != (our_nranks == NULL))
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s is set but %s is not", our_rank != NULL ? "ISGQ_RANK" : "ISGQ_NRANKS",
                       our_rank != NULL ? "ISGQ_NRANKS" : "ISGQ_RANK");
    for (size_t i = 0; i < IQ_ARRAY_SIZE(launchers); i++) {
        const launcher_t *launcher = &launchers[i];
        const char *rank = look(source, launcher->rank), *nranks = look(source, launcher->nranks);
        if (rank == NULL || nranks == NULL)
            continue;
        IQ_TRY(parse_number(launcher->nranks, nranks, 1, 1 << 20, &launch->nranks));
        IQ_TRY(parse_number(launcher->rank, rank, 0, launch->nranks - 1, &launch->rank));
        launch->launcher = launcher->name;
        *found = launcher;
        return ISGQ_SUCCESS;
    }
    return IQ_FAIL(ISGQ_ERR_INVALID_USAGE,
                   "no launcher is recognised: start with torchrun, mpirun or srun, or set ISGQ_RANK and ISGQ_NRANKS");
}

typedef enum locality { LOCALITY_UNKNOWN, LOCALITY_ONE_HOST, LOCALITY_SEVERAL } locality_t;

static isgq_result_t find_locality(const source_t *source, const launcher_t *launcher, int nranks, locality_t *locality)
{
    const char *local = look(source, launcher->local), *hosts = look(source, launcher->hosts);
    int count = 0;

    *locality = LOCALITY_UNKNOWN;
    if (local != NULL) {
        IQ_TRY(parse_number(launcher->local, local, 1, 1 << 20, &count));
        *locality = count >= nranks ? LOCALITY_ONE_HOST : LOCALITY_SEVERAL;
    } else if (hosts != NULL) {
        IQ_TRY(parse_number(launcher->hosts, hosts, 1, 1 << 20, &count));
        *locality = count == 1 ? LOCALITY_ONE_HOST : LOCALITY_SEVERAL;
    }
    return ISGQ_SUCCESS;
}

/* Two names of the job: one for all hosts, one that also tells restarts and, as a last resort, parents apart on this host. */
static void find_job(const source_t *source, int parent, iq_launch_t *launch, char local_job[256])
{
    const char *ours = look(source, "ISGQ_JOB"), *torch = look(source, "TORCHELASTIC_RUN_ID"),
               *pmix = look(source, "PMIX_NAMESPACE");
    const char *slurm = look(source, "SLURM_JOB_ID"), *step = look(source, "SLURM_STEP_ID");
    const char *restarts = look(source, "TORCHELASTIC_RESTART_COUNT"), *port = look(source, "MASTER_PORT");

    launch->job[0] = '\0';
    if (ours != NULL)
        snprintf(launch->job, sizeof(launch->job), "isgq:%s", ours);
    else if (torch != NULL)
        snprintf(launch->job, sizeof(launch->job), "torch:%s", torch);
    else if (pmix != NULL)
        snprintf(launch->job, sizeof(launch->job), "pmix:%s", pmix);
    else if (slurm != NULL && step != NULL)
        snprintf(launch->job, sizeof(launch->job), "slurm:%s.%s", slurm, step);

    if (launch->job[0] == '\0')
        snprintf(local_job, 256, "parent:%d", parent);
    else if (ours == NULL && torch != NULL) /* a run id may be just "none"; the port differs between jobs of one host */
        snprintf(local_job, 256, "%s:%s:%s", launch->job, restarts != NULL ? restarts : "", port != NULL ? port : "");
    else
        snprintf(local_job, 256, "%s", launch->job);
}

/* "node[03-07,9],other" -> "node03" */
static void first_of_nodelist(const char *list, char *name, size_t room)
{
    size_t head = strcspn(list, "[,");
    const char *digits = list[head] == '[' ? list + head + 1 : "";
    snprintf(name, room, "%.*s%.*s", (int)iq_min(head, room), list, (int)iq_min(strcspn(digits, "-,]"), room), digits);
}

static isgq_result_t find_port(const source_t *source, iq_launch_t *launch)
{
    const char *ours = look(source, "ISGQ_MASTER_PORT"), *master = look(source, "MASTER_PORT");
    int port = 0;

    if (ours != NULL)
        IQ_TRY(parse_number("ISGQ_MASTER_PORT", ours, 0, 65535, &port));
    if (port == 0 && master != NULL) {
        IQ_TRY(parse_number("MASTER_PORT", master, 1, 65535 - PORTS_ABOVE_MASTER, &port));
        launch->port = (uint16_t)(port + 1);
        launch->port_count = PORTS_ABOVE_MASTER;
        return ISGQ_SUCCESS;
    }
    launch->port = (uint16_t)(port != 0 ? port : DEFAULT_PORT);
    launch->port_count = 1;
    return ISGQ_SUCCESS;
}

static isgq_result_t find_address(const source_t *source, const launcher_t *launcher, const char *local_job, iq_launch_t *launch)
{
    const char *ours = look(source, "ISGQ_MASTER_ADDR"), *master = launcher == &launchers[0] ? NULL : look(source, "MASTER_ADDR");
    const char *nodes = look(source, "SLURM_STEP_NODELIST"), *slurm = look(source, "SLURM_LAUNCH_NODE_IPADDR");
    locality_t locality;

    IQ_TRY(find_locality(source, launcher, launch->nranks, &locality));
    if (locality == LOCALITY_UNKNOWN)
        locality = master == NULL || iq_address_is_loopback(master) ? LOCALITY_ONE_HOST : LOCALITY_SEVERAL;
    if (ours == NULL && locality == LOCALITY_ONE_HOST) {
        launch->place = IQ_PLACE_UNIX;
        snprintf(launch->address, sizeof(launch->address), "isgq.%u.%016llx", (unsigned)geteuid(),
                 (unsigned long long)iq_hash(IQ_HASH_START, local_job, strlen(local_job)));
        return ISGQ_SUCCESS;
    }
    launch->place = IQ_PLACE_TCP;
    if (ours != NULL || master != NULL)
        snprintf(launch->address, sizeof(launch->address), "%s", ours != NULL ? ours : master);
    else if (nodes != NULL)
        first_of_nodelist(nodes, launch->address, sizeof(launch->address));
    else if (slurm != NULL)
        snprintf(launch->address, sizeof(launch->address), "%s", slurm);
    else
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE,
                       "%s runs %d ranks on several hosts but does not say where rank 0 is: set ISGQ_MASTER_ADDR to its host",
                       launch->launcher, launch->nranks);
    return find_port(source, launch);
}

/* ISGQ_RENDEZVOUS: file:PATH, unix:NAME or tcp:ADDRESS:PORT */
static isgq_result_t parse_rendezvous(const char *text, iq_launch_t *launch)
{
    const char *rest = strchr(text, ':') != NULL ? strchr(text, ':') + 1 : "";
    const char *colon = strrchr(rest, ':');
    int port = 0;

    if (strncmp(text, "file:", 5) == 0 && rest[0] != '\0') {
        launch->place = IQ_PLACE_FILE;
        launch->path = rest;
    } else if (strncmp(text, "unix:", 5) == 0 && rest[0] != '\0') {
        launch->place = IQ_PLACE_UNIX;
        snprintf(launch->address, sizeof(launch->address), "%s", rest);
    } else if (strncmp(text, "tcp:", 4) == 0 && colon != NULL && colon != rest) {
        bool brackets = rest[0] == '[' && colon[-1] == ']';
        launch->place = IQ_PLACE_TCP;
        snprintf(launch->address, sizeof(launch->address), "%.*s", (int)(colon - rest) - 2 * brackets, rest + brackets);
        IQ_TRY(parse_number("the port in ISGQ_RENDEZVOUS", colon + 1, 1, 65535, &port));
        launch->port = (uint16_t)port;
        launch->port_count = 1;
    } else
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "ISGQ_RENDEZVOUS is \"%.64s\", must be file:PATH, tcp:ADDRESS:PORT or unix:NAME",
                       text);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_launch_parse(iq_lookup_fn lookup, void *context, int parent, iq_launch_t *launch)
{
    source_t source = {.lookup = lookup, .context = context};
    const char *rendezvous = look(&source, "ISGQ_RENDEZVOUS");
    const launcher_t *launcher = NULL;
    char local_job[256];

    memset(launch, 0, sizeof(*launch));
    IQ_TRY(find_launcher(&source, launch, &launcher));
    find_job(&source, parent, launch, local_job);
    if (rendezvous != NULL)
        return parse_rendezvous(rendezvous, launch);
    return find_address(&source, launcher, local_job, launch);
}

/* Our own variables may have been set through iq_config_set. */
static const char *look_up(void *context, const char *name)
{
    isgq_config_var_t var = {.size = sizeof(var)};

    (void)context;
    if (strncmp(name, "ISGQ_", 5) != 0)
        return getenv(name);
    for (size_t i = 0; iq_config_describe(i, &var) == ISGQ_SUCCESS; i++)
        if (strcmp(var.name, name) == 0)
            return var.value;
    return NULL;
}

/* The secret of this job and communicator. Without one a local job has the uid check, and others need the user's consent. */
static isgq_result_t find_secret(const iq_launch_t *launch, unsigned count, iq_rendezvous_t *rendezvous)
{
    const iq_config_t *config = iq_config();
    bool is_open = rendezvous->kind == IQ_ADDRESS_TCP && !iq_address_is_loopback(rendezvous->text);
    char *phrase = NULL, purpose[192];
    size_t bytes = strlen(config->secret);
    isgq_result_t result = ISGQ_SUCCESS;

    rendezvous->has_secret = config->secret_file[0] != '\0' || bytes > 0;
    if (!rendezvous->has_secret && rendezvous->kind == IQ_ADDRESS_UNIX)
        return ISGQ_SUCCESS;
    if (!rendezvous->has_secret && is_open && !config->insecure)
        return IQ_FAIL(
            ISGQ_ERR_INVALID_USAGE,
            "a job of several hosts needs a secret: set ISGQ_SECRET_FILE or ISGQ_SECRET, or ISGQ_INSECURE=1 to do without");
    if (config->secret_file[0] != '\0') {
        phrase = malloc(SECRET_ROOM);
        if (phrase == NULL)
            return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "no memory for the secret");
        result = iq_secret_read(config->secret_file, phrase, SECRET_ROOM, &bytes);
    }
    snprintf(purpose, sizeof(purpose), "isgqcoll rendezvous %u of %s", count, launch->job);
    if (result == ISGQ_SUCCESS)
        result = iq_auth_derive(rendezvous->secret, phrase != NULL ? phrase : config->secret, bytes, purpose);
    if (phrase != NULL)
        iq_auth_wipe(phrase, SECRET_ROOM);
    free(phrase);
    return result;
}

static isgq_result_t meet_by_file(const iq_launch_t *launch, unsigned count, uint64_t deadline_ns, iq_rendezvous_t *rendezvous)
{
    isgq_unique_id_t id;

    if (launch->rank != 0) {
        IQ_TRY(iq_rendezvous_file_await(launch->path, launch->job, count, deadline_ns, &id));
        return iq_rendezvous_from_id(&id, launch->rank, rendezvous);
    }
    IQ_TRY(iq_rendezvous_new_id(&id));
    isgq_result_t published = iq_rendezvous_file_publish(launch->path, launch->job, count, &id);
    isgq_result_t taken = iq_rendezvous_from_id(&id, 0, rendezvous);
    if (published != ISGQ_SUCCESS) {
        if (taken == ISGQ_SUCCESS)
            close(rendezvous->listen_fd);
        return published;
    }
    IQ_TRY(taken);
    rendezvous->file = strdup(launch->path); /* NULL only leaves the file behind */
    return ISGQ_SUCCESS;
}

/* Rank 0 takes the first port that is free; the others try them all. */
static isgq_result_t listen_on_first_port(const iq_launch_t *launch, iq_rendezvous_t *rendezvous)
{
    isgq_result_t result = ISGQ_ERR_INTERNAL;
    for (unsigned i = 0; i < launch->port_count && result != ISGQ_SUCCESS; i++) {
        rendezvous->port = (uint16_t)(launch->port + i);
        result = iq_socket_listen(rendezvous, iq_config()->interface, &rendezvous->listen_fd);
    }
    return result;
}

static isgq_result_t meet_by_address(const iq_launch_t *launch, unsigned count, iq_rendezvous_t *rendezvous)
{
    iq_rendezvous_t place = {.kind = launch->place == IQ_PLACE_TCP ? IQ_ADDRESS_TCP : IQ_ADDRESS_UNIX,
                             .port = launch->port,
                             .port_count = launch->port_count,
                             .listen_fd = -1};
    int length = place.kind == IQ_ADDRESS_TCP ? snprintf(place.text, sizeof(place.text), "%s", launch->address)
                                              : snprintf(place.text, sizeof(place.text), "%s.%u", launch->address, count);

    if (length >= (int)sizeof(place.text))
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "the address \"%s\" is too long: at most %d characters", launch->address,
                       IQ_ADDRESS_TEXT_BYTES - 1);
    if (launch->nranks > 1) {
        IQ_TRY(iq_auth_permits(&place));
        IQ_TRY(find_secret(launch, count, &place));
    }
    if (launch->rank == 0 && launch->nranks > 1 && place.kind == IQ_ADDRESS_TCP)
        IQ_TRY(listen_on_first_port(launch, &place));
    *rendezvous = place;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_rendezvous_from_environment(uint64_t deadline_ns, int *rank, int *nranks, iq_rendezvous_t *rendezvous)
{
    static atomic_uint inits;
    unsigned count = atomic_fetch_add(&inits, 1);
    iq_launch_t launch;

    IQ_TRY(iq_launch_parse(look_up, NULL, (int)getppid(), &launch));
    if (launch.place == IQ_PLACE_FILE && launch.nranks > 1)
        IQ_TRY(meet_by_file(&launch, count, deadline_ns, rendezvous));
    else
        IQ_TRY(meet_by_address(&launch, count, rendezvous));
    *rank = launch.rank;
    *nranks = launch.nranks;
    return ISGQ_SUCCESS;
}
