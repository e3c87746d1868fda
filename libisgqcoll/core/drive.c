/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who advances the work. Whoever holds progress_lock runs the calls in order: a caller who waits, otherwise the communicator's thread, which
 * steps aside as soon as somebody waits.
 *
 * Waiting for a message goes through three gears: spin (only if every rank of the host has a core), yield, then sleep in the transport
 * until a peer rings or a millisecond has passed. A call without progress for its time-out is handed to the control channel,
 * which finds the rank at fault.
 */
#include "base/log.h"
#include "base/util.h"
#include "core/float_env.h"
#include "core/gpu.h"
#include "core/run.h"
#include "core/tensor.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define ACTIONS_PER_TURN 8 /* between looks at the network */
#define SPINS 300 /* turns of about 100 ns, at most */
#define LEAST_SPINS 8
#define SPIN_TRIALS 16 /* waits from one that spins to the end to the next */
#define YIELDS 100
#define SLEEP_NS 1000000u
#define GPU_NAP_NS 5000 /* nobody rings when a GPU is done */
#define NAP_NS 20000        /* of the communicator's thread, before it takes a call away from its caller */
#define LONG_NAP_NS 200000  /* at most, where callers wait themselves */
#define QUIET_NAPS 4        /* without a call: then it sleeps */
#define GRACE_NS 2000000000u
#define VERDICT_NS 5000000000u /* the control channel answers a stall or mismatch report within 3 s */

/* ---- one call's end ---- */

/* What snprintf does with "%s", without its price: small calls take little longer than that. */
static void keep_text(char *kept, size_t bytes, const char *text)
{
    size_t length = iq_min(strlen(text), bytes - 1);
    memcpy(kept, text, length);
    kept[length] = '\0';
}

/* What every call leaves in the statistics and the record of the last one; queue_lock is held. */
static void count_call(isgq_comm_t comm, const iq_call_t *call, uint64_t wire_bytes, uint64_t own_bytes, uint64_t time_ns)
{
    isgqx_call_record_t *record = &comm->record;
    comm->stats.calls++;
    comm->stats.input_bytes += call->input_bytes;
    comm->stats.wire_bytes += wire_bytes;
    comm->stats.fallback_calls += call->fallback;
    record->sequence = call->sequence;
    keep_text(record->algorithm, sizeof(record->algorithm), iq_call_algorithm_name(call));
    memcpy(record->why, call->why, sizeof(record->why));
    record->input_bytes = call->input_bytes;
    record->wire_bytes = wire_bytes;
    record->own_bytes = own_bytes;
    record->time_ns = time_ns;
    comm->own_bytes += own_bytes;
}

/* An earlier one carried it: it is done. */
static void complete_carried(isgq_comm_t comm, const iq_call_t *call)
{
    uint64_t sequence = call->sequence;
    pthread_mutex_lock(&comm->queue_lock);
    count_call(comm, call, call->wire_bytes, call->own_bytes, call->time_ns);
    pthread_mutex_unlock(&comm->queue_lock);
    IQ_DEBUG("call %llu: %s done with an earlier one, its part are %llu bytes", (unsigned long long)sequence, iq_call_kind_name(call->kind),
             (unsigned long long)call->wire_bytes);
    atomic_store(&comm->completed, sequence);
}

