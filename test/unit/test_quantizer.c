/* SPDX-License-Identifier: Apache-2.0 */
/* Quantizer texts: good ones and their canonical form, bad ones and their sentences, and what `isgq` means for a number of ranks.
 * */
#include "support/check_main.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coder.h"
#include "codec/dense.h"
#include "codec/quantizer.h"
#include "isgqcoll_ext.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static isgq_quantizer_t make(const char *text)
{
    isgq_quantizer_t quantizer = NULL;
    isgq_result_t result = isgq_quantizer_create(&quantizer, text);
    ck_assert_msg(result == ISGQ_SUCCESS, "'%s': %s", text, iq_last_error());
    return quantizer;
}

/* ---- texts ---- */

static const struct {
    const char *text, *canonical;
} good[] = {
    {"none", "none"},
    {"fp16", "fp16"},
    {"bf16", "bf16"},
    {"uniform", "uniform:bits=4,rounding=stochastic,scale=shared,bucket=1024,sum=auto"},
    {"uniform:bits=8", "uniform:bits=8,rounding=stochastic,scale=shared,bucket=1024,sum=auto"},
    {"uniform:sum=exact,bucket=tensor,bits=1", "uniform:bits=1,rounding=stochastic,scale=shared,bucket=tensor,sum=exact"},
    {"uniform:bucket=40,rounding=nearest,sum=requantized",
     "uniform:bits=4,rounding=nearest,scale=shared,bucket=40,sum=requantized"},
    {"uniform:scale=local,bits=02", "uniform:bits=2,rounding=stochastic,scale=local,bucket=1024"},
    {"uniform:scale=local,sum=requantized", "uniform:bits=4,rounding=stochastic,scale=local,bucket=1024"},
    {"uniform:sum=auto,scale=local", "uniform:bits=4,rounding=stochastic,scale=local,bucket=1024"},
    {"factor", "factor:width=4/4,rounding=stochastic"},
    {"factor:width=8", "factor:width=8/8,rounding=stochastic"},
    {"factor:width=2/8,rounding=nearest", "factor:width=2/8,rounding=nearest"},
    {"factor:bits=2.50", "factor:bits=2.5,rounding=stochastic"},
    {"factor:bits=2,rounding=dither", "factor:bits=2,rounding=dither"},
    {"factor:coding=range,bits=2", "factor:bits=2,rounding=stochastic,coding=range"},
    {"isgq-mvu:coding=range", "isgq-mvu:levels=4,coding=range"},
    {"isgq:coding=none", "isgq:bits=4,coding=none"},
    {"isgq:coding=none,bits=1", "isgq:bits=1,coding=none"},
    {"isgq:bits=8.000000,coding=none", "isgq:bits=8,coding=none"},
    {"isgq:bits=3.141593,coding=none", "isgq:bits=3.141593,coding=none"},
    {"isgq:bits=7.999999,coding=none", "isgq:bits=7.999999,coding=none"},
    {"uniform:rounding=stratified", "uniform:bits=4,rounding=stratified,scale=shared,bucket=1024,sum=auto"},
    {"global-qsgd", "global-qsgd:levels=127,norm=max,bucket=tensor"},
    {"global-qsgd:norm=l2,bucket=64,levels=3", "global-qsgd:levels=3,norm=l2,bucket=64"},
    {"global-qsgd-exp", "global-qsgd-exp:bits=8,bucket=tensor"},
    {"terngrad", "terngrad:clip=2.5,bucket=tensor"},
    {"terngrad:clip=0", "terngrad:clip=0,bucket=tensor"},
    {"intsgd", "intsgd:bits=8"},
    {"qsgd", "qsgd:bits=4,norm=l2,bucket=512,feedback=off"},
    {"qsgd:feedback=weighted", "qsgd:bits=4,norm=l2,bucket=512,feedback=weighted"},
    {"onebit", "onebit:bucket=2048,feedback=full"},
    {"uniform:feedback=off", "uniform:bits=4,rounding=stochastic,scale=shared,bucket=1024,sum=auto"},
    {"uniform:bits=2,feedback=full", "uniform:bits=2,rounding=stochastic,scale=shared,bucket=1024,sum=auto,feedback=full"},
    {"ef-sign:bucket=8192", "ef-sign:bucket=8192,feedback=full"},
    {"bingrad-b", "bingrad-b:bucket=2048,feedback=off"},
    {"bingrad-pb:feedback=full", "bingrad-pb:bucket=2048,feedback=full"},
    {"orq-3", "orq-3:bucket=2048,feedback=off"},
    {"orq-5:bucket=512", "orq-5:bucket=512,feedback=off"},
    {"orq-9", "orq-9:bucket=2048,feedback=off"},
    {"natural", "natural"},
    {"drive", "drive:bucket=1024,feedback=off"},
    {"eden:bits=2", "eden:bits=2,bucket=1024,feedback=off"},
    {"mx", "mx:bits=8,rounding=stochastic,feedback=off"},
    {"isgq-mse", "isgq-mse:levels=4"},
    {"isgq-mvu:levels=2", "isgq-mvu:levels=2"},
    {"isgq-dithered:width=2/3", "isgq-dithered:width=2/3"},
    {"dense=orq-3;factored=isgq-mse", "dense=orq-3:bucket=2048,feedback=off;factored=isgq-mse:levels=4"},
    {"dense=none;factored=factor:width=4", "dense=none;factored=factor:width=4/4,rounding=stochastic"},
    {"factored=isgq:coding=none;dense=fp16", "dense=fp16;factored=isgq:bits=4,coding=none"},
    {"dense=isgq:coding=none;factored=isgq:bits=4.0,coding=none", "isgq:bits=4,coding=none"},
    {"dense=isgq:bits=2,coding=none;factored=factor:bits=2", "dense=isgq:bits=2,coding=none;factored=factor:bits=2,rounding=stochastic"},
    {"dense=isgq:bits=2,coding=none;factored=isgq:bits=3,coding=none",
     "dense=isgq:bits=2,coding=none;factored=isgq:bits=3,coding=none"},
    {"dense=uniform:bits=3", "uniform:bits=3,rounding=stochastic,scale=shared,bucket=1024,sum=auto"},
    {"dense=isgq:coding=none", "dense=isgq:bits=4,coding=none"},
    {"factored=isgq:coding=none", "factored=isgq:bits=4,coding=none"},
};

