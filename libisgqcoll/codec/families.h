/* SPDX-License-Identifier: Apache-2.0 */
/* The families of quantizers as a table: what a text may name. Adding one is a row here, its codec, and a section of docs/numerics.md. */
#ifndef ISGQ_CODEC_FAMILIES_H
#define ISGQ_CODEC_FAMILIES_H

#include "codec/quantizer.h"

#define IQ_FAMILIES_MOST 40
#define IQ_OPTIONS_MOST 8
#define IQ_OPTION_TEXT_BYTES 32 /* of a value, with its end */

typedef struct iq_option {
    const char *name;
    const char *range;                                     /* what values there are, for error texts */
    bool (*set)(iq_recipe_t *recipe, const char *value);   /* false: not one of them */
    bool (*write)(const iq_recipe_t *recipe, char *value); /* the value of the canonical text; false: it is left out */
} iq_option_t;

typedef struct iq_family {
    const char *name;
    bool factored;           /* has a form for factored calls */
    bool is_isgq;
    iq_codec_t codec;        /* defaults for dense calls; ops NULL: for factors only */
    iq_factor_spec_t factor; /* defaults for factored calls */
    const iq_option_t *options;                                 /* ends with name NULL */
    isgq_result_t (*settle)(const char *text, iq_recipe_t *recipe); /* what is left to say when all options are set; refuses what excludes each other */
} iq_family_t;

/* Ends with name NULL. */
extern const iq_family_t iq_families[];

#endif