static void complete_call(isgq_comm_t comm, iq_run_t *run)
{
    iq_call_t *call = run->call;
    uint64_t now = iq_now_ns();
    iq_gpu_complete(comm, call->sequence); /* before any lock: whoever holds one may wait for room in a stream that waits for this */
    pthread_mutex_lock(&comm->queue_lock);
    if (call->fused > 0)
        iq_run_divide_fused(comm, run, now - run->started_ns);
    count_call(comm, call, run->wire_bytes, run->own_bytes, now - run->started_ns);
    comm->stats.shared_bytes += run->shared_bytes;
    comm->stats.predicted_calls += run->prediction.guards;
    comm->stats.repaired_calls += run->prediction.repairs;
    comm->stats.transfer_ns += run->waited_ns;
    iq_accuracy_count(comm, run);
    comm->stats.quantize_ns += now - run->started_ns - run->waited_ns;
    if (run->prediction.guards)
        snprintf(comm->record.why, sizeof(comm->record.why), "%.72s%s", call->why, iq_run_prediction_text(run));
    pthread_mutex_unlock(&comm->queue_lock);
    IQ_DEBUG("call %llu: %s %s done, %llu bytes sent in %llu us%s; %s", (unsigned long long)call->sequence, iq_call_kind_name(call->kind),
             iq_call_algorithm_name(call), (unsigned long long)run->wire_bytes, (unsigned long long)((now - run->started_ns) / 1000),
             iq_run_prediction_text(run), call->why);
    iq_accuracy_log(run);
    iq_run_keep_estimates(run);
    iq_tensor_release(call->tensor);
    call->tensor = NULL;
    uint64_t sequence = call->sequence;
    run->call = NULL;
    atomic_store(&comm->current, 0);
    atomic_store(&comm->completed, sequence);
}

/* The next queued call, laid out; *idle if there is none. */
static isgq_result_t begin_next(isgq_comm_t comm, iq_run_t *run, bool *idle)
{
    uint64_t next = atomic_load(&comm->completed) + 1;
    *idle = next > atomic_load(&comm->submitted);
    if (*idle)
        return ISGQ_SUCCESS;
    if (comm->calls[next % IQ_QUEUE_CALLS].carried) {
        complete_carried(comm, &comm->calls[next % IQ_QUEUE_CALLS]);
        return ISGQ_SUCCESS;
    }
    atomic_store(&comm->current, next);
    return iq_run_begin(comm, run, &comm->calls[next % IQ_QUEUE_CALLS]);
}

/* ---- waiting for peers ---- */

static void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ISGQ_SUCCESS; with `settle`, ISGQ_IN_PROGRESS while something that was sent has not left this rank yet: then its peer is awaited. */
static isgq_result_t poll_transports(isgq_comm_t comm, bool settle)
{
    bool settled = true;
    for (int i = 0; i < comm->ntransports; i++) {
        int peer = -1;
        isgq_result_t result = comm->transports[i]->ops->progress(comm->transports[i], settle, &peer);
        if (result == ISGQ_IN_PROGRESS) {
            settled = false;
            atomic_store(&comm->awaited, peer);
        } else if (result != ISGQ_SUCCESS) {
            return result;
        }
    }
    return settled ? ISGQ_SUCCESS : ISGQ_IN_PROGRESS;
}

/*
 * How long spinning pays shows by what it led to: where the peer came only after this rank had yielded, the scheduler may have put both on one core,
 * or something else is there. Now and then a wait spins to the end, or nobody would find out that this has passed.
 */
static void learn_spins(iq_run_t *run, unsigned turns)
{
    if (turns < run->spins)
        run->spins = SPINS;
    else
        run->spins = ++run->waits % SPIN_TRIALS == 0 ? SPINS : (unsigned)iq_max(run->spins / 2, LEAST_SPINS);
}

/* No step could be done: the `turn`th time in a row. */
static void back_off(isgq_comm_t comm, const iq_run_t *run, unsigned turn)
{
    const struct timespec nap = {.tv_nsec = GPU_NAP_NS};
    unsigned spins = comm->crowded ? 0 : run->spins;
    if (turn < spins)
        cpu_pause();
    else if (turn < spins + YIELDS)
        sched_yield();
    else if (run->polls_device)
        nanosleep(&nap, NULL);
    else if (comm->ntransports == 0)
        sched_yield();
    else
        comm->transports[comm->ntransports - 1]->ops->sleep(comm->transports[comm->ntransports - 1], SLEEP_NS);
}

/* Where a call is, for people. */
static void describe_step(const iq_run_t *run, char *text, size_t bytes)
{
    const char *call = iq_call_kind_name(run->call->kind);
    if (run->stage == run->nstages)
        snprintf(text, bytes, "%s, last messages on their way", call);
    else if (run->stages[run->stage].work != NULL)
        snprintf(text, bytes, "%s, %s", call, run->stages[run->stage].name);
    else
        snprintf(text, bytes, "%s, %s, %s, chunk %u", call, run->stages[run->stage].name, iq_step_kind_name(run->action.kind),
                 run->action.chunk);
}