START_TEST(good_texts_have_one_form)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(good); i++) {
        isgq_quantizer_t quantizer = make(good[i].text);
        ck_assert_str_eq(isgqx_quantizer_text(quantizer), good[i].canonical);
        isgq_quantizer_t again = make(isgqx_quantizer_text(quantizer));
        ck_assert_str_eq(isgqx_quantizer_text(again), good[i].canonical);
        isgq_quantizer_destroy(quantizer);
        isgq_quantizer_destroy(again);
    }
    ck_assert_str_eq(isgqx_quantizer_text(NULL), "");
}
END_TEST

static const struct {
    const char *text, *sentence; /* a part of the error text */
} bad[] = {
    {"", "0 characters"},
    {"unifrom", "'unifrom'; did you mean 'uniform'?"},
    {"Isgq", "did you mean 'isgq'"},
    {"xyzzy", "unknown quantizer 'xyzzy'"},
    {" none", "' none'"},
    {"none:bits=4", "unknown option 'bits'"},
    {"none:", "unknown option ''"},
    {"uniform:bit=4", "'bit'; did you mean 'bits'?"},
    {"uniform:bits=4,", "unknown option ''"},
    {"uniform:bits", "'bits' needs a value: 1 to 8"},
    {"uniform:bits=", "needs a value"},
    {"uniform:bits=0", "bits is 1 to 8, not '0'"},
    {"uniform:bits=9", "bits is 1 to 8, not '9'"},
    {"uniform:bits=2.5", "not '2.5'"},
    {"uniform:bits=-1", "not '-1'"},
    {"uniform:bits=4x", "not '4x'"},
    {"uniform:bits=99999999999999999999999", "bits is 1 to 8"},
    {"uniform:bits=4,bits=4", "given twice"},
    {"uniform:rounding=up", "rounding is nearest, stochastic or stratified, not 'up'"},
    {"uniform:scale=global", "scale is shared or local, not 'global'"},
    {"uniform:bucket=0", "bucket is a multiple of 8 from 32 on, or tensor"},
    {"uniform:bucket=24", "not '24'"},
    {"uniform:bucket=33", "not '33'"},
    {"uniform:bucket=99999999999999999999999", "not '9999"},
    {"uniform:sum=yes", "sum is exact, requantized or auto"},
    {"uniform:scale=local,sum=exact", "sum=exact needs scale=shared"},
    {"factor:width=1", "width is 2 to 8"},
    {"factor:width=4/9", "not '4/9'"},
    {"factor:width=4/", "not '4/'"},
    {"factor:width=/4", "not '/4'"},
    {"factor:width=4/4/4", "not '4/4/4'"},
    {"factor:width=00004/4", "not '00004/4'"},
    {"factor:width=4,bits=4", "exclude each other"},
    {"isgq:bits=0.5", "bits is 1 to 8, fractions allowed, not '0.5'"},
    {"isgq:bits=8.1", "not '8.1'"},
    {"isgq:bits=4.", "not '4.'"},
    {"isgq:bits=.5", "not '.5'"},
    {"isgq:bits=4.1234567", "not '4.1234567'"},
    {"isgq:bits=1e0", "not '1e0'"},
    {"isgq:bits=nan", "not 'nan'"},
    {"isgq:bucket=64", "unknown option 'bucket'"},
    {"isgq:bits=2,nmse=0.1", "bits and nmse exclude each other"},
    {"isgq:nmse=0", "nmse is 0.000001 to 1, not '0'"},
    {"isgq:nmse=1.5", "not '1.5'"},
    {"uniform:scale=local,rounding=stratified", "rounding=stratified needs scale=shared"},
    {"global-qsgd:levels=128", "levels is 1 to 127, not '128'"},
    {"global-qsgd-exp:bits=2", "bits is 3 to 8, not '2'"},
    {"mx:bits=5", "bits is 4 or 8, not '5'"},
    {"eden:bits=5", "bits is 1 to 4, not '5'"},
    {"orq-3:bucket=tensor", "bucket is a multiple of 32 from 32 to 8192"},
    {"orq-3:bucket=8224", "not '8224'"},
    {"terngrad:clip=-1", "not '-1'"},
    {"isgq-mse:levels=3", "levels is 2, 4 or 8, not '3'"},
    {"orq-4", "did you mean 'orq-3'?"},
    {"dense=factor", "'factor' is for factors"},
    {"factored=none", "'none' is for dense calls"},
    {"dense=none;dense=none", "'dense' is given twice"},
    {"dense=none;", "unknown part ''"},
    {"dense=none;factord=isgq", "unknown part 'factord=isgq'"},
    {"none;factored=isgq", "unknown part 'none'"},
    {"dense=", "unknown quantizer ''"},
    {"dense=nonne;factored=isgq", "did you mean 'none'"},
};

