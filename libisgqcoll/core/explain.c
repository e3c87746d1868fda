/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a call would do, as text. The call is decided and laid out on a communicator that meets nobody, by the functions that
 * real calls go through, and its stages are printed instead of run: what is printed is what would run.
 */
#include "base/config.h"
#include "base/util.h"
#include "core/frame.h"
#include "core/run.h"
#include "core/tuned.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct printer {
    isgqx_line_fn line;
    void *context;
    size_t messages, bytes; /* that the rank sends, frames included */
    bool at_most;           /* some of them may be shorter */
} printer_t;

/* ---- a stage ---- */

/* Payload bytes that an action receives and sends: what the functions of run_plan.c expect and commit. */
static void message_bytes(const iq_stage_t *stage, const iq_action_t *action, size_t *in, size_t *out)
{
    const iq_codec_t *codec = &stage->codec;
    const iq_codec_call_t *call = &stage->codec_call;
    iq_span_t span = {action->first, action->count};
    size_t one = codec->ops->partial_bytes(codec, call, span, 1), result = codec->ops->result_bytes(codec, call, span);
    bool hop = action->kind == IQ_STEP_HOP || action->kind == IQ_STEP_LAST_HOP;
    *in = *out = 0;
    if (action->kind == IQ_STEP_SUM)
        *in = one * ((size_t)stage->plan->nranks - 1);
    else if (hop)
        *in = codec->ops->partial_bytes(codec, call, span, action->parts - 1);
    else if (action->kind == IQ_STEP_REDUCE && action->peer != stage->plan->rank)
        *in = one;
    else if (action->kind == IQ_STEP_RECV_RESULT || action->kind == IQ_STEP_FORWARD)
        *in = result;
    if (action->kind == IQ_STEP_HOP)
        *out = codec->ops->partial_bytes(codec, call, span, action->parts);
    else if (action->kind == IQ_STEP_SEND_OWN || action->kind == IQ_STEP_POST)
        *out = one;
    else if (action->kind == IQ_STEP_SEND_RESULT || action->kind == IQ_STEP_FORWARD || action->kind == IQ_STEP_SEND_PART ||
             (hop && action->to >= 0))
        *out = result;
}

static bool sends(const iq_action_t *action)
{
    return action->kind == IQ_STEP_SEND_OWN || action->kind == IQ_STEP_SEND_RESULT || action->kind == IQ_STEP_SIGNAL ||
           action->kind == IQ_STEP_SEND_PART || action->kind == IQ_STEP_POST || action->to >= 0;
}

static void print_steps(printer_t *printer, const iq_stage_t *stage)
{
    iq_plan_cursor_t cursor = {0};
    iq_action_t action;
    const char *most = stage->lengths != NULL ? "up to " : "";
    char step[192], text[288];
    while (iq_plan_next(stage->plan, &cursor, &action)) {
        size_t in, out;
        message_bytes(stage, &action, &in, &out);
        iq_action_format(stage->plan, &action, step, sizeof(step));
        int used = snprintf(text, sizeof(text), "    %s", step);
        if (in > 0)
            used += snprintf(text + used, sizeof(text) - (size_t)used, "  %s%zu B in", most, in);
        if (out > 0)
            snprintf(text + used, sizeof(text) - (size_t)used, "  %s%zu B out", most, out);
        printer->line(printer->context, text);
        if (sends(&action) && !stage->shares_work) {
            printer->at_most |= stage->lengths != NULL;
            printer->messages++;
            printer->bytes += sizeof(iq_frame_t) + out;
        }
    }
}