/* Has the call in progress waited too long? Then the ranks look for the culprit; if even that stays without answer, this rank ends it. */
static void check_deadline(isgq_comm_t comm, iq_run_t *run)
{
    uint64_t now = iq_now_ns();
    uint64_t limit = (uint64_t)run->call->timeout_ms * 1000000u;
    int awaited = atomic_load(&comm->awaited);
    char text[192];
    if (run->mismatch_reported && !run->stall_reported) {
        run->stall_reported = true; /* the verdict is on its way; do not wait for it longer than for a stall's */
        run->progress_ns = now;
        return;
    }
    if (run->stall_reported && now - run->progress_ns > (run->mismatch_reported ? 0 : limit) + VERDICT_NS) {
        snprintf(text, sizeof(text), "call %llu (%s): timed out waiting for rank %d, and no verdict came on the control channel",
                 (unsigned long long)run->call->sequence, iq_call_kind_name(run->call->kind), awaited);
        iq_control_abort(comm->control, ISGQ_ERR_TIMEOUT, awaited, text);
        return;
    }
    if (run->stall_reported || now - run->progress_ns < limit)
        return;
    run->stall_reported = true;
    describe_step(run, text, sizeof(text));
    iq_control_report_stall(comm->control, run->call->sequence, awaited, text);
}

/* ---- driving ---- */

/*
 * A connection broke. The control channel knows better who died: a rank that merely left after somebody's death breaks its connections too. So it gets
 * two seconds to say so before this rank blames the other end.
 */
static void await_verdict(isgq_comm_t comm)
{
    struct timespec pause = {.tv_nsec = 1000000};
    uint64_t end_ns = iq_now_ns() + GRACE_NS;
    while (atomic_load(&comm->failed) == 0 && iq_now_ns() < end_ns)
        nanosleep(&pause, NULL);
}

/* Tell everybody that this rank cannot go on with the call. */
static void report_failure(isgq_comm_t comm, isgq_result_t result)
{
    char text[IQ_ERROR_TEXT_BYTES];
    bool remote = result == ISGQ_ERR_REMOTE;
    if (remote) { /* the text starts with the rank at fault */
        snprintf(text, sizeof(text), "%s", iq_last_error());
        await_verdict(comm);
    } else {
        snprintf(text, sizeof(text), "rank %d: %.480s", comm->rank, iq_last_error());
    }
    iq_control_abort(comm->control, result, remote ? -1 : comm->rank, text);
    iq_comm_fail(comm, result, text);
}

/* A step could or could not be done: keep the time spent waiting. It survives a change of who drives. */
static void note_wait(iq_run_t *run, bool moved)
{
    if (moved && run->blocked_ns != 0) {
        run->waited_ns += iq_now_ns() - run->blocked_ns;
        run->blocked_ns = 0;
    } else if (!moved && run->blocked_ns == 0) {
        run->blocked_ns = iq_now_ns();
        if (!run->stall_reported)
            run->progress_ns = run->blocked_ns;
    }
}

/* Turn once: begin or advance. *idle: nothing queued. */
static isgq_result_t turn_once(isgq_comm_t comm, iq_run_t *run, bool *idle, bool *moved)
{
    bool done = false;
    *idle = false;
    *moved = true;
    if (run->call == NULL) {
        IQ_TRY(begin_next(comm, run, idle));
        return ISGQ_SUCCESS;
    }
    IQ_TRY(iq_run_advance(comm, run, ACTIONS_PER_TURN, &done, moved));
    isgq_result_t polled = poll_transports(comm, done);
    if (polled != ISGQ_SUCCESS && polled != ISGQ_IN_PROGRESS)
        return polled;
    if (done && polled == ISGQ_SUCCESS)
        *moved = true;
    note_wait(run, *moved);
    if (done && polled == ISGQ_SUCCESS)
        complete_call(comm, run);
    return ISGQ_SUCCESS;
}

