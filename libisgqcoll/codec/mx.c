/* SPDX-License-Identifier: Apache-2.0 */
/* To be written. */
#include "codec/levels.h"

const iq_level_model_t iq_level_mx = {.name = "mx"};