/* "stage 1: maximum of peaks, allreduce exchange (max) of 2 f32" */
static void print_stage(printer_t *printer, const iq_run_t *run, int index)
{
    const iq_stage_t *stage = &run->stages[index];
    char text[320], op[16] = "", codec[IQ_QUANTIZER_TEXT_BYTES] = "";
    if (stage->work != NULL) {
        snprintf(text, sizeof(text), "stage %d: %s, local work in %zu part%s", index, stage->name, stage->trips,
                 stage->trips == 1 ? "" : "s");
        printer->line(printer->context, text);
        return;
    }
    const iq_plan_t *plan = stage->plan;
    const char *collective = iq_collective_name(plan->collective);
    if (plan->collective == IQ_ALLREDUCE || plan->collective == IQ_REDUCE_SCATTER)
        snprintf(op, sizeof(op), " (%s)", iq_red_op_name(stage->codec_call.op));
    iq_codec_text(&stage->codec, codec, sizeof(codec));
    int used = strcmp(stage->name, collective) == 0 ? snprintf(text, sizeof(text), "stage %d: ", index)
                                                    : snprintf(text, sizeof(text), "stage %d: %s, ", index, stage->name);
    size_t room = sizeof(text) - (size_t)used;
    if (plan->collective == IQ_BARRIER)
        snprintf(text + used, room, "%s %s", collective, plan->algorithm);
    else if (stage->lengths != NULL)
        snprintf(text + used, room, "%s %s of blobs, at most %zu B of each rank%s", collective, plan->algorithm,
                 plan->count / (size_t)plan->nranks, stage->members != NULL ? " of the host" : "");
    else
        snprintf(text + used, room, "%s %s%s of %zu %s, sent as %s", collective, plan->algorithm, op, plan->count,
                 iq_datatype_name(stage->codec_call.datatype), stage->codec.ops == iq_codec_none.ops ? "they are" : codec);
    printer->line(printer->context, text);
    print_steps(printer, stage);
}

/* ---- a call ---- */

static void print_call(printer_t *printer, isgq_comm_t comm, const iq_call_t *call, const char *sizes)
{
    char text[320];
    snprintf(text, sizeof(text), "%s %s, rank %d of %d, %s: %s", iq_call_kind_name(call->kind), iq_call_algorithm_name(call),
             comm->rank, comm->nranks, sizes, call->why);
    printer->line(printer->context, text);
    for (int i = 0; i < comm->run->nstages; i++)
        print_stage(printer, comm->run, i);
    snprintf(text, sizeof(text), "sends %zu message%s, %s%zu B with frames", printer->messages, printer->messages == 1 ? "" : "s",
             printer->at_most ? "at most " : "", printer->bytes);
    printer->line(printer->context, text);
}

static isgq_result_t make_stand_in(int nranks, int rank, const char *quantizer, isgq_comm_t *comm)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.device_type = ISGQ_DEVICE_HOST;
    if (quantizer != NULL)
        IQ_TRY(isgq_quantizer_create(&config.quantizer, quantizer));
    isgq_result_t result = iq_comm_new(nranks, rank, (iq_origin_t){.device = IQ_CURRENT_DEVICE}, &config, comm);
    isgq_quantizer_destroy(config.quantizer);
    IQ_TRY(result);
    (*comm)->nhosts = 1;
    (*comm)->has_boards = nranks > 1 && nranks <= IQ_BOARDS;
    (*comm)->hosts_alike = true;
    (*comm)->host_ranks = calloc((size_t)nranks, sizeof(int));
    (*comm)->host_size = nranks;
    (*comm)->host_index = rank;
    (*comm)->lanes = nranks;
    (*comm)->lane_ranks = calloc(1, sizeof(int));
    for (int r = 0; (*comm)->host_ranks != NULL && r < nranks; r++)
        (*comm)->host_ranks[r] = r;
    snprintf((*comm)->transport_names, sizeof((*comm)->transport_names), nranks > 1 ? "shm" : "none"); /* as a table of such ranks has it */
    if ((*comm)->host_ranks != NULL && iq_config()->tune_table[0] != '\0') {
        isgqx_tuning_t table;
        iq_tuned_load(*comm, &table);
        iq_tuned_take(*comm, &table);
    }
    return (*comm)->host_ranks != NULL && (*comm)->lane_ranks != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "plan: %d ranks", nranks);
}

