/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a quantizer's own arithmetic is, apart from calls: rank 0 encodes and decodes its first tensor by isgqx_encode and
 * isgqx_decode, on one thread, while the other ranks wait. Best of several runs: the others are disturbed by something else.
 */
#include "perf/quality.h"
#include "perf/train.h"
#include "tools/common/names.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS = 5 };

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Both in seconds. */
static void measure(const iq_quality_setup_t *setup, const isgqx_contribution_t *contribution, const float *values,
                    double best[2])
{
    size_t room, bytes;

    if (isgqx_encode(contribution, NULL, NULL, 0, &room) == ISGQ_ERR_UNSUPPORTED)
        return;
    void *message = iq_train_memory(room + 1);
    float *back = iq_train_memory(contribution->count * sizeof(float));
    memset(message, 0, room + 1); /* pages are there before the clock runs */
    memset(back, 0, contribution->count * sizeof(float));
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        iq_check(isgqx_encode(contribution, values, message, room, &bytes), setup->rank, "isgqx_encode");
        double middle = now();
        iq_check(isgqx_decode(contribution, message, bytes, back), setup->rank, "isgqx_decode");
        best[0] = fmin(best[0], middle - start);
        best[1] = fmin(best[1], now() - middle);
    }
    free(message);
    free(back);
}

void iq_quality_clock(const iq_quality_setup_t *setup, const iq_quality_source_t *source, isgq_quantizer_t quantizer,
                      iq_quality_result_t *result)
{
    const iq_quality_tensor_t *tensor = &source->samples[0].tensors[0];
    isgqx_contribution_t contribution = {.size = sizeof(contribution),
                                         .quantizer = quantizer,
                                         .datatype = ISGQ_FLOAT32,
                                         .count = tensor->count,
                                         .seed = setup->seed,
                                         .call = 1};
    double best[2] = {INFINITY, INFINITY}, gigabytes = 4e-9 * (double)tensor->count;

    if (setup->rank == 0)
        measure(setup, &contribution, tensor->grad, best);
    iq_quality_combine(setup, ISGQ_MIN, best, 2);
    result->encode_gbs = isfinite(best[0]) ? gigabytes / best[0] : NAN;
    result->decode_gbs = isfinite(best[1]) ? gigabytes / best[1] : NAN;
}
