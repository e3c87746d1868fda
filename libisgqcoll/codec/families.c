/* SPDX-License-Identifier: Apache-2.0 */
/* The families of quantizers: see families.h. First their options, then the table. */
#include "codec/families.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coder.h"
#include "codec/dense.h"
#include "codec/levels.h"
#include "codec/option_values.h"
#include "codec/powersgd.h"
#include "codec/quantizer_text.h"
#include "kernels/gemm.h"

#include <stdio.h>
#include <string.h>

/* ---- options of dense codecs ---- */

static bool set_bits(iq_recipe_t *recipe, const char *value) { return parse_small(value, 1, 8, &recipe->codec.bits); }
static bool set_bits_from_2(iq_recipe_t *recipe, const char *value) { return parse_small(value, 2, 8, &recipe->codec.bits); }
static bool set_bits_from_3(iq_recipe_t *recipe, const char *value) { return parse_small(value, 3, 8, &recipe->codec.bits); }
static bool set_bits_to_4(iq_recipe_t *recipe, const char *value) { return parse_small(value, 1, 4, &recipe->codec.bits); }
static bool set_bits_4_or_8(iq_recipe_t *recipe, const char *value)
{
    return parse_small(value, 4, 8, &recipe->codec.bits) && recipe->codec.bits % 4 == 0;
}
static bool write_bits(const iq_recipe_t *recipe, char *value) { return write_number(recipe->codec.bits, value); }

static bool set_levels(iq_recipe_t *recipe, const char *value) { return parse_small(value, 1, 127, &recipe->codec.levels); }
static bool write_levels(const iq_recipe_t *recipe, char *value) { return write_number(recipe->codec.levels, value); }

static const char *const rounding_words[] = {"nearest", "stochastic", "stratified", NULL};
static bool set_rounding(iq_recipe_t *recipe, const char *value)
{
    int word = parse_word(value, rounding_words);
    recipe->codec.rounding = (iq_rounding_t)word;
    return word >= 0;
}
static bool set_plain_rounding(iq_recipe_t *recipe, const char *value)
{
    return set_rounding(recipe, value) && recipe->codec.rounding != IQ_ROUND_STRATIFIED;
}
static bool write_rounding(const iq_recipe_t *recipe, char *value) { return write_word(rounding_words[recipe->codec.rounding], value); }

static bool set_scale(iq_recipe_t *recipe, const char *value)
{
    recipe->codec.shared = strcmp(value, "shared") == 0;
    return recipe->codec.shared || strcmp(value, "local") == 0;
}
static bool write_scale(const iq_recipe_t *recipe, char *value) { return write_word(recipe->codec.shared ? "shared" : "local", value); }

static bool set_bucket(iq_recipe_t *recipe, const char *value)
{
    recipe->codec.bucket = 0;
    return strcmp(value, "tensor") == 0 ||
           (parse_count(value, 32, (size_t)1 << 40, &recipe->codec.bucket) && recipe->codec.bucket % 8 == 0);
}
static bool set_small_bucket(iq_recipe_t *recipe, const char *value)
{
    return parse_count(value, 32, IQ_LEVELS_BUCKET_MOST, &recipe->codec.bucket) && recipe->codec.bucket % 32 == 0;
}
static bool write_bucket(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.bucket == 0 ? write_word("tensor", value) : write_number(recipe->codec.bucket, value);
}

static bool set_sum(iq_recipe_t *recipe, const char *value)
{
    recipe->codec.exact = strcmp(value, "exact") == 0 ? 1 : strcmp(value, "requantized") == 0 ? 0 : -1;
    return recipe->codec.exact >= 0 || strcmp(value, "auto") == 0;
}
static bool write_sum(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.shared &&
           write_word(recipe->codec.exact < 0 ? "auto" : recipe->codec.exact > 0 ? "exact" : "requantized", value);
}

