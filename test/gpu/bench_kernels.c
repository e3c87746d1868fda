/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu, kernels: a row is one step of codec.h on device memory, through the table of module "cuda", with the codec's own widths.
 *
 * A repetition launches the step once on each set of buffers, so that an L2 holds nothing of a set when its turn comes again; its time is
 * divided by the sets. All repetitions are enqueued at once, between events: the host, which is ahead, adds nothing to them. Bytes are
 * those that the step must read and write, each once, scales included.
 */
#include "gpu/bench_gpu.h"
#include "codec/device.h"
#include "codec/families.h"
#include "kernels/cuda/cuda_module.h"
#include "kernels/philox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SETS = 8, MOST_REPETITIONS = 64 };

typedef enum work { COPY, MEASURE, MOMENTS, REDUCE, MAP, COMBINE, ENCODE_LEVELS, DECODE_LEVELS } work_t;

typedef struct step {
    const char *name; /* of codec.h, where it has one */
    work_t work;
    iq_cuda_form_t from, to;
    isgq_data_type_t type; /* of values */
    unsigned bits, width;  /* of a rank's codes, and of the packed run */
    size_t bucket;
    bool quantize, stochastic, stratified, accumulate;
    bool clips;     /* MOMENTS */
    unsigned parts; /* COMBINE: own values, and codes of the others */
    bool result;    /* COMBINE: written beside the output */
    const iq_codec_t *codec; /* of levels */
} step_t;

/* Device memory; elements of all forms describe the same values. Messages that are combined lie in `sums`, as do lanes and messages of levels. */
typedef struct set {
    void *values, *halves, *codes, *sums, *output;
} set_t;

static const iq_cuda_module_t *cuda;
static isgq_stream_t stream;
static set_t sets[MOST_SETS];
static float *scales;   /* of the step's values */
static float *measured; /* for each launch of `measure` scales of its own, zero before */
static uint32_t *strata; /* what is in them costs nothing */
static uint32_t *fault;  /* pinned */

/* ---- memory ---- */

static void *take(size_t bytes)
{
    void *memory = NULL;
    TRY(cuda->alloc(0, stream, bytes, &memory));
    return memory;
}

static void settle(void)
{
    TRY_CUDA(cudaStreamSynchronize(stream));
    if (*fault != IQ_CUDA_NO_FAULT)
        bench_die(__FILE__, __LINE__, "map", "a kernel found a fault in codes that it was given");
}

static size_t launches(const bench_t *bench) { return (bench->warm + bench->repetitions) * bench->sets; }

static size_t scales_of(const bench_t *bench, size_t bucket) { return bucket == 0 ? 1 : (bench->count - 1) / bucket + 1; }

static iq_cuda_source_t values_of(isgq_data_type_t type, const void *data)
{
    return (iq_cuda_source_t){.form = IQ_CUDA_VALUES, .type = type, .data = data, .divisor = 1.0f};
}

static void open_sets(const bench_t *bench)
{
    size_t count = bench->count, bytes = count * sizeof(float);
    float *host = malloc(bytes);
    if (host == NULL)
        bench_die(__FILE__, __LINE__, "malloc", "no memory");
    bench_fill(host, count, 0);
    for (size_t s = 0; s < bench->sets; s++) {
        set_t set = {take(bytes), take(bytes / 2), take(bytes / 2), take(bytes), take(bytes)};
        iq_cuda_map_t narrow = {.source = values_of(ISGQ_FLOAT32, set.values),
                                .target = {.form = IQ_CUDA_VALUES, .type = ISGQ_BFLOAT16, .data = set.halves},
                                .through = ISGQ_FLOAT32,
                                .count = count,
                                .fault = fault};
        TRY(cuda->copy(0, stream, set.values, host, bytes));
        TRY(cuda->map(0, stream, &narrow));
        sets[s] = set;
    }
    scales = take(count * sizeof(float));
    strata = take(256 * sizeof(*strata));
    TRY(cuda->clear(0, stream, strata, 256 * sizeof(*strata)));
    measured = take(launches(bench) * scales_of(bench, 1024) * sizeof(float));
    settle();
    free(host);
}

