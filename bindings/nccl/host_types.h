/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NCCL's interface as the host emulation sees it, so that it can be built where there is no nccl.h. Compared with the real header by
 * test/preload/nccl_interface.c.
 */
#ifndef ISGQ_NCCL_HOST_TYPES_H
#define ISGQ_NCCL_HOST_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* The version that the emulation speaks. */
#define IQ_HOST_VERSION 22809

typedef int iq_host_result_t;
enum {
    HOST_SUCCESS = 0,
    HOST_UNHANDLED_CUDA = 1,
    HOST_SYSTEM = 2,
    HOST_INTERNAL = 3,
    HOST_INVALID_ARGUMENT = 4,
    HOST_INVALID_USAGE = 5,
    HOST_REMOTE = 6,
    HOST_IN_PROGRESS = 7
};

enum { HOST_FP8_E4M3 = 10, HOST_FP8_E5M2 = 11, HOST_TYPES = 12 }; /* types 0 to 9 are isgq_data_type_t's */
enum { HOST_AVG = 4, HOST_BUILT_IN_OPS = 5 };                     /* operations 0 to 4 are isgq_red_op_t's */
enum { HOST_ID_BYTES = 128, HOST_SPLIT_NOCOLOR = -1 };

typedef struct iq_host_id {
    char internal[HOST_ID_BYTES];
} iq_host_id_t;

/* As far as it is read; `size` says how far the caller's reaches. */
typedef struct iq_host_config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share, traffic_class;
    const char *comm_name;
} iq_host_config_t;

typedef void *iq_host_stream_t;

#endif
