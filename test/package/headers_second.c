/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll_ext.h as the only header. */
#include "isgqcoll_ext.h"

size_t isgq_use_headers(void);
size_t isgq_use_headers(void) { return sizeof(isgq_stats_t) + sizeof(isgqx_algorithm_t); }