START_TEST(bad_texts_get_a_sentence)
{
    char longest[IQ_QUANTIZER_TEXT_BYTES + 1];
    isgq_quantizer_t quantizer = NULL;
    for (size_t i = 0; i < IQ_ARRAY_SIZE(bad); i++) {
        ck_assert_msg(isgq_quantizer_create(&quantizer, bad[i].text) == ISGQ_ERR_INVALID_ARGUMENT, "'%s'", bad[i].text);
        ck_assert_msg(strstr(iq_last_error(), bad[i].sentence) != NULL, "'%s': %s", bad[i].text, iq_last_error());
    }
    memset(longest, 'x', sizeof(longest));
    longest[IQ_QUANTIZER_TEXT_BYTES] = '\0';
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, longest), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, longest + 1), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_create(NULL, "none"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_ptr_null(quantizer);
}
END_TEST

START_TEST(levels_are_those_there_are)
{
    isgq_quantizer_t quantizer = NULL;
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "orq-4"), ISGQ_ERR_INVALID_ARGUMENT);
    quantizer = make("powersgd");
    ck_assert_str_eq(isgqx_quantizer_text(quantizer), "powersgd:rank=4,feedback=full");
    isgq_quantizer_destroy(quantizer);
    quantizer = make("powersgd:feedback=off,rank=64");
    ck_assert_str_eq(isgqx_quantizer_text(quantizer), "powersgd:rank=64,feedback=off");
    isgq_quantizer_destroy(quantizer);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "powersgd:rank=65"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "powersgd:rank=0"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "powersgd:feedback=weighted"), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

