/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What isgq_quality sums where it does not come from training: numbers drawn here, or a file.
 *
 * Drawn numbers are s * (sqrt(c) * z + sqrt(1-c) * z_r): z normal and equal on all ranks, z_r normal and a rank's own, s an element's
 * scale on all ranks, which makes the distribution: 1 normal, sqrt(E) Laplace (E exponential), 1/sqrt(chi^2_3) Student with 3
 * degrees of freedom; all of variance 1. So every two ranks' values have correlation c, and large elements are large everywhere,
 * as with gradients.
 */
#include "perf/quality.h"
#include "perf/train.h"
#include "tools/common/names.h"
#include "tools/common/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STREAM_SCALE = 0x5ca1e, STREAM_COMMON = 0xc0, STREAM_RANK = 0x100 };

/* ---- samples ---- */

void iq_quality_source_open(iq_quality_source_t *source, size_t nsamples, size_t ntensors)
{
    source->nsamples = nsamples;
    source->samples = iq_train_memory(nsamples * sizeof(iq_quality_sample_t));
    for (size_t s = 0; s < nsamples; s++) {
        size_t bytes = ntensors * sizeof(iq_quality_tensor_t);
        source->samples[s] = (iq_quality_sample_t){.ntensors = ntensors, .tensors = iq_train_memory(bytes)};
        memset(source->samples[s].tensors, 0, bytes);
    }
}

void iq_quality_source_close(iq_quality_source_t *source)
{
    for (size_t s = 0; s < source->nsamples; s++) {
        for (size_t t = 0; t < source->samples[s].ntensors; t++) {
            iq_quality_tensor_t *tensor = &source->samples[s].tensors[t];
            free(tensor->grad);
            free(tensor->x);
            free(tensor->delta);
            free(tensor->exact);
        }
        free(source->samples[s].tensors);
    }
    free(source->samples);
}

/* The mean over ranks, of which the rank keeps its n-th part. Returns the squared norm of its own values. */
static double settle_tensor(iq_quality_tensor_t *tensor, const iq_quality_setup_t *setup)
{
    size_t n = (size_t)setup->nranks, rank = (size_t)setup->rank;
    double *sum = iq_train_memory((tensor->count + 1) * sizeof(double)), own = 0.0;

    for (size_t i = 0; i < tensor->count; i++) {
        sum[i] = tensor->grad[i];
        own += sum[i] * sum[i];
    }
    iq_quality_combine(setup, ISGQ_SUM, sum, tensor->count);
    tensor->first = tensor->count / n * rank + (tensor->count % n < rank ? tensor->count % n : rank);
    tensor->end = tensor->first + tensor->count / n + (rank < tensor->count % n);
    tensor->exact = iq_train_memory((tensor->end - tensor->first + 1) * sizeof(double));
    for (size_t i = tensor->first; i < tensor->end; i++)
        tensor->exact[i - tensor->first] = sum[i] / (double)n;
    free(sum);
    return own;
}

void iq_quality_source_settle(iq_quality_source_t *source, const iq_quality_setup_t *setup)
{
    double n = setup->nranks, own_norms = 0.0, mean_norms = 0.0;

    for (size_t s = 0; s < source->nsamples; s++) {
        iq_quality_sample_t *sample = &source->samples[s];
        double norms[2] = {0};
        for (size_t t = 0; t < sample->ntensors; t++) {
            const iq_quality_tensor_t *tensor = &sample->tensors[t];
            norms[0] += settle_tensor(&sample->tensors[t], setup);
            for (size_t i = 0; i < tensor->end - tensor->first; i++)
                norms[1] += tensor->exact[i] * tensor->exact[i];
            sample->count += tensor->count;
        }
        iq_quality_combine(setup, ISGQ_SUM, norms, 2);
        sample->norm = norms[1];
        own_norms += norms[0];
        mean_norms += norms[1];
    }
    source->correlation = n > 1.0 && own_norms > 0.0 ? (n * n * mean_norms - own_norms) / ((n - 1.0) * own_norms) : NAN;
}

/* ---- drawn ---- */

bool iq_quality_is_drawn(const char *name)
{
    return strcmp(name, "normal") == 0 || strcmp(name, "laplace") == 0 || strcmp(name, "student3") == 0;
}

double iq_quality_uniform(uint64_t key, uint64_t counter) { return ((double)(iq_train_random(key, counter) >> 11) + 0.5) * 0x1p-53; }