/*
 * Advance until call `sequence` is complete, the communicator has failed, it is `until_ns`, or (background) somebody waits or nothing is left.
 * Holds progress_lock.
 */
static void drive(isgq_comm_t comm, uint64_t sequence, uint64_t until_ns, bool background)
{
    iq_run_t *run = comm->run;
    unsigned turns = 0;
    bool idle = false, moved = false;
    iq_float_env_t caller;
    iq_float_env_enter(&caller);
    atomic_store(&comm->driver, pthread_self());
    while (atomic_load(&comm->failed) == 0 && atomic_load(&comm->completed) < sequence && !idle) {
        if (background ? atomic_load(&comm->waiters) > 0 : until_ns != IQ_FOREVER && iq_now_ns() >= until_ns)
            break;
        isgq_result_t result = turn_once(comm, run, &idle, &moved);
        if (result != ISGQ_SUCCESS) {
            report_failure(comm, result);
            break;
        }
        if (moved && turns > 0)
            learn_spins(run, turns);
        turns = moved ? 0 : turns + 1;
        if (moved)
            continue;
        if (turns % 64 == 0)
            check_deadline(comm, run);
        back_off(comm, run, turns);
    }
    if (atomic_load(&comm->failed) != 0)
        iq_gpu_surrender(comm);
    atomic_store(&comm->driver, (pthread_t)0);
    iq_float_env_leave(&caller);
}

bool iq_progress_is_mine(isgq_comm_t comm) { return pthread_equal(atomic_load(&comm->driver), pthread_self()) != 0; }

/* Somebody waits: whoever drives meanwhile should step aside. Who begins to drive later sees `waiters` before it sleeps. */
static void interrupt_driver(isgq_comm_t comm)
{
    if (atomic_load(&comm->driver) == (pthread_t)0)
        return;
    for (int i = 0; i < comm->ntransports; i++)
        comm->transports[i]->ops->wake(comm->transports[i]);
}

/* There is work that nobody waits for. Under the lock, or the thread might be between looking and sleeping. */
static void wake_thread(isgq_comm_t comm)
{
    pthread_mutex_lock(&comm->queue_lock);
    comm->thread_state = IQ_THREAD_AWAKE;
    pthread_mutex_unlock(&comm->queue_lock);
    pthread_cond_signal(&comm->queue_changed);
}

/* The lock, or not by then: another caller may wait with it for longer. */
static bool lock_until(pthread_mutex_t *lock, uint64_t until_ns)
{
    struct timespec now, until;
    if (until_ns == IQ_FOREVER)
        return pthread_mutex_lock(lock) == 0;
    uint64_t monotonic = iq_now_ns();
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t end = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec + (until_ns > monotonic ? until_ns - monotonic : 0);
    until = (struct timespec){.tv_sec = (time_t)(end / 1000000000u), .tv_nsec = (long)(end % 1000000000u)};
    return pthread_mutex_timedlock(lock, &until) == 0;
}

static isgq_result_t wait_for(isgq_comm_t comm, uint64_t sequence, uint64_t until_ns)
{
    if (atomic_load(&comm->completed) < sequence) {
        atomic_fetch_add(&comm->waiters, 1);
        interrupt_driver(comm);
        if (lock_until(&comm->progress_lock, until_ns)) {
            drive(comm, sequence, until_ns, false);
            pthread_mutex_unlock(&comm->progress_lock);
        }
        atomic_fetch_sub(&comm->waiters, 1);
        if (atomic_load(&comm->completed) < atomic_load(&comm->submitted))
            wake_thread(comm);
    }
    return atomic_load(&comm->completed) >= sequence ? ISGQ_SUCCESS : iq_comm_check(comm);
}

isgq_result_t iq_progress_wait(isgq_comm_t comm, uint64_t sequence, uint64_t until_ns)
{
    atomic_fetch_add(&comm->users, 1);
    isgq_result_t result = wait_for(comm, sequence, until_ns);
    atomic_fetch_sub(&comm->users, 1); /* the last touch: another thread may be waiting to destroy */
    return result;
}