/* ---- settings ---- */

START_TEST(settings_follow_the_text)
{
    iq_codec_t codec;
    iq_factor_spec_t spec;
    bool dense_only;
    isgq_quantizer_t quantizer = make("uniform:bits=3,rounding=nearest,scale=local,bucket=64");
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, false, &codec), ISGQ_SUCCESS);
    ck_assert(codec.ops == &iq_codec_uniform_ops && codec.bits == 3 && codec.bucket == 64 && codec.rounding == IQ_ROUND_NEAREST &&
              !codec.shared && codec.exact == 0);
    ck_assert_int_eq(iq_quantizer_factored(quantizer, false, &spec, &dense_only), ISGQ_SUCCESS);
    ck_assert(dense_only);
    isgq_quantizer_destroy(quantizer);

    quantizer = make("dense=bf16;factored=factor:width=2/8,rounding=nearest");
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, false, &codec), ISGQ_SUCCESS);
    ck_assert_ptr_eq(codec.ops, &iq_codec_bf16_ops);
    ck_assert_int_eq(iq_quantizer_factored(quantizer, false, &spec, &dense_only), ISGQ_SUCCESS);
    ck_assert(!dense_only && spec.width_x == 2 && spec.width_delta == 8 && spec.nearest && spec.budget_bits == 0.0);
    isgq_quantizer_destroy(quantizer);

    quantizer = make("factor");
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, false, &codec), ISGQ_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "factored calls only"));
    isgq_quantizer_destroy(quantizer);

    quantizer = make("isgq:bits=2.25,coding=none");
    ck_assert_int_eq(iq_quantizer_factored(quantizer, false, &spec, &dense_only), ISGQ_SUCCESS);
    ck_assert(!dense_only && spec.budget_bits == 2.25 && spec.width_x == 0 && !spec.nearest);
    iq_quantizer_retain(quantizer);
    isgq_quantizer_destroy(quantizer);
    ck_assert_str_eq(isgqx_quantizer_text(quantizer), "isgq:bits=2.25,coding=none");
    isgq_quantizer_destroy(quantizer);
    isgq_quantizer_destroy(NULL);
}
END_TEST

/* Bits an element, mean of both phases, from the messages' own sizes (plus the agreement on shared scales). */
static double measured_bits(const iq_codec_t *codec, int nranks)
{
    enum { N = 1 << 20 };
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = nranks};
    iq_span_t span = {0, N};
    size_t scales = codec->shared ? 2 * sizeof(float) * (N / codec->bucket) : 0;
    size_t bytes = codec->ops->partial_bytes(codec, &call, span, 1) + codec->ops->result_bytes(codec, &call, span) + scales;
    return 8.0 * (double)bytes / 2 / N;
}

START_TEST(isgq_spends_its_budget)
{
    for (int nranks = 1; nranks <= 64; nranks++) {
        double last_error = INFINITY;
        for (unsigned quarter = 4; quarter <= 32; quarter++) {
            char text[48];
            iq_codec_t codec;
            snprintf(text, sizeof(text), "isgq:bits=%u.%02u,coding=none", quarter / 4, quarter % 4 * 25);
            isgq_quantizer_t quantizer = make(text);
            ck_assert_int_eq(iq_quantizer_dense(quantizer, nranks, false, &codec), ISGQ_SUCCESS);
            isgq_quantizer_destroy(quantizer);
            double levels = codec.bits == 1 ? 0.5 : ldexp(1.0, (int)codec.bits - 1) - 1, bits = measured_bits(&codec, nranks);
            double error = (codec.exact ? 1 : 2) / (levels * levels);
            ck_assert_msg(bits <= quarter / 4.0 + 0.05, "%s, %d ranks: %g bits", text, nranks, bits);
            ck_assert_msg(error <= last_error, "%s, %d ranks: more bits, more error", text, nranks);
            last_error = error;
        }
    }
}
END_TEST

