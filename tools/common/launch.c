/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launcher behind `-n RANKS`. All waiting is one sigtimedwait on blocked signals, so there are no handlers and no races.
 *
 * ISGQ_JOB is "launch-<parent's pid>-<nanoseconds>": unique to this start, and how a rank recognises that it is one.
 */
#include "tools/common/launch.h"

#include "tools/common/options.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GRACE_MS = 1000, KILL_MS = 3000 };

typedef struct launch {
    int nranks, alive;
    pid_t *pids;       /* 0 once it has ended */
    int status;        /* worst so far */
    int forwarded;     /* last signal that was passed on */
    long failed_at_ms; /* 0: nobody failed */
    int stage;         /* after a failure: 0 waiting, 1 SIGTERM sent, 2 SIGKILL sent */
} launch_t;

static long now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000 + 1;
}

bool iq_launch_is_rank(void)
{
    char prefix[48];
    const char *job = getenv("ISGQ_JOB");

    snprintf(prefix, sizeof(prefix), "launch-%ld-", (long)getppid());
    return job != NULL && getenv("ISGQ_RANK") != NULL && strncmp(job, prefix, strlen(prefix)) == 0;
}

static void signal_set(sigset_t *set)
{
    static const int signals[] = {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGQUIT};

    sigemptyset(set);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaddset(set, signals[i]);
}

static void set_number(const char *name, long number)
{
    char text[24];

    snprintf(text, sizeof(text), "%ld", number);
    setenv(name, text, 1);
}

/* The child's side of fork: never returns. */
static void become_rank(int rank, pid_t parent, const char *program, char **argv, const sigset_t *old_mask)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(IQ_EXIT_FAILED); /* the parent died before the line above */
    sigprocmask(SIG_SETMASK, old_mask, NULL);
    set_number("ISGQ_RANK", rank);
    execv(program, argv);
    iq_complain("cannot start rank %d: %s", rank, strerror(errno));
    _exit(IQ_EXIT_FAILED);
}

static void kill_all(const launch_t *launch, int signal_number)
{
    for (int rank = 0; rank < launch->nranks; rank++)
        if (launch->pids[rank] > 0)
            kill(launch->pids[rank], signal_number);
}

static void note_end(launch_t *launch, int rank, int wait_status)
{
    bool first = launch->failed_at_ms == 0;
    int status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : IQ_EXIT_FAILED;

    launch->pids[rank] = 0;
    launch->alive--;
    if (status == IQ_EXIT_OK)
        return;
    if (WIFSIGNALED(wait_status) && launch->stage == 0 && launch->forwarded == 0)
        iq_complain("rank %d was ended by signal %d (%s)", rank, WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
    if (first)
        launch->failed_at_ms = now_ms();
    if (launch->status != IQ_EXIT_FAILED)
        launch->status = status == IQ_EXIT_USAGE ? IQ_EXIT_USAGE : IQ_EXIT_FAILED;
}

static void reap(launch_t *launch)
{
    for (int rank = 0; rank < launch->nranks; rank++) {
        int wait_status;
        if (launch->pids[rank] > 0 && waitpid(launch->pids[rank], &wait_status, WNOHANG) == launch->pids[rank])
            note_end(launch, rank, wait_status);
    }
}

/* After a failure: a second for the others' own messages, then SIGTERM, then SIGKILL. */
static void hurry(launch_t *launch)
{
    if (launch->failed_at_ms == 0)
        return;
    long waited = now_ms() - launch->failed_at_ms;
    if (launch->stage == 0 && waited >= GRACE_MS) {
        launch->stage = 1;
        kill_all(launch, SIGTERM);
    } else if (launch->stage == 1 && waited >= GRACE_MS + KILL_MS) {
        launch->stage = 2;
        kill_all(launch, SIGKILL);
    }
}

static void wait_for_all(launch_t *launch, const sigset_t *set)
{
    const struct timespec tick = {0, 100 * 1000000L};

    while (launch->alive > 0) {
        int signal_number = sigtimedwait(set, NULL, &tick);
        if (signal_number > 0 && signal_number != SIGCHLD) {
            launch->forwarded = signal_number;
            kill_all(launch, signal_number);
        }
        reap(launch);
        hurry(launch);
    }
}

static void start_all(launch_t *launch, char **argv, const sigset_t *old_mask)
{
    static char program[PATH_MAX];
    pid_t parent = getpid();
    ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);

    if (length <= 0)
        iq_die(IQ_EXIT_FAILED, "cannot find this program's own file: %s", strerror(errno));
    program[length] = '\0';
    for (int rank = 0; rank < launch->nranks; rank++) {
        pid_t pid = fork();
        if (pid == 0)
            become_rank(rank, parent, program, argv, old_mask);
        if (pid < 0) {
            iq_complain("cannot start rank %d: %s", rank, strerror(errno));
            launch->status = IQ_EXIT_FAILED;
            kill_all(launch, SIGKILL);
            return;
        }
        launch->pids[rank] = pid;
        launch->alive++;
    }
}

int iq_launch(int nranks, char **argv)
{
    launch_t launch = {.nranks = nranks, .pids = calloc((size_t)nranks, sizeof(pid_t))};
    struct timespec now;
    sigset_t set, old_mask;
    char job[64];

    if (launch.pids == NULL)
        iq_die(IQ_EXIT_FAILED, "out of memory");
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(job, sizeof(job), "launch-%ld-%ld%09ld", (long)getpid(), (long)now.tv_sec, now.tv_nsec);
    setenv("ISGQ_JOB", job, 1);
    set_number("ISGQ_NRANKS", nranks);
    setenv("OPENBLAS_NUM_THREADS", "1", 0); /* ranks share the cores already */
    fflush(NULL);
    signal_set(&set);
    sigprocmask(SIG_BLOCK, &set, &old_mask);
    start_all(&launch, argv, &old_mask);
    wait_for_all(&launch, &set);
    sigprocmask(SIG_SETMASK, &old_mask, NULL);
    free(launch.pids);
    if (launch.forwarded != 0) { /* end as the signal would have ended us */
        signal(launch.forwarded, SIG_DFL);
        raise(launch.forwarded);
    }
    return launch.status;
}