/* Box and Muller: a pair from two uniform numbers. */
double iq_quality_normal(uint64_t key, uint64_t counter)
{
    double radius = sqrt(-2.0 * log(iq_quality_uniform(key, counter & ~1ull))), angle = 6.283185307179586 * iq_quality_uniform(key, counter | 1u);

    return radius * (counter & 1u ? sin(angle) : cos(angle));
}

static double scale_of(const char *name, uint64_t key, size_t element)
{
    double squares = 0.0;

    if (strcmp(name, "normal") == 0)
        return 1.0;
    if (strcmp(name, "laplace") == 0)
        return sqrt(-log(iq_quality_uniform(key, element)));
    for (size_t i = 0; i < 3; i++) {
        double z = iq_quality_normal(key, 4 * element + i);
        squares += z * z;
    }
    return 1.0 / sqrt(squares);
}

void iq_quality_draw(iq_quality_source_t *source, const iq_quality_setup_t *setup, const char *name, size_t count,
                     double correlation)
{
    uint64_t scales = iq_train_random(setup->seed, STREAM_SCALE), common = iq_train_random(setup->seed, STREAM_COMMON);
    uint64_t own = iq_train_random(setup->seed, STREAM_RANK + (uint64_t)setup->rank);

    iq_quality_source_open(source, 1, 1);
    iq_quality_tensor_t *tensor = &source->samples[0].tensors[0];
    tensor->count = count;
    tensor->grad = iq_train_memory(count * sizeof(float));
    for (size_t i = 0; i < count; i++)
        tensor->grad[i] = (float)(scale_of(name, scales, i) *
                                  (sqrt(correlation) * iq_quality_normal(common, i) + sqrt(1.0 - correlation) * iq_quality_normal(own, i)));
    snprintf(source->about, sizeof(source->about), "%s, %zu elements", name, count);
}

/* ---- a file ---- */

static FILE *open_file(const char *path, size_t *elements)
{
    FILE *file = fopen(path, "rb");

    if (file == NULL)
        iq_die(IQ_EXIT_USAGE, "--source: '%s' is not train, normal, laplace or student3, and as a file: %s", path,
               strerror(errno));
    if (fseek(file, 0, SEEK_END) != 0 || ftell(file) < 0)
        iq_die(IQ_EXIT_USAGE, "--source: %s: %s", path, strerror(errno));
    size_t bytes = (size_t)ftell(file);
    if (bytes % sizeof(float) != 0)
        iq_die(IQ_EXIT_USAGE, "--source: %s: %zu bytes are no whole number of f32", path, bytes);
    *elements = bytes / sizeof(float);
    return file;
}

size_t iq_quality_file_part(const char *path, int nranks)
{
    size_t elements;

    fclose(open_file(path, &elements));
    if (elements < (size_t)nranks)
        iq_die(IQ_EXIT_USAGE, "--source: %s: %zu elements are too few for %d ranks", path, elements, nranks);
    return elements / (size_t)nranks;
}

void iq_quality_read(iq_quality_source_t *source, const iq_quality_setup_t *setup, const char *path, size_t most)
{
    size_t part = iq_quality_file_part(path, setup->nranks), elements;
    FILE *file = open_file(path, &elements);

    iq_quality_source_open(source, 1, 1);
    iq_quality_tensor_t *tensor = &source->samples[0].tensors[0];
    tensor->count = most < part ? most : part;
    tensor->grad = iq_train_memory(tensor->count * sizeof(float));
    if (fseek(file, (long)(part * (size_t)setup->rank * sizeof(float)), SEEK_SET) != 0 ||
        fread(tensor->grad, sizeof(float), tensor->count, file) != tensor->count)
        iq_die(IQ_EXIT_FAILED, "--source: %s: reading %zu elements failed", path, tensor->count);
    fclose(file);
    double bad = (double)SIZE_MAX; /* the first, over all ranks, so that one sentence tells */
    for (size_t i = tensor->count; i-- > 0;)
        if (!isfinite(tensor->grad[i]))
            bad = (double)(part * (size_t)setup->rank + i);
    iq_quality_combine(setup, ISGQ_MIN, &bad, 1);
    if (bad < (double)SIZE_MAX) {
        if (setup->rank == 0)
            iq_complain("--source: %s: element %.0f is not finite", path, bad);
        iq_check(isgq_comm_finalize(setup->measure), setup->rank, "leaving"); /* a rank that is gone would be the news elsewhere */
        iq_check(isgq_comm_finalize(setup->comm), setup->rank, "leaving");
        exit(IQ_EXIT_USAGE);
    }
    snprintf(source->about, sizeof(source->about), "%.100s, %zu elements", path, tensor->count);
}