START_TEST(isgq_prefers_what_errs_less)
{
    iq_codec_t codec;
    isgq_quantizer_t quantizer = make("isgq:bits=4,coding=none");
    iq_quantizer_dense(quantizer, 4, false, &codec); /* 4 and 4 requantized, not 3 and 5 exact */
    ck_assert(codec.bits == 4 && codec.exact == 0 && codec.shared && codec.bucket == 1024 &&
              codec.rounding == IQ_ROUND_STOCHASTIC);
    isgq_quantizer_destroy(quantizer);
    quantizer = make("isgq:bits=4.6,coding=none");
    iq_quantizer_dense(quantizer, 2, false, &codec); /* 4 and 5 exact */
    ck_assert(codec.bits == 4 && codec.exact == 1);
    isgq_quantizer_destroy(quantizer);
}
END_TEST

/* Without a coder the same texts mean uniform codes, and an error cannot be asked for. On devices a budget of bits does in any build, unless the text
 * insists, which it then says in its canonical form; both halves must, to be one. */
START_TEST(isgq_is_coded_where_there_is_a_coder)
{
    iq_codec_t codec;
    isgq_quantizer_t quantizer = make("isgq:bits=2.5");
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, false, &codec), ISGQ_SUCCESS);
    ck_assert_str_eq(isgqx_quantizer_text(quantizer), iq_coder_present() ? "isgq:bits=2.5" : "isgq:bits=2.5,coding=none");
    ck_assert_ptr_eq(codec.ops, iq_coder_present() ? &iq_codec_coded_ops : &iq_codec_uniform_ops);
    if (iq_coder_present())
        ck_assert(codec.budget_bits == 2.5 && codec.budget_nmse == 0.0 && codec.shared && codec.rounding == IQ_ROUND_STRATIFIED);
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, true, &codec), ISGQ_SUCCESS);
    ck_assert_ptr_eq(codec.ops, &iq_codec_uniform_ops);
    isgq_quantizer_destroy(quantizer);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "isgq:nmse=0.010"), iq_coder_present() ? ISGQ_SUCCESS : ISGQ_ERR_UNSUPPORTED);
    if (!iq_coder_present())
        return;
    ck_assert_str_eq(isgqx_quantizer_text(quantizer), "isgq:nmse=0.01");
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, false, &codec), ISGQ_SUCCESS);
    ck_assert(codec.budget_bits == 0.0 && codec.budget_nmse == 0.01);
    ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, true, &codec), ISGQ_SUCCESS);
    ck_assert(codec.ops == &iq_codec_coded_ops && codec.budget_nmse == 0.01);
    isgq_quantizer_destroy(quantizer);
    static const char *const insisting[][2] = {
        {"isgq:coding=zstd,bits=2.5", "isgq:bits=2.5,coding=zstd"},
        {"isgq:nmse=0.01,coding=zstd", "isgq:nmse=0.01"},
        {"dense=isgq:coding=zstd;factored=isgq", "dense=isgq:bits=4,coding=zstd;factored=isgq:bits=4"},
        {"dense=isgq:coding=zstd;factored=isgq:coding=zstd", "isgq:bits=4,coding=zstd"},
    };
    for (size_t i = 0; i < IQ_ARRAY_SIZE(insisting); i++) {
        iq_factor_spec_t spec;
        bool dense_only;
        quantizer = make(insisting[i][0]);
        ck_assert_str_eq(isgqx_quantizer_text(quantizer), insisting[i][1]);
        ck_assert_int_eq(iq_quantizer_dense(quantizer, 4, true, &codec), ISGQ_SUCCESS);
        ck_assert_ptr_eq(codec.ops, &iq_codec_coded_ops);
        ck_assert_int_eq(iq_quantizer_moved(quantizer, true, &codec), ISGQ_SUCCESS);
        ck_assert_ptr_eq(codec.ops, &iq_codec_uniform_ops);
        bool coded_rows = i != 2; /* rows are not coded on devices: by a budget of error, or where the text insists */
        ck_assert_int_eq(iq_quantizer_factored(quantizer, true, &spec, &dense_only), coded_rows ? ISGQ_ERR_UNSUPPORTED : ISGQ_SUCCESS);
        iq_quantizer_product(quantizer, 4, true, &codec); /* nor do products go to hosts */
        ck_assert_ptr_ne(codec.ops, &iq_codec_coded_ops);
        isgq_quantizer_destroy(quantizer);
    }
}
END_TEST

