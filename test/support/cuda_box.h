/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Module "cuda" for tests of its table: the module and a stream, and boxes of device memory with bytes around them that must stay as
 * they are. The module is the one in ISGQ_MODULE_DIR: simulated, or a real one on a machine with a GPU.
 */
#ifndef ISGQ_TEST_SUPPORT_CUDA_BOX_H
#define ISGQ_TEST_SUPPORT_CUDA_BOX_H

#include "kernels/cuda/cuda_module.h"

extern const iq_cuda_module_t *cuda;
extern isgq_stream_t cuda_stream; /* of device 0 */

/* Check's fixtures: before and after each test. */
void cuda_start(void);
void cuda_end(void);

/* Device memory with a copy on the host. `host` and `device` point at the same byte of either. */
typedef struct box {
    unsigned char *host, *device;
    size_t bytes;
    unsigned char *host_all;
    void *device_all;
} box_t;

/* `bytes` at a multiple of 256 plus `skew`, below 64; random, and the same on both sides. */
box_t box_new(size_t bytes, size_t skew);
void box_free(box_t *box);

void box_push(const box_t *box); /* host to device */

/* The device's bytes, valid until box_free; the test fails if bytes around them changed. */
const unsigned char *box_result(const box_t *box);

/* Everything enqueued has run. */
void cuda_settle(void);

/* Random numbers, the same in every run. */
uint32_t random_bits(void);
uint32_t random_below(uint32_t end);

#endif