static const char *const norm_words[] = {"max", "l2", NULL};
static bool set_norm(iq_recipe_t *recipe, const char *value)
{
    int word = parse_word(value, norm_words);
    recipe->codec.norm = (iq_norm_t)word;
    return word >= 0;
}
static bool write_norm(const iq_recipe_t *recipe, char *value) { return write_word(norm_words[recipe->codec.norm], value); }

static bool set_clip(iq_recipe_t *recipe, const char *value)
{
    double clip;
    if (!parse_fraction(value, 0, 100 * MICRO, &clip))
        return false;
    recipe->codec.clip = (float)clip;
    return true;
}
static bool write_clip(const iq_recipe_t *recipe, char *value) { return write_fraction((double)recipe->codec.clip, value); }

static const char *const feedback_words[] = {"off", "full", "weighted", NULL};
static bool set_feedback(iq_recipe_t *recipe, const char *value)
{
    int word = parse_word(value, feedback_words);
    recipe->codec.feedback = (iq_feedback_t)word;
    return word >= 0;
}
static bool write_feedback(const iq_recipe_t *recipe, char *value) { return write_word(feedback_words[recipe->codec.feedback], value); }
static bool write_feedback_if_any(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.feedback != IQ_FEEDBACK_OFF && write_feedback(recipe, value);
}

static bool set_full_or_off(iq_recipe_t *recipe, const char *value)
{
    return set_feedback(recipe, value) && recipe->codec.feedback != IQ_FEEDBACK_WEIGHTED;
}

static bool set_rank(iq_recipe_t *recipe, const char *value)
{
    return parse_small(value, 1, IQ_POWERSGD_RANK_MOST, &recipe->codec.power_rank);
}
static bool write_rank(const iq_recipe_t *recipe, char *value) { return write_number(recipe->codec.power_rank, value); }

/* Off is not written: texts from before the option stay as they are. */
static bool set_predict(iq_recipe_t *recipe, const char *value)
{
    recipe->codec.predict = strcmp(value, "on") == 0;
    return recipe->codec.predict || strcmp(value, "off") == 0;
}
static bool write_predict(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.predict && recipe->codec.ops != &iq_codec_intsgd_history_ops && write_word("on", value);
}

static bool set_step(iq_recipe_t *recipe, const char *value)
{
    bool history = strcmp(value, "history") == 0;
    recipe->codec.ops = history ? &iq_codec_intsgd_history_ops : &iq_codec_intsgd_ops;
    return history || strcmp(value, "shared") == 0;
}
static bool write_step(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.ops == &iq_codec_intsgd_history_ops && write_word("history", value);
}

/* ---- options of factored calls ---- */

static bool parse_width(const char *text, unsigned *width) { return parse_small(text, 2, 8, width); }

static bool set_width(iq_recipe_t *recipe, const char *value)
{
    char first[4] = "";
    const char *slash = strchr(value, '/');
    iq_factor_spec_t *factor = &recipe->factor;
    if (slash == NULL)
        return parse_width(value, &factor->width_x) && parse_width(value, &factor->width_delta);
    if ((size_t)(slash - value) >= sizeof(first))
        return false;
    memcpy(first, value, (size_t)(slash - value));
    return parse_width(first, &factor->width_x) && parse_width(slash + 1, &factor->width_delta);
}
static bool write_width(const iq_recipe_t *recipe, char *value)
{
    return recipe->factor.width_x != 0 &&
           snprintf(value, IQ_OPTION_TEXT_BYTES, "%u/%u", recipe->factor.width_x, recipe->factor.width_delta) > 0;
}

static bool set_factor_bits(iq_recipe_t *recipe, const char *value)
{
    return parse_fraction(value, MICRO / 10, 8 * MICRO, &recipe->factor.budget_bits);
}
static bool write_factor_bits(const iq_recipe_t *recipe, char *value)
{
    return recipe->factor.budget_bits > 0.0 && write_fraction(recipe->factor.budget_bits, value);
}