START_TEST(products_have_a_codec_of_their_own)
{
    static const struct {
        const char *text;
        const iq_codec_ops_t *ops;
        unsigned bits;
    } products[] = {
        {"isgq:bits=1,coding=none", &iq_codec_uniform_ops, 8},
        {"factor", &iq_codec_none_ops, 0},
        {"fp16", &iq_codec_fp16_ops, 0},
        {"dense=uniform:bits=3;factored=isgq", &iq_codec_uniform_ops, 3},
        {"dense=powersgd;factored=isgq", &iq_codec_none_ops, 0},
    };
    for (size_t i = 0; i < IQ_ARRAY_SIZE(products); i++) {
        iq_codec_t codec;
        isgq_quantizer_t quantizer = make(products[i].text);
        iq_quantizer_product(quantizer, 4, false, &codec);
        ck_assert(codec.ops == products[i].ops && codec.bits == products[i].bits);
        isgq_quantizer_destroy(quantizer);
    }
}
END_TEST

START_TEST(max_bytes_bound_a_message)
{
    static const struct {
        const char *text;
        isgq_data_type_t datatype;
        size_t count, bytes;
    } sizes[] = {
        {"none", ISGQ_FLOAT64, 100, 800},
        {"fp16", ISGQ_FLOAT32, 100, 200},
        {"bf16", ISGQ_FLOAT64, 100, 800}, /* travels as it is */
        {"uniform:bits=4", ISGQ_INT8, 100, 100},
        {"uniform:bits=4", ISGQ_FLOAT32, 0, 0},
        {"uniform:bits=4", ISGQ_FLOAT32, 1025, 129 * 4 + 2 * 4},
        {"uniform:bits=4", ISGQ_FLOAT32, 1026, 129 * 4 + 3 * 4}, /* it may start within a bucket */
        {"uniform:bits=3,scale=local,bucket=64", ISGQ_FLOAT16, 100, 13 * 3 + 3 * 4},
        {"isgq:bits=5,coding=none", ISGQ_FLOAT32, 1024, 128 * 5 + 2 * 4},
    };
    size_t bytes = 77;
    for (size_t i = 0; i < IQ_ARRAY_SIZE(sizes); i++) {
        isgq_quantizer_t quantizer = make(sizes[i].text);
        ck_assert_int_eq(isgq_quantizer_max_bytes(quantizer, sizes[i].datatype, sizes[i].count, &bytes), ISGQ_SUCCESS);
        ck_assert_msg(bytes == sizes[i].bytes, "%s: %zu", sizes[i].text, bytes);
        isgq_quantizer_destroy(quantizer);
    }
    isgq_quantizer_t quantizer = make("factor");
    bytes = 77;
    ck_assert_int_eq(isgq_quantizer_max_bytes(quantizer, ISGQ_FLOAT32, 5, &bytes), ISGQ_ERR_UNSUPPORTED);
    isgq_quantizer_destroy(quantizer);
    quantizer = make("none");
    ck_assert_int_eq(isgq_quantizer_max_bytes(quantizer, ISGQ_FLOAT64, SIZE_MAX / 2, &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_max_bytes(quantizer, (isgq_data_type_t)10, 5, &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_max_bytes(quantizer, ISGQ_FLOAT32, 5, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_quantizer_max_bytes(NULL, ISGQ_FLOAT32, 5, &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_uint_eq(bytes, 77);
    isgq_quantizer_destroy(quantizer);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("quantizer");
    TCase *tcase = tcase_create("texts");
    tcase_add_test(tcase, good_texts_have_one_form);
    tcase_add_test(tcase, bad_texts_get_a_sentence);
    tcase_add_test(tcase, levels_are_those_there_are);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("settings");
    tcase_add_test(tcase, settings_follow_the_text);
    tcase_add_test(tcase, isgq_spends_its_budget);
    tcase_add_test(tcase, isgq_prefers_what_errs_less);
    tcase_add_test(tcase, isgq_is_coded_where_there_is_a_coder);
    tcase_add_test(tcase, products_have_a_codec_of_their_own);
    tcase_add_test(tcase, max_bytes_bound_a_message);
    suite_add_tcase(suite, tcase);
    return suite;
}
