/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of each rank that the others of its communicator can map, to read and write in place what lies there.
 *
 * All ranks hold one file (transport/segment.h), most of which is holes: behind the queues each rank has a region of it. A rank gives out its region from
 * the front and never twice, so a place in the file means the same for ever, and mappings are never wrong, only out of use. What is freed becomes a hole.
 */
#ifndef ISGQ_TRANSPORT_VIEWS_H
#define ISGQ_TRANSPORT_VIEWS_H

#include "isgqcoll.h"

#include <stddef.h>
#include <stdint.h>

#define IQ_VIEWS_REGION ((uint64_t)1 << 44) /* of each rank, in the file */

/* A place in a rank's region, in words for other ranks. All zero: not in the region. */
typedef struct iq_view {
    uint64_t base, bytes; /* an allocation */
    uint64_t at;          /* in it */
} iq_view_t;

typedef struct iq_views iq_views_t;

/* Takes `fd`, also when it fails: NULL. Region 0 begins at byte `start` of the file. Of each rank a few mappings are kept. */
iq_views_t *iq_views_open(int fd, uint64_t start, int nranks, int rank);
void iq_views_close(iq_views_t *views);

/* Own memory, zeroed; *base for iq_view_t. NULL if there is none: then any other memory does, only nobody sees it. Several threads. */
void *iq_views_alloc(iq_views_t *views, size_t bytes, uint64_t *base);
void iq_views_free(iq_views_t *views, void *memory, uint64_t base, size_t bytes);

/* Where `bytes` bytes of another rank are, which said so. Valid until 2 * nranks more have been asked for. One thread at a time. */
isgq_result_t iq_views_map(iq_views_t *views, int rank, const iq_view_t *view, size_t bytes, unsigned char **memory);

#endif
