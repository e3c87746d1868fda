/* SPDX-License-Identifier: Apache-2.0 */
/* Random rotations layer by layer: see hadamard.h. */
#include "kernels/hadamard.h"
#include "kernels/kernels.h"

static void flip(const iq_rotation_t *rotation, uint32_t index, const iq_rotation_layer_t *layer, float *values)
{
    uint32_t words[IQ_ROTATION_MOST / 32 + 1];
    uint64_t first = rotation->first + layer->start;
    size_t lane = first % 32, nwords = (lane + layer->count + 31) / 32;
    iq_grid_t place = {.seed = rotation->seed, .call = rotation->call, .stream = IQ_STREAM_ROTATION, .rank = rotation->rank};
    iq_kernels()->draw(&place, iq_rotation_word(rotation, index, first / 32), nwords, words);
    iq_kernels()->flip(words, lane, layer->factor, values + layer->start, layer->count);
}

/* Its own inverse but for factor and signs. Of an odd count the value in the middle is not folded. */
static void mix(const iq_rotation_layer_t *layer, float *values, float *room)
{
    size_t half = layer->count - layer->count / 2;
    if (!layer->folds) {
        iq_kernels()->hadamard(values + layer->start, layer->count, room);
        return;
    }
    for (size_t i = 0; i + half < layer->count; i++)
        iq_rotation_fold_pair(&values[i], &values[half + i]);
}

void iq_rotate(const iq_rotation_t *rotation, float *values, size_t count, float *room)
{
    for (uint32_t index = 0; index < iq_rotation_layers(count); index++) {
        iq_rotation_layer_t layer = iq_rotation_layer(count, index);
        flip(rotation, index, &layer, values);
        mix(&layer, values, room);
    }
}

void iq_rotate_back(const iq_rotation_t *rotation, float *values, size_t count, float *room)
{
    for (uint32_t index = iq_rotation_layers(count); index-- > 0;) {
        iq_rotation_layer_t layer = iq_rotation_layer(count, index);
        mix(&layer, values, room);
        flip(rotation, index, &layer, values);
    }
}
