/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One training run with one way to sum gradients.
 *
 * A step: this rank's rows forward and backward; all layers' calls queued; on hosts one wait, on a GPU none, because calls and
 * everything else take turns on one stream; the same update on every rank. What is measured about the gradients goes over a
 * communicator of its own, on host memory, and its time and bytes count nowhere.
 */
#include "perf/train.h"
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/common/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MEASURE_EVERY = 50 };

typedef struct run {
    const iq_train_setup_t *setup;
    const iq_train_mode_t *mode;
    size_t step, steps, steps_per_epoch;
    uint32_t *order;          /* of the epoch */
    uint32_t *device_order;   /* the same where the network is */
    float *exact, *delivered; /* [parameters] on the host, on measured steps: own, then exact gradient; what the calls made */
    double measuring;         /* seconds that count nowhere */
    double paused, started;
    double nmse_sum;
    size_t nmse_count;
    isgq_tensor_t tensors[IQ_TRAIN_MAX_LAYERS]; /* dense gradients: what error feedback keeps of each */
} run_t;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

void *iq_train_memory(size_t bytes)
{
    void *memory = malloc(bytes);

    if (memory == NULL)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu bytes", bytes);
    return memory;
}

/* Exact reduction over ranks of numbers that have nothing to do with gradients' bytes; in place. */
static void combine(const iq_train_setup_t *setup, isgq_data_type_t type, isgq_red_op_t op, void *values, size_t count)
{
    iq_check(isgq_allreduce(values, values, count, type, op, setup->none, setup->measure, NULL, NULL), setup->rank, "measuring");
    iq_check(isgq_comm_synchronize(setup->measure), setup->rank, "measuring");
}

static void queue_layer(const run_t *run, size_t l)
{
    const iq_train_layer_t *layer = &run->setup->net->layers[l];
    const isgq_call_options_t options = {.size = sizeof(options), .tensor = run->tensors[l]};
    const iq_train_setup_t *setup = run->setup;
    isgq_stream_t stream = setup->ops->stream();
    size_t weights = layer->m * layer->n;
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = layer->x,
                              .delta = layer->delta,
                              .batch = setup->rows,
                              .m = layer->m,
                              .n = layer->n,
                              .bias = layer->grad + weights};

    if (run->mode->kind == IQ_TRAIN_FACTORED)
        iq_check(isgq_allreduce_factored(&factors, setup->max_rows, layer->grad, ISGQ_FLOAT32, ISGQ_AVG, run->mode->quantizer,
                                         setup->comm, stream, NULL),
                 setup->rank, "factored allreduce of a gradient");
    else
        iq_check(isgq_allreduce(layer->grad, layer->grad, weights + layer->n, ISGQ_FLOAT32, ISGQ_AVG, run->mode->quantizer,
                                setup->comm, stream, &options),
                 setup->rank, "allreduce of a gradient");
}

/* Sum the gradients of all layers, the last one first as backpropagation finishes them. */
static void sum_gradients(run_t *run)
{
    const iq_train_setup_t *setup = run->setup;
    iq_train_net_t *net = setup->net;

    setup->ops->clock_begin();
    for (size_t l = net->nlayers; l-- > 0;)
        queue_layer(run, l);
    if (setup->ops->stream() == NULL)
        iq_check(isgq_comm_synchronize(setup->comm), setup->rank, "summing gradients");
    setup->ops->clock_end();
}

/* ---- what counts nowhere ---- */

static void pause_clock(run_t *run)
{
    run->setup->ops->synchronize();
    run->paused = now();
}

static void go_on(run_t *run) { run->measuring += now() - run->paused; }

/* Keep this rank's own gradient, before the calls replace it. */
static void keep_own(run_t *run)
{
    iq_train_net_t *net = run->setup->net;

    pause_clock(run);
    if (run->mode->kind == IQ_TRAIN_FACTORED) /* nobody else needs it */
        iq_train_net_gradients(net, run->setup->rows);
    net->ops->download(run->exact, net->grad, net->parameters * sizeof(float));
    go_on(run);
}

