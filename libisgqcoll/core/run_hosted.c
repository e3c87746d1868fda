/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that are hosts' work although some ranks' tensors lie on devices: entropy coding (codec/coded.c) and PowerSGD. Such a rank's input comes
 * to host memory of the communicator, all stages are those of a rank on host memory, and the result goes back:
 *
 *     to host, the call's stages, to device
 *
 * Ranks on host memory have these two stages too, with nothing to do in them. So bits do not depend on where anybody's tensor lies, and nothing
 * of it can be enqueued: such calls wait for hosts even where a wire joins all devices, and no graph can contain them.
 *
 * Copies pass through the two pinned buffers that messages are staged in, one piece a trip.
 */
#include "base/util.h"
#include "core/gpu.h"
#include "core/run.h"

#include <string.h>

bool iq_call_is_hosted(isgq_comm_t comm, const iq_call_t *call)
{
    bool sums = call->kind == IQ_CALL_ALLREDUCE || call->kind == IQ_CALL_REDUCE_SCATTER;
    return comm->devices && sums && (call->power_rank != 0 || call->codec.power_rank != 0 || iq_codec_is_hosted(&call->codec));
}

/* Beside it are scales, directions and one chunk's room. */
size_t iq_hosted_bytes(const iq_call_t *call) { return call->count * iq_datatype_bytes(call->datatype) + IQ_CACHE_LINE; }

/* ---- pieces ---- */

typedef struct piece {
    size_t at, bytes;
} piece_t;

static size_t piece_bytes(isgq_comm_t comm) { return comm->slot_bytes / IQ_CACHE_LINE * IQ_CACHE_LINE; }

static piece_t find_piece(isgq_comm_t comm, size_t all, size_t index)
{
    size_t at = index * piece_bytes(comm);
    return (piece_t){at, iq_min(piece_bytes(comm), all - at)};
}

static void *buffer_of(isgq_comm_t comm, size_t index) { return index % 2 == 0 ? iq_gpu_outgoing(comm) : iq_gpu_incoming(comm); }

/* Trip i: piece i leaves the device, piece i - 1 goes to its place. One trip more than there are pieces. */
static isgq_result_t work_to_host(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    size_t bytes = call->input_bytes, pieces = iq_ceil_div(bytes, piece_bytes(comm));
    unsigned char *host = (unsigned char *)(uintptr_t)run->send;
    isgq_result_t result = iq_gpu_finish(comm, "device memory"); /* piece trip - 1 is in its buffer */
    if (result != ISGQ_SUCCESS)
        return result;
    if (trip < pieces) {
        piece_t piece = find_piece(comm, bytes, trip);
        iq_device_copy(iq_gpu_device(comm), buffer_of(comm, trip), (const unsigned char *)call->send + piece.at, piece.bytes);
    }
    if (trip > 0) {
        piece_t piece = find_piece(comm, bytes, trip - 1);
        memcpy(host + piece.at, buffer_of(comm, trip - 1), piece.bytes);
    }
    return ISGQ_SUCCESS;
}

static size_t output_elements(isgq_comm_t comm, const iq_call_t *call)
{
    return call->kind == IQ_CALL_REDUCE_SCATTER ? call->count / (size_t)comm->nranks : call->count;
}

/* Values of the call's type to the output, or onto what is there: rounded in that type, as hosts do. */
static void deliver(isgq_comm_t comm, const iq_call_t *call, piece_t piece, const void *values)
{
    iq_device_t *device = iq_gpu_device(comm);
    unsigned char *output = (unsigned char *)call->recv + piece.at;
    iq_cuda_map_t map = {.source = iq_device_values(call->datatype, values),
                         .target = iq_device_output(call->datatype, output, true),
                         .through = ISGQ_FLOAT32,
                         .count = piece.bytes / iq_datatype_bytes(call->datatype)};
    if (call->accumulate)
        iq_device_map(device, map);
    else
        iq_device_copy(device, output, values, piece.bytes);
}

static isgq_result_t work_to_device(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    size_t bytes = output_elements(comm, run->call) * iq_datatype_bytes(run->call->datatype);
    piece_t piece = find_piece(comm, bytes, trip);
    isgq_result_t result = iq_gpu_finish(comm, "device memory"); /* the piece before has left its buffer */
    if (result != ISGQ_SUCCESS)
        return result;
    memcpy(buffer_of(comm, trip), (const unsigned char *)run->recv + piece.at, piece.bytes);
    deliver(comm, run->call, piece, buffer_of(comm, trip));
    return ISGQ_SUCCESS;
}

/* ---- stages ---- */

isgq_result_t iq_run_bring_to_host(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *call = run->call;
    bool here = run->site->device != NULL;
    size_t pieces = iq_ceil_div(call->input_bytes, piece_bytes(comm));
    if (here) {
        unsigned char *tensor = iq_host_take(run, iq_hosted_bytes(call));
        if (tensor == NULL)
            return ISGQ_ERR_NO_MEMORY;
        run->hosted = true;
        run->send = tensor;
        run->recv = call->kind == IQ_CALL_REDUCE_SCATTER /* in place, as a caller's may be */
                        ? tensor + (size_t)comm->rank * output_elements(comm, call) * iq_datatype_bytes(call->datatype)
                        : tensor;
        run->accumulate = false;
    }
    iq_run_add_work(run, "to host", work_to_host, here && pieces > 0 ? pieces + 1 : 0);
    return ISGQ_SUCCESS;
}

void iq_run_bring_to_device(isgq_comm_t comm, iq_run_t *run)
{
    size_t bytes = output_elements(comm, run->call) * iq_datatype_bytes(run->call->datatype);
    iq_run_add_work(run, "to device", work_to_device, run->hosted ? iq_ceil_div(bytes, piece_bytes(comm)) : 0);
}
