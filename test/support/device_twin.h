/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buffers that exist twice, on the host and where a GPU works, with the same bytes in and around them: what a step does on both
 * sides must leave them the same.
 */
#ifndef ISGQ_TEST_SUPPORT_DEVICE_TWIN_H
#define ISGQ_TEST_SUPPORT_DEVICE_TWIN_H

#include "codec/device.h"

typedef enum twin_place { ON_DEVICE, PINNED } twin_place_t;

/* Lives until twin_forget. */
typedef struct twin {
    unsigned char *host, *device;
    size_t bytes;
} twin_t;

/* Device 0 of module "cuda" with a stream of its own, and memory; a test begins and ends with these. */
extern iq_device_t twin_device;
void twin_start(void);
void twin_end(void);

/* What is being compared, for messages. */
extern char twin_what[256];

/* All twins are gone; twin_device has neither fault nor failure, and no graph that is replayed. */
void twin_forget(void);

/* Random bytes, at a multiple of 64 and `skew`. */
twin_t twin_new(size_t bytes, size_t skew, twin_place_t place);

/* The host's bytes to the device. */
void twin_push(const twin_t *twin);

/* The device's work is done. */
void twin_settle(void);

/* Abort the test if the device wrote outside; or if it has other values than the host, NaNs of any bits being the same. */
void twin_check_ends(const twin_t *twin, const char *step);
void twin_compare(const twin_t *twin, isgq_data_type_t type, const char *step);

#endif