/* NMSE of the delivered gradients against the exact mean; `exact` holds this rank's own. */
static void measure_error(run_t *run)
{
    const iq_train_net_t *net = run->setup->net;
    double error = 0.0, norm = 0.0;

    pause_clock(run);
    net->ops->download(run->delivered, net->grad, net->parameters * sizeof(float));
    combine(run->setup, ISGQ_FLOAT32, ISGQ_AVG, run->exact, net->parameters);
    for (size_t i = 0; i < net->parameters; i++) {
        double exact = run->exact[i], difference = (double)run->delivered[i] - exact;
        error += difference * difference;
        norm += exact * exact;
    }
    run->nmse_sum += error == 0.0 ? 0.0 : error / norm;
    run->nmse_count++;
    go_on(run);
}

static void one_step(run_t *run, size_t first_of_step)
{
    const iq_train_setup_t *setup = run->setup;
    iq_train_net_t *net = setup->net;
    bool measured = run->step % MEASURE_EVERY == 0;

    iq_train_net_batch(net, &setup->data->train, run->device_order, first_of_step + setup->first_row, setup->rows);
    iq_train_net_forward(net, setup->rows);
    /* the mean over ranks of these is the mean over all rows, also where ranks have different numbers of them */
    iq_train_net_backward(net, setup->rows, (float)setup->nranks / (float)setup->total_rows);
    if (run->mode->kind == IQ_TRAIN_DENSE)
        iq_train_net_gradients(net, setup->rows);
    if (measured)
        keep_own(run);
    sum_gradients(run);
    if (measured)
        measure_error(run);
    iq_train_net_step(net, (float)(setup->rate * (1.0 - (double)run->step / (double)run->steps)));
    run->step++;
}

static void show_progress(const run_t *run, size_t epoch)
{
    double spent = now() - run->started;
    double left = spent * (double)(run->steps - run->step) / (double)run->step;

    if (run->setup->rank == 0)
        iq_progress_show("isgq_train: %s: epoch %zu of %zu, step %zu of %zu, %.0f s left", run->mode->name, epoch + 1,
                         run->setup->epochs, run->step, run->steps, left);
}

static void train(run_t *run)
{
    const iq_train_setup_t *setup = run->setup;

    for (size_t epoch = 0; epoch < setup->epochs; epoch++) {
        iq_train_data_shuffle(run->order, setup->data->train.count, setup->seed, epoch);
        setup->ops->upload(run->device_order, run->order, setup->data->train.count * sizeof(uint32_t));
        for (size_t step = 0; step < run->steps_per_epoch; step++) {
            one_step(run, step * setup->total_rows);
            if (run->step % 10 == 0)
                show_progress(run, epoch);
        }
    }
    iq_check(isgq_comm_synchronize(setup->comm), setup->rank, "summing gradients");
    setup->ops->synchronize();
    if (setup->rank == 0)
        iq_progress_clear();
}

/* Loss and accuracy on the test images, an n-th of them on each rank. */
static void evaluate(const iq_train_setup_t *setup, iq_train_result_t *result)
{
    const iq_train_set_t *test = &setup->data->test;
    size_t first = test->count * (size_t)setup->rank / (size_t)setup->nranks;
    size_t end = test->count * ((size_t)setup->rank + 1) / (size_t)setup->nranks;
    double sums[2] = {0};

    while (first < end) {
        size_t rows = end - first < setup->max_rows ? end - first : setup->max_rows, correct;
        iq_train_net_batch(setup->net, test, NULL, first, rows);
        iq_train_net_forward(setup->net, rows);
        sums[0] += iq_train_net_loss(setup->net, rows, &correct);
        sums[1] += (double)correct;
        first += rows;
    }
    combine(setup, ISGQ_FLOAT64, ISGQ_SUM, sums, 2);
    result->loss = sums[0] / (double)test->count;
    result->accuracy = 100.0 * sums[1] / (double)test->count;
}

static void compare_weights(const iq_train_setup_t *setup, iq_train_result_t *result)
{
    size_t bytes = setup->net->parameters * sizeof(float);
    float *weights = iq_train_memory(bytes);
    uint64_t *all = iq_train_memory((size_t)setup->nranks * sizeof(uint64_t));

    setup->ops->download(weights, setup->net->weights, bytes);
    uint64_t own = isgqx_hash(weights, bytes);
    free(weights);
    iq_check(isgq_allgather(&own, all, 1, ISGQ_UINT64, setup->none, setup->measure, NULL, NULL), setup->rank,
             "comparing weights");
    iq_check(isgq_comm_synchronize(setup->measure), setup->rank, "comparing weights");
    result->hash = all[0];
    for (int rank = 0; rank < setup->nranks; rank++)
        result->hashes_differ |= all[rank] != all[0];
    free(all);
}