static void close_sets(const bench_t *bench)
{
    for (size_t s = 0; s < bench->sets; s++) {
        void *all[] = {sets[s].values, sets[s].halves, sets[s].codes, sets[s].sums, sets[s].output};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            cuda->release(0, stream, all[i]);
    }
    cuda->release(0, stream, scales);
    cuda->release(0, stream, strata);
    cuda->release(0, stream, measured);
    TRY_CUDA(cudaStreamSynchronize(stream));
}

/* ---- one launch ---- */

static uint32_t top_of(const step_t *step) { return (1u << step->bits) - 2u; }

/* Sums of so many ranks' codes fit the width. */
static uint32_t parts_of(const step_t *step) { return step->parts > 0 ? step->parts : step->width > step->bits ? 2 : 1; }

static bool is_packed(iq_cuda_form_t form) { return form == IQ_CUDA_CODES || form == IQ_CUDA_TERNARY; }

static void *values_in(const step_t *step, const set_t *set) { return step->type == ISGQ_FLOAT32 ? set->values : set->halves; }

static iq_cuda_source_t source_of(const step_t *step, const set_t *set)
{
    iq_cuda_source_t source = values_of(step->type, values_in(step, set));
    if (step->from == IQ_CUDA_VALUES)
        return source;
    uint32_t most = parts_of(step) * top_of(step);
    source = (iq_cuda_source_t){.form = step->from, .data = is_packed(step->from) ? set->codes : set->sums, .divisor = 1.0f};
    source.width = step->width;
    source.most = most;
    if (step->to == IQ_CUDA_VALUES || step->quantize) {
        source.scales = scales;
        source.top = top_of(step);
        source.zero = (int32_t)most;
    }
    return source;
}

static iq_cuda_target_t target_of(const step_t *step, const set_t *set)
{
    void *data = step->to == IQ_CUDA_VALUES ? set->output : is_packed(step->to) ? set->codes : set->sums;
    return (iq_cuda_target_t){.form = step->to, .type = step->type, .data = data, .width = step->width, .accumulate = step->accumulate};
}

static iq_cuda_grid_t grid_of(const step_t *step, uint64_t call)
{
    return (iq_cuda_grid_t){.used = true,
                            .stochastic = step->stochastic,
                            .top = top_of(step),
                            .scales = scales,
                            .stream = IQ_STREAM_OWN,
                            .seed = 1,
                            .call = call,
                            .strata = step->stratified ? strata : NULL};
}

static void map(const bench_t *bench, const step_t *step, iq_cuda_source_t source, iq_cuda_target_t target, uint64_t call)
{
    iq_cuda_map_t run = {.source = source, .target = target, .through = ISGQ_FLOAT32, .bucket = step->bucket, .count = bench->count, .fault = fault};
    if (step->quantize)
        run.grid = grid_of(step, call);
    TRY(cuda->map(0, stream, &run));
}

static void *message_in(const bench_t *bench, const step_t *step, const set_t *set, unsigned part)
{
    return (char *)set->sums + part * (bench->count * step->bits / 8);
}

/* One rank's step of an allreduce: its own values, the others' codes, and the sum; part 0 is its own. */
static void combine(const bench_t *bench, const step_t *step, const set_t *set, uint64_t call)
{
    uint32_t most = step->parts * top_of(step);
    iq_cuda_combine_t run = {.nparts = step->parts,
                             .part = {.form = IQ_CUDA_CODES, .width = step->bits, .most = top_of(step), .divisor = 1.0f},
                             .own_type = step->type,
                             .through = ISGQ_FLOAT32,
                             .own_grid = grid_of(step, call),
                             .integers = true,
                             .sum = {.form = IQ_CUDA_SUMS, .scales = scales, .top = top_of(step), .zero = (int32_t)most, .divisor = 1.0f},
                             .result = {.form = IQ_CUDA_CODES, .data = step->result ? set->codes : NULL, .width = step->width},
                             .output = {.form = IQ_CUDA_VALUES, .type = step->type, .data = set->output},
                             .bucket = step->bucket,
                             .count = bench->count,
                             .fault = fault};
    for (unsigned part = 0; part < step->parts; part++)
        run.parts[part].data = part == 0 ? values_in(step, set) : message_in(bench, step, set, part - 1);
    TRY(cuda->combine(0, stream, &run));
}