static bool set_factor_rounding(iq_recipe_t *recipe, const char *value)
{
    recipe->factor.nearest = strcmp(value, "nearest") == 0;
    recipe->factor.dither = strcmp(value, "dither") == 0;
    return recipe->factor.nearest || recipe->factor.dither || strcmp(value, "stochastic") == 0;
}
static bool write_factor_rounding(const iq_recipe_t *recipe, char *value)
{
    return write_word(recipe->factor.nearest ? "nearest" : recipe->factor.dither ? "dither" : "stochastic", value);
}

static bool set_factor_levels(iq_recipe_t *recipe, const char *value)
{
    return parse_small(value, 2, 8, &recipe->factor.levels) &&
           (recipe->factor.levels == 2 || recipe->factor.levels == 4 || recipe->factor.levels == 8);
}
static bool write_factor_levels(const iq_recipe_t *recipe, char *value) { return write_number(recipe->factor.levels, value); }

static bool set_rows(iq_recipe_t *recipe, const char *value)
{
    recipe->factor.svd = strcmp(value, "svd") == 0;
    return recipe->factor.svd || strcmp(value, "plain") == 0;
}
static bool write_rows(const iq_recipe_t *recipe, char *value) { return recipe->factor.svd && write_word("svd", value); }

/* ---- options of isgq, for either kind of call ---- */

static bool set_budget(iq_recipe_t *recipe, const char *value)
{
    bool good = parse_fraction(value, MICRO, 8 * MICRO, &recipe->codec.budget_bits);
    recipe->factor.budget_bits = recipe->codec.budget_bits;
    return good;
}
static bool write_budget(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.budget_bits > 0.0 && write_fraction(recipe->codec.budget_bits, value);
}

static bool set_nmse(iq_recipe_t *recipe, const char *value)
{
    bool good = parse_fraction(value, 1, MICRO, &recipe->codec.budget_nmse);
    recipe->factor.budget_nmse = recipe->codec.budget_nmse;
    return good;
}
static bool write_nmse(const iq_recipe_t *recipe, char *value)
{
    return recipe->codec.budget_nmse > 0.0 && write_fraction(recipe->codec.budget_nmse, value);
}

/* Codes of factors have a coder of their own, which every build has. */
static bool set_factor_coding(iq_recipe_t *recipe, const char *value)
{
    recipe->factor.coded = strcmp(value, "range") == 0;
    return recipe->factor.coded || strcmp(value, "none") == 0;
}
static bool write_factor_coding(const iq_recipe_t *recipe, char *value) { return recipe->factor.coded && write_word("range", value); }

/* The coder is the default where the build has one; on communicators with devices only for budgets of error. */
static bool set_coding(iq_recipe_t *recipe, const char *value)
{
    recipe->says_coding = true;
    recipe->factor.coded = strcmp(value, "zstd") == 0;
    return recipe->factor.coded || strcmp(value, "none") == 0;
}
static bool write_isgq_coding(const iq_recipe_t *recipe, char *value)
{
    bool coded = recipe->codec.ops == &iq_codec_coded_ops;
    return coded ? iq_recipe_insists(recipe) && write_word("zstd", value) : write_word("none", value);
}

/* ---- lists of options ---- */

#define BITS {"bits", "1 to 8", set_bits, write_bits}
#define BUCKET {"bucket", "a multiple of 8 from 32 on, or tensor", set_bucket, write_bucket}
#define SMALL_BUCKET {"bucket", "a multiple of 32 from 32 to 8192", set_small_bucket, write_bucket}
#define FEEDBACK {"feedback", "off, full or weighted", set_feedback, write_feedback}
#define PREDICT {"predict", "off or on", set_predict, write_predict}
#define ROWS {"rows", "plain or svd", set_rows, write_rows}
#define FACTOR_CODING {"coding", "none or range", set_factor_coding, write_factor_coding}

