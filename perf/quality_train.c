/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real gradients and factors: isgq_train's network in exact training, and what its layers hold at a few steps.
 *
 * The steps are those of `isgq_train --grad exact`: the same weights, images, learning rate and sums.
 */
#include "perf/quality.h"
#include "perf/train.h"
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/common/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct run {
    const iq_quality_training_t *training;
    const iq_quality_setup_t *setup;
    iq_train_data_t data;
    iq_train_net_t net;
    uint32_t *order;
    size_t step, steps, steps_per_epoch, captured;
} run_t;

static float *copy(const float *from, size_t count)
{
    float *to = iq_train_memory(count * sizeof(float));

    memcpy(to, from, count * sizeof(float));
    return to;
}

static void keep_layer(iq_quality_tensor_t *tensor, const iq_train_layer_t *layer, size_t rows)
{
    tensor->m = layer->m;
    tensor->n = layer->n;
    tensor->rows = rows;
    tensor->count = (layer->m + 1) * layer->n;
    tensor->grad = copy(layer->grad, tensor->count);
    tensor->x = copy(layer->x, rows * layer->m);
    tensor->delta = copy(layer->delta, rows * layer->n);
}

static void capture(run_t *run, iq_quality_source_t *source)
{
    const iq_quality_training_t *training = run->training;
    iq_quality_sample_t *sample = &source->samples[run->captured++];

    sample->step = run->step;
    for (size_t t = 0; t < sample->ntensors; t++)
        keep_layer(&sample->tensors[t], &run->net.layers[training->layer > 0 ? training->layer - 1 : t], training->batch);
}

static void one_step(run_t *run, iq_quality_source_t *source)
{
    const iq_quality_setup_t *setup = run->setup;
    iq_train_net_t *net = &run->net;
    size_t rows = run->training->batch, total = rows * (size_t)setup->nranks, of_epoch = run->step % run->steps_per_epoch;

    if (of_epoch == 0)
        iq_train_data_shuffle(run->order, run->data.train.count, setup->seed, run->step / run->steps_per_epoch);
    iq_train_net_batch(net, &run->data.train, run->order, of_epoch * total + rows * (size_t)setup->rank, rows);
    iq_train_net_forward(net, rows);
    iq_train_net_backward(net, rows, (float)setup->nranks / (float)total);
    iq_train_net_gradients(net, rows);
    if (run->step == run->training->steps[run->captured])
        capture(run, source);
    for (size_t l = net->nlayers; l-- > 0;) {
        size_t count = (net->layers[l].m + 1) * net->layers[l].n;
        iq_check(isgq_allreduce(net->layers[l].grad, net->layers[l].grad, count, ISGQ_FLOAT32, ISGQ_AVG, setup->none,
                                setup->measure, NULL, NULL),
                 setup->rank, "allreduce of a gradient");
    }
    iq_check(isgq_comm_synchronize(setup->measure), setup->rank, "summing gradients");
    iq_train_net_step(net, (float)(run->training->rate * (1.0 - (double)run->step / (double)run->steps)));
    run->step++;
}

static void check_sizes(const run_t *run)
{
    const iq_quality_training_t *training = run->training;
    size_t last = training->steps[training->nsteps - 1];

    if (run->data.train.pixels != training->sizes[0])
        iq_die(IQ_EXIT_USAGE, "--layers: the images have %zu pixels, the first layer %zu units", run->data.train.pixels,
               training->sizes[0]);
    if (run->steps_per_epoch == 0)
        iq_die(IQ_EXIT_USAGE, "a step of %zu rows is more than the %zu training images",
               training->batch * (size_t)run->setup->nranks, run->data.train.count);
    if (last >= run->steps)
        iq_die(IQ_EXIT_USAGE, "--steps: there is no step %zu in %zu epochs of %zu steps", last, training->epochs,
               run->steps_per_epoch);
}

static void open_run(run_t *run, const iq_quality_setup_t *setup, const iq_quality_training_t *training)
{
    *run = (run_t){.setup = setup, .training = training};
    iq_train_data_open(&run->data, training->data, training->sizes[training->nlayers]);
    run->steps_per_epoch = run->data.train.count / (training->batch * (size_t)setup->nranks);
    run->steps = run->steps_per_epoch * training->epochs;
    check_sizes(run);
}

void iq_quality_train_check(const iq_quality_training_t *training, int nranks)
{
    iq_quality_setup_t setup = {.nranks = nranks};
    run_t run;

    open_run(&run, &setup, training);
    iq_train_data_close(&run.data);
}

void iq_quality_train(iq_quality_source_t *source, const iq_quality_setup_t *setup, const iq_quality_training_t *training)
{
    run_t run;
    size_t last = training->steps[training->nsteps - 1];

    open_run(&run, setup, training);
    run.order = iq_train_memory(run.data.train.count * sizeof(uint32_t));
    iq_train_net_open(&run.net, &iq_train_ops_host, training->sizes, training->nlayers, training->batch);
    iq_train_net_init(&run.net, setup->seed);
    iq_quality_source_open(source, training->nsteps, training->layer > 0 ? 1 : training->nlayers);
    while (run.captured < training->nsteps) {
        if (setup->rank == 0 && run.step % 10 == 0)
            iq_progress_show("isgq_quality: training: step %zu of %zu", run.step, last);
        one_step(&run, source);
    }
    if (setup->rank == 0)
        iq_progress_clear();
    snprintf(source->about, sizeof(source->about), "training, %zu rows a rank", training->batch);
    iq_train_net_close(&run.net);
    iq_train_data_close(&run.data);
    free(run.order);
}