/* Long tensors are measured as a communicator does it, with as much scratch. */
static void measure_moments(const bench_t *bench, const step_t *step, const set_t *set)
{
    iq_cuda_moments_t moments = {.type = step->type,
                                 .src = values_in(step, set),
                                 .bucket = step->bucket,
                                 .count = bench->count,
                                 .clips = step->clips,
                                 .room = scales,
                                 .stride = scales_of(bench, step->bucket),
                                 .scratch = set->sums,
                                 .scratch_bytes = IQ_DEVICE_MOMENTS_BYTES};
    TRY(cuda->moments(0, stream, &moments));
}

static void run_levels(const bench_t *bench, const step_t *step, const set_t *set, uint64_t number, bool encode)
{
    iq_device_t device = {.cuda = cuda, .stream = stream, .fault = fault, .scratch = scales, .scratch_bytes = bench->count * sizeof(float)};
    iq_codec_call_t call = {.datatype = step->type, .op = ISGQ_SUM, .nranks = 2, .seed = 1, .call = number, .device = &device};
    const iq_codec_ops_t *ops = iq_codec_on_device(step->codec->ops);
    if (encode)
        ops->encode(step->codec, &call, (iq_span_t){0, bench->count}, values_in(step, set), set->sums);
    else
        TRY(ops->decode(step->codec, &call, (iq_span_t){0, bench->count}, set->sums, set->output));
    TRY(device.result);
}

static void launch(const bench_t *bench, const step_t *step, size_t number)
{
    const set_t *set = &sets[number % bench->sets];
    iq_cuda_source_t source = source_of(step, set);
    iq_cuda_reduce_t reduce = {.acc_type = ISGQ_FLOAT32, .src_type = step->type, .op = ISGQ_SUM, .src = values_in(step, set), .acc = set->output};
    reduce.count = bench->count;
    if (step->work == COPY)
        TRY(cuda->copy(0, stream, set->output, set->values, bench->count * sizeof(float)));
    else if (step->work == MEASURE)
        TRY(cuda->measure(0, stream, &source, 0, step->bucket, bench->count, measured + number * scales_of(bench, step->bucket)));
    else if (step->work == MOMENTS)
        measure_moments(bench, step, set);
    else if (step->work == REDUCE)
        TRY(cuda->reduce(0, stream, &reduce));
    else if (step->work == COMBINE)
        combine(bench, step, set, number);
    else if (step->codec != NULL)
        run_levels(bench, step, set, number, step->work == ENCODE_LEVELS);
    else
        map(bench, step, source, target_of(step, set), number);
}

/* ---- a row ---- */

/* Words or messages of all ranks, who have the same values. */
static void prepare_sums(const bench_t *bench, const step_t *step, const set_t *set)
{
    step_t encode = *step;
    encode.from = IQ_CUDA_VALUES, encode.to = step->work == COMBINE ? IQ_CUDA_CODES : IQ_CUDA_LANES;
    encode.width = step->work == COMBINE ? step->bits : step->width;
    encode.quantize = true;
    for (unsigned part = 0; part + 1 < parts_of(step); part++) {
        iq_cuda_target_t target = target_of(&encode, set);
        target.data = message_in(bench, step, set, part);
        map(bench, &encode, source_of(&encode, set), target, part);
    }
}