isgq_result_t iq_progress_synchronize(isgq_comm_t comm)
{
    atomic_fetch_add(&comm->users, 1);
    isgq_result_t result = wait_for(comm, atomic_load(&comm->submitted), IQ_FOREVER);
    if (result == ISGQ_SUCCESS)
        result = iq_comm_check(comm); /* a failure after the last call counts too */
    atomic_fetch_sub(&comm->users, 1);
    return result;
}

/* ---- the communicator's thread ---- */

static bool has_background_work(isgq_comm_t comm)
{
    return atomic_load(&comm->failed) == 0 && atomic_load(&comm->waiters) == 0 && atomic_load(&comm->completed) < comm->submitted;
}

/* Until somebody signals, or for so long. queue_lock is held. */
static void nap(isgq_comm_t comm, uint64_t ns)
{
    uint64_t end = iq_now_ns() + ns;
    struct timespec until = {.tv_sec = (time_t)(end / 1000000000u), .tv_nsec = (long)(end % 1000000000u)};
    comm->thread_state = ns > NAP_NS ? IQ_THREAD_NAPPING_LONG : IQ_THREAD_NAPPING;
    pthread_cond_timedwait(&comm->queue_changed, &comm->queue_lock, &until);
    comm->thread_state = IQ_THREAD_AWAKE;
}

static void sleep_until_woken(isgq_comm_t comm)
{
    comm->thread_state = IQ_THREAD_ASLEEP;
    while (comm->thread_state == IQ_THREAD_ASLEEP && !comm->stop)
        pthread_cond_wait(&comm->queue_changed, &comm->queue_lock);
    comm->thread_state = IQ_THREAD_AWAKE;
}

/*
 * Most callers wait at once, and then do the work themselves. To be woken for each of their calls would cost them more than the call, so
 * this thread naps as long as calls keep coming, the longer the more of them it had nothing to do with, and takes over a call that was there
 * before the nap and that nobody waits for after it. queue_lock is held when this returns: there is such a call, or it is time to stop.
 */
static void await_work(isgq_comm_t comm)
{
    uint64_t seen = 0, ns = NAP_NS;
    unsigned quiet = 0;
    while (!comm->stop) {
        bool leftover = has_background_work(comm);
        uint64_t submitted = atomic_load(&comm->submitted);
        if (leftover && atomic_load(&comm->completed) < seen)
            return;
        if (leftover)
            ns = NAP_NS;
        else if (submitted != seen)
            ns = iq_min(2 * ns, LONG_NAP_NS);
        quiet = leftover || submitted != seen ? 0 : quiet + 1;
        seen = submitted;
        if (quiet < QUIET_NAPS)
            nap(comm, ns);
        else
            sleep_until_woken(comm);
        ns = quiet < QUIET_NAPS ? ns : NAP_NS;
    }
}

static void *progress_main(void *argument)
{
    isgq_comm_t comm = argument;
    bool stop = false;
    iq_log_identity(comm->rank, comm->nranks);
    iq_gpu_use(comm);
    pthread_setname_np(pthread_self(), "isgq-progress");
    while (!stop) {
        pthread_mutex_lock(&comm->queue_lock);
        await_work(comm);
        stop = comm->stop;
        pthread_mutex_unlock(&comm->queue_lock);
        if (stop)
            break;
        pthread_mutex_lock(&comm->progress_lock);
        drive(comm, UINT64_MAX, IQ_FOREVER, true);
        pthread_mutex_unlock(&comm->progress_lock);
    }
    return NULL;
}

isgq_result_t iq_progress_start(isgq_comm_t comm)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the application's signals are not ours */
    int error = pthread_create(&comm->thread, NULL, progress_main, comm);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "rank %d: cannot start the progress thread: %s", comm->rank, strerror(error));
    comm->thread_running = true;
    return ISGQ_SUCCESS;
}

void iq_progress_stop(isgq_comm_t comm)
{
    if (!comm->thread_running)
        return;
    pthread_mutex_lock(&comm->queue_lock);
    comm->stop = true;
    pthread_cond_broadcast(&comm->queue_changed);
    pthread_mutex_unlock(&comm->queue_lock);
    pthread_join(comm->thread, NULL);
    comm->thread_running = false;
}