static isgq_result_t explain(iq_call_t *call, const char *sizes, const char *algorithm, const char *quantizer, int nranks,
                             int rank, isgqx_line_fn line, void *context)
{
    printer_t printer = {.line = line, .context = context};
    isgq_comm_t comm;
    if (line == NULL || nranks < 1 || rank < 0 || rank >= nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan: %s is invalid, rank %d of %d", line == NULL ? "line" : "the rank", rank,
                       nranks);
    IQ_TRY(make_stand_in(nranks, rank, quantizer, &comm));
    call->quantizer = comm->quantizer;
    isgq_result_t result = iq_decide(comm, call, algorithm);
    if (result == ISGQ_SUCCESS)
        result = iq_run_begin(comm, comm->run, call);
    if (result == ISGQ_SUCCESS)
        print_call(&printer, comm, call, sizes);
    iq_comm_release(comm);
    return result;
}

static isgq_result_t find_kind(const char *collective, iq_call_kind_t *kind)
{
    for (int k = 0; k < IQ_CALL_KIND_COUNT; k++) {
        *kind = (iq_call_kind_t)k;
        if (k != IQ_CALL_FACTORED && strcmp(collective, iq_call_kind_name(*kind)) == 0)
            return ISGQ_SUCCESS;
    }
    return IQ_FAIL(
        ISGQ_ERR_INVALID_ARGUMENT,
        "plan: there is no collective '%.32s'; there are allreduce, reduce_scatter, allgather, broadcast, barrier and factored",
        collective);
}

isgq_result_t isgqx_plan_print(const char *collective, const char *algorithm, const char *quantizer, int nranks, int rank,
                               size_t count, isgq_data_type_t datatype, isgqx_line_fn line, void *context)
{
    iq_call_t call = {.datatype = datatype, .op = ISGQ_SUM, .count = count};
    char sizes[64] = "no elements";
    if (collective == NULL || iq_datatype_bytes(datatype) == 0 || count > SIZE_MAX / 32)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan: collective %s, datatype %d or count %zu is invalid",
                       collective != NULL ? collective : "NULL", (int)datatype, count);
    IQ_TRY(find_kind(collective, &call.kind));
    bool in_parts = call.kind == IQ_CALL_ALLGATHER || call.kind == IQ_CALL_REDUCE_SCATTER;
    if (in_parts && nranks > 0 && count % (size_t)nranks != 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan: %s of %zu elements: they make no %d equal parts", collective, count,
                       nranks);
    if (call.kind == IQ_CALL_BARRIER) { /* as isgq_barrier has it */
        call.datatype = ISGQ_UINT8;
        call.count = 0;
    } else {
        snprintf(sizes, sizeof(sizes), "%zu %s", count, iq_datatype_name(datatype));
    }
    return explain(&call, sizes, algorithm, quantizer, nranks, rank, line, context);
}

isgq_result_t isgqx_plan_print_factored(const isgqx_factored_shape_t *shape, const char *algorithm, const char *quantizer,
                                        int nranks, int rank, isgq_data_type_t datatype, isgqx_line_fn line, void *context)
{
    char sizes[128];
    float nowhere; /* stands for a bias gradient: only that there is one is looked at */
    if (shape == NULL || shape->size != sizeof(*shape))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan: shape is NULL or of another size");
    IQ_TRY(iq_check_factored_shape(shape->m, shape->n, shape->max_batch, datatype));
    iq_call_t call = {.kind = IQ_CALL_FACTORED,
                      .datatype = datatype,
                      .op = ISGQ_SUM,
                      .count = shape->m * shape->n,
                      .max_batch = shape->max_batch};
    call.factors = (isgq_factors_t){.size = sizeof(call.factors), .batch = shape->max_batch, .m = shape->m, .n = shape->n};
    call.factors.bias = shape->bias != 0 ? &nowhere : NULL;
    snprintf(sizes, sizeof(sizes), "%zu rows, X of %zu and Delta of %zu columns, %s%s", shape->max_batch, shape->m, shape->n,
             iq_datatype_name(datatype), shape->bias != 0 ? ", with bias" : "");
    return explain(&call, sizes, algorithm, quantizer, nranks, rank, line, context);
}