/* Scales, and codes and sums of them as the step expects, in every set. */
static void prepare(const bench_t *bench, const step_t *step)
{
    step_t encode = *step, sum = *step, pack = *step;
    encode.from = IQ_CUDA_VALUES, encode.to = IQ_CUDA_CODES, encode.width = step->bits;
    encode.quantize = true, encode.stochastic = false, encode.accumulate = false;
    sum.from = IQ_CUDA_CODES, sum.to = IQ_CUDA_SUMS, sum.width = step->bits, sum.quantize = false;
    pack.from = IQ_CUDA_SUMS, pack.to = IQ_CUDA_CODES, pack.quantize = false, pack.accumulate = false;
    size_t all = step->work == MEASURE ? launches(bench) : 0;
    TRY(cuda->clear(0, stream, measured, all * scales_of(bench, step->bucket) * sizeof(float)));
    TRY(cuda->clear(0, stream, scales, scales_of(bench, step->bucket) * (step->work == MOMENTS ? 5 : 1) * sizeof(float)));
    for (size_t s = 0; s < bench->sets; s++) {
        const set_t *set = &sets[s];
        iq_cuda_source_t values = values_of(step->type, values_in(step, set));
        TRY(cuda->clear(0, stream, set->output, bench->count * sizeof(float)));
        if (step->work == DECODE_LEVELS)
            run_levels(bench, step, set, s, true);
        if (step->work != MAP && step->work != COMBINE)
            continue;
        TRY(cuda->measure(0, stream, &values, 0, step->bucket, bench->count, scales));
        if (step->work == COMBINE || step->from == IQ_CUDA_LANES || step->to == IQ_CUDA_LANES) {
            prepare_sums(bench, step, set);
            continue;
        }
        if (step->from == IQ_CUDA_TERNARY || step->to == IQ_CUDA_TERNARY) {
            encode.to = IQ_CUDA_TERNARY;
            map(bench, &encode, source_of(&encode, set), target_of(&encode, set), 0);
            continue;
        }
        map(bench, &encode, source_of(&encode, set), target_of(&encode, set), 0);
        for (uint32_t part = 0; part < parts_of(step); part++) {
            sum.accumulate = part > 0;
            map(bench, &sum, source_of(&sum, set), target_of(&sum, set), 0);
        }
        if (step->from == IQ_CUDA_CODES)
            map(bench, &pack, source_of(&pack, set), target_of(&pack, set), 0);
    }
    settle();
}

static size_t form_bytes(const bench_t *bench, const step_t *step, iq_cuda_form_t form)
{
    if (form == IQ_CUDA_CODES)
        return (bench->count * step->width + 7) / 8;
    if (form == IQ_CUDA_TERNARY)
        return (bench->count + 4) / 5;
    if (form == IQ_CUDA_LANES)
        return ((bench->count - 1) / (32 / step->width) + 1) * sizeof(uint32_t);
    return bench->count * (form == IQ_CUDA_VALUES && step->type != ISGQ_FLOAT32 ? 2 : 4);
}

/* Read and written. */
static size_t step_bytes(const bench_t *bench, const step_t *step)
{
    size_t read = form_bytes(bench, step, step->from), f32 = bench->count * sizeof(float);
    size_t scale_bytes = scales_of(bench, step->bucket) * sizeof(float);
    if (step->work == COPY)
        return 2 * f32;
    if (step->codec != NULL)
        return form_bytes(bench, step, IQ_CUDA_VALUES) + step->codec->ops->partial_bytes(step->codec, NULL, (iq_span_t){0, bench->count}, 1);
    if (step->work == REDUCE)
        return read + 2 * f32;
    if (step->work == MEASURE)
        return read + scale_bytes;
    if (step->work == MOMENTS)
        return read + scale_bytes * (step->clips ? 5 : 2);
    if (step->work == COMBINE)
        return 2 * form_bytes(bench, step, IQ_CUDA_VALUES) + (step->parts - 1) * (bench->count * step->bits / 8) + scale_bytes +
               (step->result ? form_bytes(bench, step, IQ_CUDA_CODES) : 0);
    size_t written = form_bytes(bench, step, step->to);
    bool scaled = step->quantize || (step->from != IQ_CUDA_VALUES && step->to == IQ_CUDA_VALUES);
    return read + written * (step->accumulate ? 2 : 1) + (scaled ? scale_bytes : 0);
}

