/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of the module "ucx": what ucx.c, in the library, asks of ucx_module.c, which knows UCX.
 *
 * Opening has three steps, create, get_address and connect, because the ranks exchange their addresses in between; the library does that.
 */
#ifndef ISGQ_TRANSPORT_UCX_MODULE_H
#define ISGQ_TRANSPORT_UCX_MODULE_H

#include "base/module.h"
#include "transport/transport.h"

/* Fields of a tag: 16 and 12 bits. */
#define IQ_UCX_MAX_RANKS 65536
#define IQ_UCX_MAX_SLOTS 4095u

typedef struct iq_ucx iq_ucx_t;

typedef struct iq_ucx_module {
    iq_module_t base;

    /* Context and worker on network device `device` ("": UCX chooses). */
    isgq_result_t (*create)(const iq_transport_params_t *params, const char *device, iq_ucx_t **ucx);

    /* Where this rank can be reached; *address is for the caller to free(). */
    isgq_result_t (*get_address)(iq_ucx_t *ucx, void **address, size_t *bytes);

    /* Links to all peers that are `mine`, proved by a message in both directions. Rank r's address is at addresses + r * stride. */
    isgq_result_t (*connect)(iq_ucx_t *ucx, const iq_transport_params_t *params, const void *addresses, size_t stride,
                             uint64_t deadline_ns);

    /* As in iq_transport_ops_t. */
    iq_link_t *(*link)(iq_ucx_t *ucx, int peer);
    isgq_result_t (*progress)(iq_ucx_t *ucx, bool settle, int *failed_peer);
    void (*sleep)(iq_ucx_t *ucx, uint64_t ns);
    void (*wake)(iq_ucx_t *ucx);
    void (*close)(iq_ucx_t *ucx);
} iq_ucx_module_t;

#endif
