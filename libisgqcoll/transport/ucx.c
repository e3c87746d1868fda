/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks of different hosts, by UCX. This file is the part that is always there: it loads the module when a communicator first spans two hosts,
 * finds the network device, carries the addresses between the ranks, and hands everything else on. What needs UCX is in ucx_module.c.
 *
 * If one rank has a peer on another host then every rank has, so all ranks take the same way through open; and a rank that fails goes on to
 * make the same allgather calls as the others.
 */
#include "base/status.h"
#include "base/util.h"
#include "transport/ucx_module.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXCHANGE_BYTES 65536u  /* most that allgather takes from a rank */
#define NO_ADDRESS UINT32_MAX  /* instead of a length: this rank cannot take part */
#define UNUSED_NAP_NS 1000000u /* nothing can wake a transport that serves nobody */
#define DEVICE_BYTES 256

typedef struct ucx {
    iq_transport_t base;
    const iq_ucx_module_t *module;
    iq_ucx_t *inner; /* NULL if all ranks are on one host */
} ucx_t;

extern const iq_transport_ops_t iq_transport_ucx;

/* Never inside a host: shared memory serves there. */
static bool ucx_connects(const iq_peer_t *a, const iq_peer_t *b) { return a->host != b->host; }

/* ---- the network device ---- */

static bool same_address(const struct sockaddr *address, int family, const void *wanted)
{
    if (address == NULL || address->sa_family != family)
        return false;
    if (family == AF_INET)
        return memcmp(&((const struct sockaddr_in *)(const void *)address)->sin_addr, wanted, sizeof(struct in_addr)) == 0;
    return memcmp(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr, wanted, sizeof(struct in6_addr)) == 0;
}

static isgq_result_t find_device_of_address(const char *text, int family, const void *wanted, char device[DEVICE_BYTES])
{
    struct ifaddrs *all, *one;
    if (getifaddrs(&all) != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "ucx: the network interfaces cannot be listed");
    for (one = all; one != NULL && !same_address(one->ifa_addr, family, wanted); one = one->ifa_next) {
    }
    if (one != NULL)
        snprintf(device, DEVICE_BYTES, "%s", one->ifa_name);
    freeifaddrs(all);
    return one != NULL
               ? ISGQ_SUCCESS
               : IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "ucx: ISGQ_INTERFACE is '%s', and no interface has this address", text);
}

/* An address becomes the name of its interface; a name ("eth0", "mlx5_0:1") must exist; "" leaves the choice to UCX. */
static isgq_result_t find_device(const char *interface, char device[DEVICE_BYTES])
{
    unsigned char wanted[sizeof(struct in6_addr)];
    char path[PATH_MAX];
    snprintf(device, DEVICE_BYTES, "%s", interface);
    if (inet_pton(AF_INET, interface, wanted) == 1)
        return find_device_of_address(interface, AF_INET, wanted, device);
    if (inet_pton(AF_INET6, interface, wanted) == 1)
        return find_device_of_address(interface, AF_INET6, wanted, device);
    snprintf(path, sizeof(path), "/sys/class/infiniband/%.*s", (int)strcspn(interface, ":"), interface);
    if (interface[0] == '\0' || if_nametoindex(interface) != 0 || access(path, F_OK) == 0)
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "ucx: ISGQ_INTERFACE is '%s', and there is no such interface", interface);
}

/* ---- addresses ---- */

/* The longest address; ISGQ_ERR_REMOTE if a rank has none. */
static isgq_result_t exchange_lengths(const iq_transport_params_t *params, uint32_t own, size_t *longest)
{
    uint32_t *lengths = calloc((size_t)params->nranks, sizeof(*lengths));
    isgq_result_t result;
    if (lengths == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: lengths of %d addresses", params->nranks);
    result = params->allgather(params->allgather_context, &own, lengths, sizeof(own));
    for (int rank = 0; rank < params->nranks && result == ISGQ_SUCCESS && own != NO_ADDRESS; rank++) {
        *longest = iq_max(*longest, lengths[rank]);
        if (lengths[rank] == NO_ADDRESS)
            result = IQ_FAIL(ISGQ_ERR_REMOTE, "ucx: rank %d cannot use UCX", rank);
    }
    free(lengths);
    return result;
}

/* Rank r's address goes to all + r * stride, in pieces that allgather takes. */
static isgq_result_t gather_pieces(const iq_transport_params_t *params, const unsigned char *own, unsigned char *all,
                                   size_t stride)
{
    size_t piece = iq_min(stride, EXCHANGE_BYTES), nranks = (size_t)params->nranks;
    unsigned char *pieces = malloc(nranks * piece);
    isgq_result_t result = ISGQ_SUCCESS;
    if (pieces == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: addresses of %zu ranks", nranks);
    for (size_t offset = 0; offset < stride && result == ISGQ_SUCCESS; offset += piece) {
        result = params->allgather(params->allgather_context, own + offset, pieces, piece);
        for (size_t rank = 0; rank < nranks && result == ISGQ_SUCCESS; rank++)
            memcpy(all + rank * stride + offset, pieces + rank * piece, piece);
    }
    free(pieces);
    return result;
}

static isgq_result_t gather_addresses(const iq_transport_params_t *params, const void *own, size_t bytes, size_t longest,
                                      unsigned char **addresses, size_t *stride)
{
    size_t padded = longest <= EXCHANGE_BYTES ? longest : iq_align_up(longest, EXCHANGE_BYTES);
    unsigned char *mine = calloc(1, padded);
    unsigned char *all = calloc((size_t)params->nranks, padded);
    isgq_result_t result;
    if (mine == NULL || all == NULL) {
        result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: %d addresses of %zu bytes", params->nranks, padded);
    } else {
        memcpy(mine, own, bytes);
        result = gather_pieces(params, mine, all, padded);
    }
    free(mine);
    if (result != ISGQ_SUCCESS) {
        free(all);
        return result;
    }
    *addresses = all;
    *stride = padded;
    return ISGQ_SUCCESS;
}

/* ---- open, close ---- */

static isgq_result_t create(ucx_t *self, const iq_transport_params_t *params, void **address, size_t *bytes)
{
    char device[DEVICE_BYTES];
    self->module = (const iq_ucx_module_t *)iq_module_load("ucx");
    if (self->module == NULL) {
        char reason[IQ_ERROR_TEXT_BYTES]; /* IQ_FAIL writes where iq_last_error points */
        snprintf(reason, sizeof(reason), "%s", iq_last_error());
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "ranks are on several hosts, which needs UCX: %s", reason);
    }
    if (params->nranks > IQ_UCX_MAX_RANKS || params->slots > IQ_UCX_MAX_SLOTS / 2)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "ucx: %d ranks, %u slots; at most %d and %u", params->nranks, params->slots,
                       IQ_UCX_MAX_RANKS, IQ_UCX_MAX_SLOTS);
    IQ_TRY(find_device(params->interface == NULL ? "" : params->interface, device));
    IQ_TRY(self->module->create(params, device, &self->inner));
    return self->module->get_address(self->inner, address, bytes);
}