static void run(bench_t *bench, step_t step)
{
    static cudaEvent_t marks[MOST_REPETITIONS + 1];
    float microseconds[MOST_REPETITIONS];
    size_t all = bench->warm + bench->repetitions;
    if (marks[0] == NULL)
        for (size_t i = 0; i <= MOST_REPETITIONS; i++)
            TRY_CUDA(cudaEventCreate(&marks[i]));
    prepare(bench, &step);
    for (size_t i = 0; i < all; i++) {
        TRY_CUDA(cudaEventRecord(marks[i], stream));
        for (size_t s = 0; s < bench->sets; s++)
            launch(bench, &step, i * bench->sets + s);
    }
    TRY_CUDA(cudaEventRecord(marks[all], stream));
    settle();
    for (size_t i = 0; i < bench->repetitions; i++) {
        TRY_CUDA(cudaEventElapsedTime(&microseconds[i], marks[bench->warm + i], marks[bench->warm + i + 1]));
        microseconds[i] *= 1e3f / (float)bench->sets;
    }
    bool scaled = step.work != COPY && step.work != REDUCE;
    bench_row_t row = {.part = "kernel",
                       .name = step.name,
                       .type = step.type == ISGQ_FLOAT32 ? "f32" : "bf16",
                       .rounding = step.quantize ? (step.stratified ? "stratified" : step.stochastic ? "stochastic" : "nearest") : NULL,
                       .bits = step.bits,
                       .width = step.width,
                       .bucket = scaled ? step.bucket : 0,
                       .tensor = scaled && step.bucket == 0,
                       .count = bench->count,
                       .bytes = step_bytes(bench, &step),
                       .rated = true};
    bench_put(bench, &row, microseconds, bench->repetitions);
}

/* ---- all rows ---- */

/* A map whose packed run has a width of `bits`; callers change what differs. */
static step_t map_step(const char *name, iq_cuda_form_t from, iq_cuda_form_t to, isgq_data_type_t type, unsigned bits, size_t bucket)
{
    return (step_t){.name = name, .work = MAP, .from = from, .to = to, .type = type, .bits = bits, .width = bits, .bucket = bucket};
}

static void run_values(bench_t *bench, isgq_data_type_t type, unsigned bits, size_t bucket)
{
    step_t encode = map_step("encode", IQ_CUDA_VALUES, IQ_CUDA_CODES, type, bits, bucket);
    step_t decode = map_step("decode", IQ_CUDA_CODES, IQ_CUDA_VALUES, type, bits, bucket);
    step_t decode_add = decode;
    encode.quantize = true;
    run(bench, encode);
    encode.stochastic = true;
    run(bench, encode);
    run(bench, decode);
    decode_add.name = "decode-add";
    decode_add.accumulate = true;
    run(bench, decode_add);
}

/* What an allreduce with shared scales does between encode and decode: sums of codes, a bit wider for two ranks. */
static void run_sums(bench_t *bench, unsigned bits)
{
    step_t add = map_step("add", IQ_CUDA_CODES, IQ_CUDA_SUMS, ISGQ_FLOAT32, bits, 1024);
    step_t add_own = map_step("add_own", IQ_CUDA_VALUES, IQ_CUDA_SUMS, ISGQ_FLOAT32, bits, 1024);
    step_t store = map_step("store", IQ_CUDA_SUMS, IQ_CUDA_CODES, ISGQ_FLOAT32, bits, 1024);
    step_t finish = store, add_wide = add, store_wide = store;
    step_t decode_wide = map_step("decode", IQ_CUDA_CODES, IQ_CUDA_VALUES, ISGQ_FLOAT32, bits, 1024);
    step_t deliver = map_step("deliver", IQ_CUDA_SUMS, IQ_CUDA_VALUES, ISGQ_FLOAT32, bits, 1024);
    add.accumulate = add_own.accumulate = add_wide.accumulate = true;
    add_own.quantize = add_own.stochastic = true;
    finish.name = "finish";
    finish.quantize = finish.stochastic = true;
    add_wide.width = store_wide.width = decode_wide.width = bits + 1;
    run(bench, add);
    run(bench, add_own);
    run(bench, store);
    run(bench, add_wide);
    run(bench, store_wide);
    run(bench, decode_wide);
    run(bench, finish);
    run(bench, deliver);
}

/* The whole sum of two ranks and of four in one pass, to the output and also to the message for the others; and lanes of two ranks' sums. */
static void run_fused(bench_t *bench, unsigned bits)
{
    step_t sum = {.name = "combine", .work = COMBINE, .type = ISGQ_FLOAT32, .bits = bits, .bucket = 1024};
    step_t encode = map_step("encode-lanes", IQ_CUDA_VALUES, IQ_CUDA_LANES, ISGQ_FLOAT32, bits, 1024);
    step_t decode = map_step("decode-lanes", IQ_CUDA_LANES, IQ_CUDA_VALUES, ISGQ_FLOAT32, bits, 1024);
    sum.quantize = sum.stochastic = encode.quantize = encode.stochastic = true;
    encode.width = decode.width = bits + 1;
    for (sum.parts = 2; sum.parts <= 4; sum.parts *= 2) {
        sum.width = bits + sum.parts / 2;
        sum.name = sum.parts == 2 ? "one-shot-2" : "one-shot-4";
        sum.result = false;
        run(bench, sum);
        sum.name = sum.parts == 2 ? "two-shot-2" : "two-shot-4";
        sum.result = true;
        run(bench, sum);
    }
    run(bench, encode);
    run(bench, decode);
}