static const iq_option_t no_options[] = {{0}};

static const iq_option_t uniform_options[] = {
    BITS,
    {"rounding", "nearest, stochastic or stratified", set_rounding, write_rounding},
    {"scale", "shared or local", set_scale, write_scale},
    BUCKET,
    {"sum", "exact, requantized or auto", set_sum, write_sum},
    {"feedback", "off, full or weighted", set_feedback, write_feedback_if_any},
    PREDICT,
    {0},
};

static const iq_option_t global_qsgd_options[] = {
    {"levels", "1 to 127", set_levels, write_levels}, {"norm", "max or l2", set_norm, write_norm}, BUCKET, PREDICT, {0}};

static const iq_option_t exponential_options[] = {{"bits", "3 to 8", set_bits_from_3, write_bits}, BUCKET, {0}};

static const iq_option_t terngrad_options[] = {
    {"clip", "0 to 100 standard deviations, 0 for none", set_clip, write_clip}, BUCKET, PREDICT, {0}};

static const iq_option_t intsgd_options[] = {
    {"bits", "2 to 8", set_bits_from_2, write_bits}, {"scale", "shared or history", set_step, write_step}, PREDICT, {0}};

static const iq_option_t qsgd_options[] = {{"bits", "2 to 8", set_bits_from_2, write_bits},
                                           {"norm", "max or l2", set_norm, write_norm},
                                           SMALL_BUCKET,
                                           FEEDBACK,
                                           {0}};

static const iq_option_t bucket_options[] = {SMALL_BUCKET, FEEDBACK, {0}};

static const iq_option_t eden_options[] = {{"bits", "1 to 4", set_bits_to_4, write_bits}, SMALL_BUCKET, FEEDBACK, {0}};

static const iq_option_t mx_options[] = {
    {"bits", "4 or 8", set_bits_4_or_8, write_bits}, {"rounding", "nearest or stochastic", set_plain_rounding, write_rounding}, FEEDBACK, {0}};

static const iq_option_t powersgd_options[] = {
    {"rank", "1 to 64", set_rank, write_rank}, {"feedback", "off or full", set_full_or_off, write_feedback}, {0}};

static const iq_option_t factor_options[] = {
    {"width", "2 to 8, or two of them as in 4/8", set_width, write_width},
    {"bits", "0.1 to 8, fractions allowed", set_factor_bits, write_factor_bits},
    {"rounding", "nearest, stochastic or dither", set_factor_rounding, write_factor_rounding},
    FACTOR_CODING,
    ROWS,
    {0},
};

static const iq_option_t centers_options[] = {{"levels", "2, 4 or 8", set_factor_levels, write_factor_levels}, FACTOR_CODING, {0}};

static const iq_option_t dithered_options[] = {
    {"width", "2 to 8, or two of them as in 4/8", set_width, write_width}, FACTOR_CODING, {0}};

static const iq_option_t isgq_options[] = {
    {"bits", "1 to 8, fractions allowed", set_budget, write_budget},
    {"nmse", "0.000001 to 1", set_nmse, write_nmse},
    {"coding", "none or zstd", set_coding, write_isgq_coding},
    ROWS,
    {0},
};

/* ---- what excludes each other, and what follows ---- */

