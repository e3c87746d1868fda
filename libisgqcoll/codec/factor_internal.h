/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the factored codec share: the state between prepare and encode. Arithmetic on rows is in
 * kernels/factor_rows.h. */
#ifndef ISGQ_CODEC_FACTOR_INTERNAL_H
#define ISGQ_CODEC_FACTOR_INTERNAL_H

#include "codec/bit_coder.h"
#include "codec/factor.h"

/* Rows of all ranks together: 2^23 * 255 * 127 * 15 * 2^(J-1) < 2^53, so that every sum is exact in int64 and in double. */
#define IQ_FACTOR_MAX_ROWS ((size_t)1 << 23)

/* Rows that are dithered or coded have a blob of their own, version 2. */
static inline bool iq_factor_is_fine(const iq_factor_spec_t *spec)
{
    return spec->method == IQ_FACTOR_ROWS && (spec->dither || spec->coded || spec->svd);
}

/* With a budget and the coder, packed codes may have so many times the budget's bytes. */
#define IQ_FACTOR_PACKED_SHARE 2

/* Bytes that a row is expected to take, where codes are dithered or coded. */
typedef struct iq_factor_rate {
    float x[IQ_FACTOR_WIDTHS], delta[IQ_FACTOR_WIDTHS]; /* the codes, at each width */
    float planes_x, planes_delta;                       /* zero planes of this row and of all before */
    float bytes;                                        /* all of the row, as chosen */
    double energy;                                      /* expected, of its rounded product */
} iq_factor_rate_t;

/* The state's parts; `order` lists the rows by growing `bytes`. */
typedef struct iq_factor_facts {
    bool finite, unsigned_x;
    bool bias_apart;     /* rows=svd: rows with X have no bias */
    size_t budget_batch; /* rows that the budget is for */
    size_t svd_rows;
} iq_factor_facts_t;

/* Does this row speak for the bias, in a call that wants it? */
static inline bool iq_factor_has_bias(const iq_factor_facts_t *facts, bool want_bias, const iq_factor_row_t *row)
{
    return want_bias && !(facts->bias_apart && row->x.max_abs > 0);
}

/* The frame for one row: without a bias its weight B is on no grid. */
static inline iq_factor_frame_t iq_factor_frame_of_row(const iq_factor_facts_t *facts, const iq_factor_frame_t *frame,
                                                       const iq_factor_row_t *row)
{
    iq_factor_frame_t own = *frame;
    own.want_bias = iq_factor_has_bias(facts, frame->want_bias, row);
    return own;
}

typedef struct iq_factor_state {
    iq_factor_facts_t *facts;
    iq_factor_row_t *rows;
    uint32_t *order;
    uint8_t *codes;          /* scratch, one row */
    int16_t *symbols;        /* scratch, one row */
    iq_bit_model_t *columns; /* m, then n */
    iq_factor_rate_t *rates; /* of the rows */
    struct iq_factor_whole *whole;
    float *svd_x, *svd_delta; /* rows=svd: the rows that are sent instead */
    double *svd_scratch;
    uint16_t *all_symbols; /* isgq-mse, isgq-mvu: batch * m, then batch * n */
} iq_factor_state_t;

iq_factor_state_t iq_factor_state(const iq_factor_spec_t *spec, const iq_factor_call_t *call, void *memory);

static inline iq_factor_shape_t iq_factor_shape(const iq_factor_call_t *call)
{
    return (iq_factor_shape_t){call->m, call->n, call->want_bias};
}

/* Bytes that the budget leaves for rows, and the smallest blob a budget may ask for. */
size_t iq_factor_budget(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t batch);

/* rows=svd: other rows of f32 to state->svd_x and svd_delta, and their number to the facts. The call that sends them. */
void iq_factor_decompose(const iq_factor_call_t *call, const void *x, const void *delta, iq_factor_state_t *state);
size_t iq_factor_svd_scratch(const iq_factor_call_t *call);
iq_factor_call_t iq_factor_svd_call(const iq_factor_call_t *call, const iq_factor_state_t *state);

/* Choose widths and keep probabilities of all rows so that the expected bytes meet the budget. */
void iq_factor_allot(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                     iq_factor_state_t *state);

