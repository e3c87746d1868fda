/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_train's data: an MNIST-like folder, kept as bytes, shuffled by a seed.
 */
#include "perf/train.h"
#include "tools/common/idx.h"
#include "tools/common/options.h"

#include <stdlib.h>

uint64_t iq_train_random(uint64_t key, uint64_t counter)
{
    uint64_t x = (key + counter + 1u) * 0x9e3779b97f4a7c15u;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void open_set(iq_train_set_t *set, const char *folder, const char *images, const char *labels, size_t classes)
{
    iq_idx_t pictures, names;
    char error[512];

    if (!iq_idx_read(folder, images, 3, &pictures, error, sizeof(error)))
        iq_die(IQ_EXIT_USAGE, "%s", error);
    if (!iq_idx_read(folder, labels, 1, &names, error, sizeof(error)))
        iq_die(IQ_EXIT_USAGE, "%s", error);
    if (pictures.items != names.items)
        iq_die(IQ_EXIT_USAGE, "%s: %s holds %zu images, %s %zu labels", folder, images, pictures.items, labels, names.items);
    for (size_t i = 0; i < names.items; i++)
        if (names.data[i] >= classes)
            iq_die(IQ_EXIT_USAGE, "%s/%s: label %zu is %u, but the network has %zu outputs", folder, labels, i, names.data[i],
                   classes);
    *set =
        (iq_train_set_t){.images = pictures.data, .labels = names.data, .count = pictures.items, .pixels = pictures.item_bytes};
}

void iq_train_data_open(iq_train_data_t *data, const char *folder, size_t classes)
{
    open_set(&data->train, folder, "train-images-idx3-ubyte", "train-labels-idx1-ubyte", classes);
    open_set(&data->test, folder, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", classes);
    if (data->train.pixels != data->test.pixels)
        iq_die(IQ_EXIT_USAGE, "%s: training images have %zu pixels, test images %zu", folder, data->train.pixels,
               data->test.pixels);
}

void iq_train_data_close(iq_train_data_t *data)
{
    free(data->train.images);
    free(data->train.labels);
    free(data->test.images);
    free(data->test.labels);
}

static void *place(const iq_train_ops_t *ops, void *host, size_t bytes)
{
    void *there = ops->alloc(bytes);

    ops->upload(there, host, bytes);
    free(host);
    return there;
}

void iq_train_data_place(iq_train_data_t *data, const iq_train_ops_t *ops)
{
    iq_train_set_t *sets[] = {&data->train, &data->test};

    for (size_t i = 0; i < 2; i++) {
        sets[i]->images = place(ops, sets[i]->images, sets[i]->count * sets[i]->pixels);
        sets[i]->labels = place(ops, sets[i]->labels, sets[i]->count);
    }
}

void iq_train_data_release(iq_train_data_t *data, const iq_train_ops_t *ops)
{
    ops->release(data->train.images);
    ops->release(data->train.labels);
    ops->release(data->test.images);
    ops->release(data->test.labels);
}

void iq_train_data_shuffle(uint32_t *order, size_t count, uint64_t seed, size_t epoch)
{
    uint64_t key = iq_train_random(seed, 0x5f0e + epoch);

    for (size_t i = 0; i < count; i++)
        order[i] = (uint32_t)i;
    for (size_t i = count; i > 1; i--) { /* Fisher and Yates; the bias of the remainder is below 2^-32 */
        size_t j = (size_t)(iq_train_random(key, i) % i);
        uint32_t swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}
