/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll.h as the first and only header, twice; isgqcoll_ext.h behind it. */
#include "isgqcoll.h"
#include "isgqcoll_ext.h"

static isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;

size_t isgq_use_headers(void);
size_t isgq_use_headers(void) { return config.size + sizeof(isgqx_call_record_t); }