/* What families beside uniform have of their own. */
static void run_families(bench_t *bench)
{
    step_t stratified = map_step("encode", IQ_CUDA_VALUES, IQ_CUDA_CODES, ISGQ_FLOAT32, 4, 1024);
    step_t encode = map_step("encode-three", IQ_CUDA_VALUES, IQ_CUDA_TERNARY, ISGQ_FLOAT32, 2, 0);
    stratified.quantize = stratified.stochastic = stratified.stratified = encode.quantize = encode.stochastic = true;
    run(bench, stratified);
    run(bench, encode);
    run(bench, map_step("decode-three", IQ_CUDA_TERNARY, IQ_CUDA_VALUES, ISGQ_FLOAT32, 2, 0));
    for (size_t bucket = 0; bucket <= 1024; bucket += 1024) {
        run(bench, (step_t){.name = "norms", .work = MOMENTS, .type = ISGQ_FLOAT32, .bucket = bucket});
        run(bench, (step_t){.name = "deviations", .work = MOMENTS, .type = ISGQ_FLOAT32, .bucket = bucket, .clips = true});
    }
}

/* A message and back, with each family's own settings. */
static void run_levels_of_families(bench_t *bench)
{
    static const char *const names[] = {"qsgd", "natural", "onebit", "ef-sign", "bingrad-b", "bingrad-pb", "orq-3", "orq-5", "orq-9", "drive", "eden", "mx"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char name[32];
        const iq_family_t *family = iq_families;
        while (strcmp(family->name, names[i]) != 0)
            family++;
        const iq_codec_t *codec = &family->codec;
        step_t step = {.name = name, .type = ISGQ_FLOAT32, .bits = codec->bits, .width = codec->bits, .bucket = codec->bucket, .codec = codec};
        for (step.work = ENCODE_LEVELS; step.work <= DECODE_LEVELS; step.work++) {
            snprintf(name, sizeof(name), "%s %s", step.work == ENCODE_LEVELS ? "encode" : "decode", names[i]);
            run(bench, step);
        }
    }
}

void bench_kernels(bench_t *bench)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_BFLOAT16};
    cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    if (cuda == NULL)
        bench_die(__FILE__, __LINE__, "iq_module_load", isgq_get_last_error());
    TRY(cuda->warm_up(0));
    TRY(cuda->stream_create(0, &stream));
    TRY_CUDA(cudaMallocHost((void **)&fault, sizeof(*fault)));
    *fault = IQ_CUDA_NO_FAULT;
    open_sets(bench);
    bench_head(bench, "kernel");
    run(bench, (step_t){.name = "copy", .work = COPY, .type = ISGQ_FLOAT32});
    for (size_t t = 0; t < 2; t++) {
        run(bench, (step_t){.name = "reduce", .work = REDUCE, .type = types[t]});
        run(bench, (step_t){.name = "measure", .work = MEASURE, .type = types[t], .bucket = 1024});
        run(bench, (step_t){.name = "measure", .work = MEASURE, .type = types[t]});
    }
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        run_values(bench, ISGQ_FLOAT32, bits, 1024);
        run_values(bench, ISGQ_FLOAT32, bits, 0);
        run_values(bench, ISGQ_BFLOAT16, bits, 1024);
        run_sums(bench, bits);
        run_fused(bench, bits);
    }
    run_families(bench);
    run_levels_of_families(bench);
    run(bench, (step_t){.name = "copy again", .work = COPY, .type = ISGQ_FLOAT32});
    close_sets(bench);
    cuda->stream_destroy(0, stream);
    TRY_CUDA(cudaFreeHost(fault));
}
