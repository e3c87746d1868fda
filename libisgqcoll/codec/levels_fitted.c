/* SPDX-License-Identifier: Apache-2.0 */
/* To be written. */
#include "codec/levels.h"

const iq_level_model_t iq_level_onebit = {.name = "onebit"};

const iq_level_model_t iq_level_ef_sign = {.name = "ef_sign"};

const iq_level_model_t iq_level_bingrad_b = {.name = "bingrad_b"};

const iq_level_model_t iq_level_bingrad_pb = {.name = "bingrad_pb"};

const iq_level_model_t iq_level_orq = {.name = "orq"};