static isgq_result_t check_coder(const char *text, bool coded)
{
    if (coded && !iq_coder_present())
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s': coding=zstd needs a build with libzstd", text);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_rows(const char *text, const iq_recipe_t *recipe)
{
    if (recipe->factor.svd && !iq_product_svd_present())
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s': rows=svd needs LAPACK: a build with OpenBLAS, and its module in place", text);
    return ISGQ_SUCCESS;
}

static isgq_result_t settle_uniform(const char *text, iq_recipe_t *recipe)
{
    iq_codec_t *codec = &recipe->codec;
    if (!codec->shared && codec->exact > 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': sum=exact needs scale=shared", text);
    if (!codec->shared && codec->rounding == IQ_ROUND_STRATIFIED)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': rounding=stratified needs scale=shared", text);
    if (!codec->shared && codec->predict)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': predict=on needs scale=shared", text);
    if (!codec->shared)
        codec->exact = 0;
    return ISGQ_SUCCESS;
}

/* As many bits as the levels take. */
static isgq_result_t settle_levels(const char *text, iq_recipe_t *recipe)
{
    recipe->codec.bits = iq_bit_width(2 * recipe->codec.levels);
    bool maxima = recipe->codec.norm == IQ_NORM_MAX && recipe->codec.clip == 0.0f;
    recipe->codec.ops = maxima ? &iq_codec_uniform_ops : &iq_codec_uniform_norm_ops;
    if (recipe->codec.predict && !maxima)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': predict=on needs scales that are maxima: norm=max and clip=0", text);
    return ISGQ_SUCCESS;
}

/* A step by the history is a guess like any other. */
static isgq_result_t settle_intsgd(const char *text, iq_recipe_t *recipe)
{
    bool history = recipe->codec.ops == &iq_codec_intsgd_history_ops;
    if (history && recipe->codec.predict)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': scale=history and predict=on exclude each other", text);
    recipe->codec.predict |= history;
    return ISGQ_SUCCESS;
}

static isgq_result_t settle_factor(const char *text, iq_recipe_t *recipe)
{
    iq_factor_spec_t *factor = &recipe->factor;
    if (factor->width_x != 0 && factor->budget_bits > 0.0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': width and bits exclude each other", text);
    if (factor->width_x == 0 && factor->budget_bits == 0.0)
        factor->width_x = factor->width_delta = 4;
    return check_rows(text, recipe);
}

static isgq_result_t settle_isgq(const char *text, iq_recipe_t *recipe)
{
    iq_codec_t *codec = &recipe->codec;
    if (codec->budget_bits > 0.0 && codec->budget_nmse > 0.0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': bits and nmse exclude each other", text);
    if (codec->budget_bits == 0.0 && codec->budget_nmse == 0.0)
        codec->budget_bits = recipe->factor.budget_bits = 4.0;
    if (!recipe->says_coding)
        recipe->factor.coded = iq_coder_present();
    IQ_TRY(check_coder(text, recipe->factor.coded));
    if (!recipe->factor.coded && codec->budget_nmse > 0.0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s': nmse= needs coding=zstd", text);
    codec->ops = recipe->factor.coded ? &iq_codec_coded_ops : &iq_codec_uniform_ops;
    codec->shared = recipe->factor.coded;
    codec->rounding = recipe->factor.coded ? IQ_ROUND_STRATIFIED : IQ_ROUND_STOCHASTIC;
    return check_rows(text, recipe);
}

/* ---- the table ---- */

#define LEVELS(model_name) .ops = &iq_codec_levels_ops, .model = &iq_level_##model_name

const iq_family_t iq_families[] = {
    {.name = "none", .codec = {.ops = &iq_codec_none_ops}, .options = no_options},
    {.name = "fp16", .codec = {.ops = &iq_codec_fp16_ops}, .options = no_options},
    {.name = "bf16", .codec = {.ops = &iq_codec_bf16_ops}, .options = no_options},
    {.name = "uniform",
     .codec = {.ops = &iq_codec_uniform_ops, .bits = 4, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .bucket = 1024, .exact = -1},
     .options = uniform_options,
     .settle = settle_uniform},
    {.name = "factor", .factored = true, .options = factor_options, .settle = settle_factor},
    {.name = "isgq",
     .factored = true,
     .is_isgq = true,
     .codec = {.ops = &iq_codec_uniform_ops},
     .factor = {.dither = true},
     .options = isgq_options,
     .settle = settle_isgq},
    /* sums of codes under a shared scale */
    {.name = "global-qsgd",
     .codec = {.ops = &iq_codec_uniform_ops, .bits = 8, .levels = 127, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .exact = 1},
     .options = global_qsgd_options,
     .settle = settle_levels},
    {.name = "terngrad",
     .codec = {.ops = &iq_codec_uniform_norm_ops, .bits = 2, .levels = 1, .clip = 2.5f, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .exact = 1},
     .options = terngrad_options,
     .settle = settle_levels},
    {.name = "global-qsgd-exp",
     .codec = {.ops = &iq_codec_exponential_ops, .bits = 8, .rounding = IQ_ROUND_STOCHASTIC, .shared = true},
     .options = exponential_options},
    {.name = "intsgd",
     .codec = {.ops = &iq_codec_intsgd_ops, .bits = 8, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .exact = 1},
     .options = intsgd_options,
     .settle = settle_intsgd},
    /* levels of each rank's own, and of the owner's for the sum */
    {.name = "qsgd",
     .codec = {LEVELS(qsgd), .bits = 4, .norm = IQ_NORM_L2, .bucket = 512, .rounding = IQ_ROUND_STOCHASTIC},
     .options = qsgd_options},
    {.name = "onebit", .codec = {LEVELS(onebit), .bits = 1, .bucket = 2048, .feedback = IQ_FEEDBACK_FULL}, .options = bucket_options},
    {.name = "ef-sign", .codec = {LEVELS(ef_sign), .bits = 1, .bucket = 2048, .feedback = IQ_FEEDBACK_FULL}, .options = bucket_options},
    {.name = "bingrad-b", .codec = {LEVELS(bingrad_b), .bits = 1, .bucket = 2048}, .options = bucket_options},
    {.name = "bingrad-pb",
     .codec = {LEVELS(bingrad_pb), .bits = 1, .bucket = 2048, .rounding = IQ_ROUND_STOCHASTIC},
     .options = bucket_options},
    {.name = "orq-3",
     .codec = {LEVELS(orq), .bits = 2, .levels = 3, .bucket = 2048, .rounding = IQ_ROUND_STOCHASTIC},
     .options = bucket_options},
    {.name = "orq-5",
     .codec = {LEVELS(orq), .bits = 3, .levels = 5, .bucket = 2048, .rounding = IQ_ROUND_STOCHASTIC},
     .options = bucket_options},
    {.name = "orq-9",
     .codec = {LEVELS(orq), .bits = 4, .levels = 9, .bucket = 2048, .rounding = IQ_ROUND_STOCHASTIC},
     .options = bucket_options},
    {.name = "natural",
     .codec = {LEVELS(natural), .bits = 8, .bucket = 2048, .rounding = IQ_ROUND_STOCHASTIC},
     .options = no_options},
    {.name = "drive", .codec = {LEVELS(eden), .bits = 1, .bucket = 1024}, .options = bucket_options},
    {.name = "eden", .codec = {LEVELS(eden), .bits = 4, .bucket = 1024}, .options = eden_options},
    {.name = "mx", .codec = {LEVELS(mx), .bits = 8, .bucket = 32, .rounding = IQ_ROUND_STOCHASTIC}, .options = mx_options},
    /* low rank; what is sent is sent as it is */
    {.name = "powersgd",
     .codec = {.ops = &iq_codec_none_ops, .power_rank = 4, .feedback = IQ_FEEDBACK_FULL},
     .options = powersgd_options},
    /* factors */
    {.name = "isgq-mse",
     .factored = true,
     .factor = {.method = IQ_FACTOR_MSE, .levels = 4},
     .options = centers_options},
    {.name = "isgq-mvu",
     .factored = true,
     .factor = {.method = IQ_FACTOR_MVU, .levels = 4},
     .options = centers_options},
    {.name = "isgq-dithered",
     .factored = true,
     .factor = {.method = IQ_FACTOR_DITHERED, .width_x = 4, .width_delta = 4},
     .options = dithered_options},
    {0},
};