/* `own` is an error if this rank takes part only to tell the others. */
static isgq_result_t join(ucx_t *self, const iq_transport_params_t *params, isgq_result_t own)
{
    uint64_t now = iq_now_ns(), left = params->deadline_ns > now ? params->deadline_ns - now : 0;
    uint64_t deadline = now + left - iq_min(left / 4, 1000000000u); /* the rest is for telling the others */
    void *address = NULL;
    unsigned char *addresses = NULL;
    size_t bytes = 0, longest = 0, stride = 0;
    isgq_result_t created = own == ISGQ_SUCCESS ? create(self, params, &address, &bytes) : own;
    isgq_result_t result = exchange_lengths(params, created == ISGQ_SUCCESS ? (uint32_t)bytes : NO_ADDRESS, &longest);
    if (created != ISGQ_SUCCESS)
        result = created;
    if (result == ISGQ_SUCCESS)
        result = gather_addresses(params, address, bytes, longest, &addresses, &stride);
    if (result == ISGQ_SUCCESS)
        result = self->module->connect(self->inner, params, addresses, stride, deadline);
    if (result != ISGQ_SUCCESS && self != NULL && self->inner != NULL) {
        self->module->close(self->inner); /* now, so that peers who wait for this rank see its end */
        self->inner = NULL;
    }
    free(addresses);
    free(address);
    return result;
}

static void ucx_close(iq_transport_t *transport)
{
    ucx_t *self = (ucx_t *)transport;
    if (self->inner != NULL)
        self->module->close(self->inner);
    free(self);
}

static isgq_result_t ucx_open(const iq_transport_params_t *params, iq_transport_t **transport)
{
    bool used = false;
    ucx_t *self = calloc(1, sizeof(*self));
    isgq_result_t result = self != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: %zu bytes", sizeof(*self));
    for (int peer = 0; peer < params->nranks; peer++)
        used |= params->mine[peer];
    if (used)
        result = join(self, params, result);
    result = iq_transport_agree(params, "ucx", result);
    if (result != ISGQ_SUCCESS) {
        if (self != NULL)
            ucx_close(&self->base);
        return result;
    }
    self->base.ops = &iq_transport_ucx;
    *transport = &self->base;
    return ISGQ_SUCCESS;
}

/* ---- handed on ---- */

static iq_link_t *ucx_link(iq_transport_t *transport, int peer)
{
    ucx_t *self = (ucx_t *)transport;
    return self->inner == NULL ? NULL : self->module->link(self->inner, peer);
}

static isgq_result_t ucx_progress(iq_transport_t *transport, bool settle, int *failed_peer)
{
    ucx_t *self = (ucx_t *)transport;
    *failed_peer = -1;
    return self->inner == NULL ? ISGQ_SUCCESS : self->module->progress(self->inner, settle, failed_peer);
}

static void ucx_sleep(iq_transport_t *transport, uint64_t ns)
{
    ucx_t *self = (ucx_t *)transport;
    struct timespec nap = {.tv_nsec = (long)iq_min(ns, UNUSED_NAP_NS)};
    if (self->inner != NULL)
        self->module->sleep(self->inner, ns);
    else
        nanosleep(&nap, NULL);
}

static void ucx_wake(iq_transport_t *transport)
{
    ucx_t *self = (ucx_t *)transport;
    if (self->inner != NULL)
        self->module->wake(self->inner);
}

const iq_transport_ops_t iq_transport_ucx = {
    .name = "ucx",
    .connects = ucx_connects,
    .open = ucx_open,
    .link = ucx_link,
    .progress = ucx_progress,
    .sleep = ucx_sleep,
    .wake = ucx_wake,
    .close = ucx_close,
};