/* The same where codes are coded or dithered, and for an error to be met. */
void iq_factor_allot_fine(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                          iq_factor_state_t *state);

/* What rounding a row of `side` would add at every width, in squares of its largest value. */
void iq_factor_measure_variances(isgq_data_type_t datatype, const void *factor, size_t first, size_t count, bool is_unsigned,
                                 iq_factor_side_t *side);

/* Budgets: the widths once more, of rows that turn out to be light when the grid is known. */
void iq_factor_fit_rows(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const iq_factor_frame_t *frame, iq_factor_state_t *state);

/* Which rows are sent: they lie on a line, each as long as it is likely; points one apart, the first at random, choose. */
typedef struct iq_factor_sampler {
    const iq_factor_state_t *state;
    const iq_factor_frame_t *frame;
    size_t batch, index, row;
    iq_factor_form_t option[2];
    int form, forms;
    uint32_t point;
    uint64_t start;
} iq_factor_sampler_t;

iq_factor_sampler_t iq_factor_sampler_of(const iq_factor_call_t *call, const iq_factor_state_t *state, const iq_factor_frame_t *frame);

/* The next row and its form; false after the last. */
bool iq_factor_sample(iq_factor_sampler_t *sampler, size_t *row, iq_factor_form_t *form);

/* Blobs of version 2. */
size_t iq_factor_encode_fine(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                             void *memory, const float peaks[2], void *blob, iq_factor_rows_t *own);
isgq_result_t iq_factor_decode_fine(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, const void *blob, size_t bytes,
                                    iq_factor_rows_t *rows);

/* Codes of a row of a blob of version 2, `place` its number there, to values: multiples of 2^-fraction (iq_factor_fraction). */
void iq_factor_to_values(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, bool is_x, size_t place, int16_t *codes);

/* The methods of factor_whole.h. */
void iq_factor_prepare_whole(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                             iq_factor_state_t *state, float peaks[2]);
size_t iq_factor_encode_whole(const iq_factor_spec_t *spec, const iq_factor_call_t *call, void *memory, const float peaks[2], void *blob);
isgq_result_t iq_factor_decode_whole(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, const void *blob, size_t bytes,
                                     iq_factor_rows_t *rows);

/* Bytes of the largest blob, and of the symbols of so many rows if they are not coded. */
size_t iq_factor_whole_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call);
size_t iq_factor_whole_packed(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t rows);

/* What is left of a blob. */
typedef struct iq_factor_reader {
    const uint8_t *at, *end;
} iq_factor_reader_t;

/* The next `bytes` bytes, NULL if the blob ends before. */
static inline const uint8_t *iq_factor_take(iq_factor_reader_t *reader, size_t bytes)
{
    const uint8_t *at = reader->at;
    if (bytes > (size_t)(reader->end - at))
        return NULL;
    reader->at += bytes;
    return at;
}

/* The header that all versions share; `also`: flags that this version may have besides. In versions after the first it tells the blob's
 * length, modulo 2^16. */
isgq_result_t iq_factor_read_header(const iq_factor_call_t *call, unsigned version, unsigned also, const iq_factor_rows_t *rows,
                                    iq_factor_reader_t *reader, unsigned *flags, size_t *count);
void iq_factor_write_header(unsigned version, unsigned flags, size_t count, size_t bytes, uint8_t *out);

/* C, and B if the call wants the bias, of a row. 0: absent. */
bool iq_factor_read_weights(const iq_factor_call_t *call, const uint8_t *header, iq_factor_rows_t *rows, size_t row);

/* Ones among the bits. */
size_t iq_factor_count_bits(const uint8_t *plane, size_t bytes);

/* Elements first..first+count-1 as float; `count` at most IQ_FACTOR_CHUNK. `memory` need not be aligned. */
void iq_factor_load(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values);

/* The same, then zeros up to a multiple of IQ_FACTOR_LANES, which is returned. */
size_t iq_factor_load_lanes(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values);

/* The largest value that a decoder of this quantizer makes of a code, on either side of 0. */
int32_t iq_factor_most_code(const iq_factor_spec_t *spec, const iq_factor_call_t *call, bool is_x);

#endif