/* Bytes of the run: most over ranks sent, most over ranks contributed. */
static void count_bytes(const run_t *run, iq_train_result_t *result)
{
    const iq_train_setup_t *setup = run->setup;
    isgq_stats_t stats = {.size = sizeof(stats)};
    uint64_t most[2];
    double fp32 = 4.0 * (double)setup->net->parameters * (double)run->steps;

    iq_check(isgq_comm_get_stats(setup->comm, &stats), setup->rank, "isgq_comm_get_stats");
    iq_check(isgqx_own_bytes(setup->comm, &most[1]), setup->rank, "isgqx_own_bytes");
    most[0] = stats.wire_bytes;
    combine(setup, ISGQ_UINT64, ISGQ_MAX, most, 2);
    result->grad_bytes = most[0];
    result->ratio =
        most[0] > 0 ? isgqx_fp32_ring_bytes(setup->net->parameters, setup->nranks) * (double)run->steps / (double)most[0] : NAN;
    result->gain = most[1] > 0 ? fp32 / (double)most[1] : NAN;
}

static void open_run(run_t *run, const iq_train_setup_t *setup, const iq_train_mode_t *mode)
{
    size_t count = setup->data->train.count;

    *run = (run_t){.setup = setup, .mode = mode, .steps_per_epoch = count / setup->total_rows};
    run->steps = run->steps_per_epoch * setup->epochs;
    run->order = iq_train_memory(count * sizeof(uint32_t));
    run->device_order = setup->ops->alloc(count * sizeof(uint32_t));
    run->exact = iq_train_memory(setup->net->parameters * sizeof(float));
    run->delivered = iq_train_memory(setup->net->parameters * sizeof(float));
    for (size_t l = 0; l < setup->net->nlayers && mode->kind == IQ_TRAIN_DENSE; l++) {
        const iq_train_layer_t *layer = &setup->net->layers[l];
        char name[32];
        snprintf(name, sizeof(name), "layer %zu", l);
        iq_check(isgq_tensor_create(&run->tensors[l], name, layer->m * layer->n + layer->n), setup->rank, "isgq_tensor_create");
        /* the bias is one more row: the gradient of a weight whose input is always 1 */
        iq_check(isgq_tensor_shape(run->tensors[l], layer->m + 1, layer->n), setup->rank, "isgq_tensor_shape");
    }
}

static void close_run(run_t *run)
{
    free(run->order);
    run->setup->ops->release(run->device_order);
    free(run->exact);
    free(run->delivered);
    for (size_t l = 0; l < IQ_TRAIN_MAX_LAYERS; l++)
        isgq_tensor_destroy(run->tensors[l]);
}

void iq_train_run(const iq_train_setup_t *setup, const iq_train_mode_t *mode, iq_train_result_t *result)
{
    run_t run;

    *result = (iq_train_result_t){0};
    open_run(&run, setup, mode);
    iq_train_net_init(setup->net, setup->seed);
    (void)setup->ops->clock_seconds();
    iq_check(isgq_comm_reset_stats(setup->comm), setup->rank, "isgq_comm_reset_stats");
    iq_check(isgq_barrier(setup->measure, NULL), setup->rank, "barrier");
    iq_check(isgq_comm_synchronize(setup->measure), setup->rank, "barrier");
    run.started = now();
    train(&run);
    double times[2] = {now() - run.started - run.measuring, setup->ops->clock_seconds()};
    count_bytes(&run, result);
    combine(setup, ISGQ_FLOAT64, ISGQ_MAX, times, 2);
    evaluate(setup, result);
    compare_weights(setup, result);
    result->steps = run.steps;
    result->nmse = run.nmse_sum / (double)run.nmse_count;
    result->seconds = times[0];
    result->comm_seconds = times[1];
    close_run(&run);
}

void iq_train_warm_up(const iq_train_setup_t *setup)
{
    iq_train_net_t *net = setup->net;

    iq_train_net_batch(net, &setup->data->train, NULL, 0, setup->rows);
    iq_train_net_forward(net, setup->rows);
    iq_train_net_backward(net, setup->rows, 0.0f);
    iq_train_net_gradients(net, setup->rows);
    iq_train_net_step(net, 0.0f);
    setup->ops->synchronize();
}
