/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The module "ucx", the only file that knows UCX: links by tag matching, one context and worker per communicator.
 *
 * The receiver of a link keeps `slots` receives posted, one per slot, in order; UCX matches messages of one tag in the order in which they
 * were sent, so message number i lands in slot i mod slots and peek need only look at the oldest. UCX itself would buffer what a slow receiver
 * has not asked for without bound; so a sender spends a credit per message. The receiver gives it `slots` of them at the start, which is also
 * the greeting that proves the connection, and then back half a window at a time, in empty messages whose tag carries the number. So at
 * most two of those are on their way, and no message ever finds that no receive is posted for it.
 *
 *     tag   | token, 32 bits | sender's rank, 16 | kind, 4 | credits, 12 |
 */
#include "transport/ucx_module.h"

#include "base/util.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

/* A module links nothing of the library: IQ_FAIL goes through the services that it was given. */
static const iq_services_t *services;
#define iq_fail (services->fail)

static void module_start(const iq_services_t *given) { services = given; }

typedef enum kind { KIND_DATA, KIND_CREDIT } kind_t;

/* A slot buffer and what UCX is doing with it. */
typedef struct slot {
    void *request; /* NULL: nothing */
    unsigned char *data;
    size_t bytes; /* receiver: length of a message that has arrived and is not yet released; 0: none */
} slot_t;

typedef struct ucx_link {
    iq_link_t base;
    iq_ucx_t *owner;
    ucp_ep_h endpoint;
    slot_t *out, *in; /* [slots] each; `out` owns the memory of both and of their buffers */
    unsigned out_index, in_index;
    unsigned credits;   /* messages that the peer has room for */
    unsigned owed;      /* room that the peer does not know of yet */
    void *credit_in[2]; /* receives for the peer's credits, used in turn */
    unsigned credit_index;
    void *credit_out; /* our last credits on their way */
} ucx_link_t;

struct iq_ucx {
    int rank, nlinks;
    uint64_t token;
    size_t slot_bytes;
    unsigned slots;  /* as promised, plus those whose credits may be on hold */
    unsigned batch;  /* credits go back so many at a time */
    ucp_context_h context;
    ucp_worker_h worker;
    int event_fd;
    ucx_link_t *links; /* [nlinks], ascending by peer */
    void *flush;       /* under way, or NULL */
    bool unflushed;    /* something was sent since the last flush began */
    bool news;         /* progress has moved something that the caller may not have looked at yet */
    int failed_peer;   /* the first; -1: none */
    isgq_result_t failure;
    char failure_text[128];
};

/* ---- requests ---- */

static ucp_tag_t make_tag(const iq_ucx_t *self, int sender, kind_t kind, unsigned credits)
{
    uint32_t communicator = (uint32_t)(self->token ^ self->token >> 32);
    return (ucp_tag_t)communicator << 32 | (ucp_tag_t)(unsigned)sender << 16 | (ucp_tag_t)kind << 12 | credits;
}

/* The first failure is the cause; what follows from it is of no interest. */
static void link_failed(ucx_link_t *link, isgq_result_t result, const char *operation, const char *reason)
{
    iq_ucx_t *self = link->owner;
    if (self->failed_peer >= 0)
        return;
    self->failed_peer = link->base.peer;
    self->failure = result;
    snprintf(self->failure_text, sizeof(self->failure_text), "%s: %s", operation, reason);
}

static isgq_result_t report_failure(const iq_ucx_t *self)
{
    return IQ_FAIL(self->failure, "ucx: rank %d: %s", self->failed_peer, self->failure_text);
}

/* The request that UCX answered with; NULL if it needs none. An error fails the link. */
static void *request_of(ucx_link_t *link, ucs_status_ptr_t answer, const char *operation)
{
    if (UCS_PTR_IS_ERR(answer))
        link_failed(link, ISGQ_ERR_REMOTE, operation, ucs_status_string(UCS_PTR_STATUS(answer)));
    return UCS_PTR_IS_PTR(answer) ? answer : NULL;
}

static bool pending(void *request) { return request != NULL && ucp_request_check_status(request) == UCS_INPROGRESS; }

static void free_request(void **request)
{
    if (*request != NULL)
        ucp_request_free(*request);
    *request = NULL;
}

/* True once the send behind *request is complete; *request is NULL then. */
static bool sent(ucx_link_t *link, void **request)
{
    if (pending(*request))
        return false;
    ucs_status_t status = *request == NULL ? UCS_OK : ucp_request_check_status(*request);
    free_request(request);
    if (status != UCS_OK)
        link_failed(link, ISGQ_ERR_REMOTE, "send", ucs_status_string(status));
    return true;
}

static void send_message(ucx_link_t *link, const void *data, size_t bytes, kind_t kind, unsigned credits, void **request)
{
    const ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE, .memory_type = UCS_MEMORY_TYPE_HOST};
    ucp_tag_t tag = make_tag(link->owner, link->owner->rank, kind, credits);
    link->owner->unflushed = true;
    *request = request_of(link, ucp_tag_send_nbx(link->endpoint, data, bytes, tag, &param), "send");
}

static void post_receive(ucx_link_t *link, void *data, size_t bytes, kind_t kind, void **request)
{
    /* Always a request, also when the message is there already: its length and tag are asked from the request later. */
    const ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
                                       .memory_type = UCS_MEMORY_TYPE_HOST};
    ucp_tag_t tag = make_tag(link->owner, link->base.peer, kind, 0), any_credits = ~(ucp_tag_t)IQ_UCX_MAX_SLOTS;
    *request = request_of(link, ucp_tag_recv_nbx(link->owner->worker, data, bytes, tag, any_credits, &param), "receive");
}

static void post_slot(ucx_link_t *link, slot_t *slot)
{
    slot->bytes = 0;
    post_receive(link, slot->data, link->owner->slot_bytes, KIND_DATA, &slot->request);
}

/* ---- credits ---- */

/* Collects them when they have run out. */
static bool has_credits(ucx_link_t *link)
{
    ucp_tag_recv_info_t info;
    void **request = &link->credit_in[link->credit_index];
    if (link->credits > 0 || *request == NULL)
        return link->credits > 0;
    ucs_status_t status = ucp_tag_recv_request_test(*request, &info);
    if (status == UCS_INPROGRESS)
        return false;
    free_request(request);
    unsigned credits = status == UCS_OK ? (unsigned)(info.sender_tag & IQ_UCX_MAX_SLOTS) : 0;
    if (credits == 0 || credits > link->owner->slots) {
        link_failed(link, ISGQ_ERR_CORRUPT, "receive", "credits out of range");
        return false;
    }
    link->credits = credits;
    link->credit_index ^= 1;
    post_receive(link, NULL, 0, KIND_CREDIT, request);
    return true;
}

/* One message of credits at a time; a busy connection collects more of them meanwhile. */
static void return_credits(ucx_link_t *link)
{
    if (link->owed < link->owner->batch || !sent(link, &link->credit_out))
        return;
    send_message(link, NULL, 0, KIND_CREDIT, link->owed, &link->credit_out);
    link->owed = 0;
}

/* ---- links ---- */

static unsigned next_index(const ucx_link_t *link, unsigned index) { return index + 1 == link->owner->slots ? 0 : index + 1; }

static void *link_acquire(iq_link_t *base)
{
    ucx_link_t *link = (ucx_link_t *)base;
    slot_t *slot = &link->out[link->out_index];
    return has_credits(link) && sent(link, &slot->request) ? slot->data : NULL;
}

static isgq_result_t link_commit(iq_link_t *base, size_t bytes)
{
    ucx_link_t *link = (ucx_link_t *)base;
    slot_t *slot = &link->out[link->out_index];
    send_message(link, slot->data, bytes, KIND_DATA, 0, &slot->request);
    link->credits--;
    link->out_index = next_index(link, link->out_index);
    return link->owner->failed_peer < 0 ? ISGQ_SUCCESS : report_failure(link->owner);
}

static const void *link_peek(iq_link_t *base, size_t *bytes)
{
    ucx_link_t *link = (ucx_link_t *)base;
    slot_t *slot = &link->in[link->in_index];
    if (slot->bytes == 0) {
        ucp_tag_recv_info_t info;
        ucs_status_t status = slot->request == NULL ? UCS_INPROGRESS : ucp_tag_recv_request_test(slot->request, &info);
        if (status == UCS_INPROGRESS)
            return NULL;
        free_request(&slot->request);
        if (status != UCS_OK || info.length == 0) {
            bool damaged = status == UCS_OK || status == UCS_ERR_MESSAGE_TRUNCATED;
            link_failed(link, damaged ? ISGQ_ERR_CORRUPT : ISGQ_ERR_REMOTE, "receive",
                        damaged ? "message length out of range" : ucs_status_string(status));
            return NULL;
        }
        slot->bytes = info.length;
    }
    *bytes = slot->bytes;
    return slot->data;
}

static isgq_result_t link_release(iq_link_t *base)
{
    ucx_link_t *link = (ucx_link_t *)base;
    post_slot(link, &link->in[link->in_index]);
    link->in_index = next_index(link, link->in_index);
    link->owed++;
    return_credits(link);
    return link->owner->failed_peer < 0 ? ISGQ_SUCCESS : report_failure(link->owner);
}

static const iq_link_ops_t link_ops = {link_acquire, link_commit, link_peek, link_release};

/* ---- the transport ---- */

static iq_link_t *ucx_link(iq_ucx_t *self, int peer)
{
    for (int i = 0; i < self->nlinks; i++)
        if (self->links[i].base.peer == peer)
            return &self->links[i].base;
    return NULL;
}

static bool all_sent(ucx_link_t *link)
{
    bool all = sent(link, &link->credit_out);
    for (unsigned i = 0; i < link->owner->slots; i++)
        all &= sent(link, &link->out[i].request);
    return all;
}

/* -1 if everything has left. A send that is complete may still lie in UCX's buffers; the flush afterwards covers those, of all links. */
static int awaited_peer(iq_ucx_t *self)
{
    for (int i = 0; i < self->nlinks; i++)
        if (!all_sent(&self->links[i]))
            return self->links[i].base.peer;
    if (self->flush == NULL && self->unflushed) {
        ucs_status_ptr_t flush = ucp_worker_flush_nbx(self->worker, &(ucp_request_param_t){.op_attr_mask = 0});
        self->flush = UCS_PTR_IS_PTR(flush) ? flush : NULL; /* if it fails then so has a connection, which is reported */
        self->unflushed = false;
    }
    if (pending(self->flush))
        return self->links[0].base.peer;
    free_request(&self->flush);
    return self->unflushed ? self->links[0].base.peer : -1;
}

static isgq_result_t ucx_progress(iq_ucx_t *self, bool settle, int *failed_peer)
{
    while (ucp_worker_progress(self->worker) != 0)
        self->news = true;
    for (int i = 0; i < self->nlinks && self->failed_peer < 0; i++)
        return_credits(&self->links[i]);
    int awaited = settle ? awaited_peer(self) : -1;
    *failed_peer = self->failed_peer >= 0 ? self->failed_peer : awaited;
    if (self->failed_peer >= 0)
        return report_failure(self);
    return awaited < 0 ? ISGQ_SUCCESS : ISGQ_IN_PROGRESS;
}

/* Arming fails while there is something to do; otherwise the descriptor becomes readable when there is. */
static void ucx_sleep(iq_ucx_t *self, uint64_t ns)
{
    struct pollfd event = {.fd = self->event_fd, .events = POLLIN};
    struct timespec timeout = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    bool news = self->news || ucp_worker_progress(self->worker) != 0;
    self->news = false;
    if (!news && ucp_worker_arm(self->worker) == UCS_OK)
        ppoll(&event, 1, &timeout, NULL);
}

static void ucx_wake(iq_ucx_t *self) { ucp_worker_signal(self->worker); }

/* ---- close ---- */

static void drop_request(iq_ucx_t *self, void **request)
{
    if (pending(*request))
        ucp_request_cancel(self->worker, *request);
    free_request(request);
}

static void drop_requests(iq_ucx_t *self, ucx_link_t *link)
{
    drop_request(self, &link->credit_out);
    for (unsigned i = 0; i < 2; i++)
        drop_request(self, &link->credit_in[i]);
    for (unsigned i = 0; i < 2 * self->slots; i++)
        drop_request(self, &link->out[i].request); /* link->in follows */
}

/*
 * By force, which waits for nobody and gives up what a peer does not take; ranks that part in peace have all that was sent to them. The end of the
 * worker does the rest: progress in between, with connections that break on both sides, is where UCX 1.13 uses freed memory.
 */
static void ucx_close(iq_ucx_t *self)
{
    const ucp_request_param_t force = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = UCP_EP_CLOSE_FLAG_FORCE};
    for (ucx_link_t *link = self->links; link < self->links + self->nlinks; link++)
        if (link->endpoint != NULL)
            free_request(&(void *){request_of(link, ucp_ep_close_nbx(link->endpoint, &force), "close")});
    for (int i = 0; i < self->nlinks; i++)
        drop_requests(self, &self->links[i]);
    if (self->worker != NULL) {
        drop_request(self, &self->flush);
        ucp_worker_destroy(self->worker);
    }
    if (self->context != NULL)
        ucp_cleanup(self->context);
    for (int i = 0; i < self->nlinks; i++)
        free(self->links[i].out);
    free(self->links);
    free(self);
}

/* ---- create ---- */

/*
 * Settings in a configuration of our own, which no other user of UCX sees. TLS: nothing that works inside a host only, so that two namespaces of
 * one host talk over their network. KEEPALIVE: silent peers may compute for long; the control channel knows who lives. RNDV: every message finds
 * its receive posted, so asking first only costs a round trip, and UCX 1.13 aborts the process if a communicator ends meanwhile. TCP: copies into
 * large buffers, for UCX aborts if a connection breaks while it sends without; these names have no prefix before 1.17.
 */
static ucs_status_t configure(ucp_config_t *config, const char *device)
{
    const char *const settings[][2] = {{"TLS", "^sm,self"},   {"KEEPALIVE_INTERVAL", "inf"}, {"RNDV_THRESH", "inf"},
                                       {"TCP_MAX_IOV", "0"}, {"TCP_TX_SEG_SIZE", "64k"},    {"NET_DEVICES", device}};
    unsigned major, minor, release;
    ucs_status_t status = UCS_OK;
    ucp_get_version(&major, &minor, &release);
    for (size_t i = 0; i < IQ_ARRAY_SIZE(settings) - (device[0] == '\0') && status == UCS_OK; i++) {
        bool bare = major == 1 && minor < 17 && strncmp(settings[i][0], "TCP_", 4) == 0;
        status = ucp_config_modify(config, settings[i][0] + 4 * bare, settings[i][1]);
    }
    return status;
}

static isgq_result_t create_worker(iq_ucx_t *self, const char *device, int nranks)
{
    const ucp_params_t context = {.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS,
                                  .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP,
                                  .estimated_num_eps = (size_t)nranks};
    const ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_FLAGS,
                                        .thread_mode = UCS_THREAD_MODE_SERIALIZED,
                                        .flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK}; /* half a message may have arrived at the end */
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "ucx: read the configuration: %s", ucs_status_string(status));
    status = configure(config, device);
    if (status == UCS_OK)
        status = ucp_init(&context, config, &self->context);
    ucp_config_release(config);
    if (status != UCS_OK)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "ucx: no usable network%s%s: %s", device[0] == '\0' ? "" : " on ", device, ucs_status_string(status));
    status = ucp_worker_create(self->context, &worker, &self->worker);
    if (status == UCS_OK)
        status = ucp_worker_get_efd(self->worker, &self->event_fd);
    return status == UCS_OK ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_SYSTEM, "ucx: create a worker: %s", ucs_status_string(status));
}

static isgq_result_t ucx_create(const iq_transport_params_t *params, const char *device, iq_ucx_t **ucx)
{
    isgq_result_t result;
    iq_ucx_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: %zu bytes", sizeof(*self));
    self->rank = params->rank;
    self->token = params->token;
    self->slot_bytes = params->slot_bytes;
    self->batch = (params->slots + 1) / 2;
    self->slots = params->slots + self->batch - 1; /* so that a sender always has room for the promised number */
    self->failed_peer = -1;
    self->links = calloc((size_t)params->nranks, sizeof(*self->links));
    result = self->links == NULL ? IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: links to %d ranks", params->nranks)
                                 : create_worker(self, device, params->nranks);
    if (result == ISGQ_SUCCESS)
        *ucx = self;
    else
        ucx_close(self);
    return result;
}

static isgq_result_t ucx_get_address(iq_ucx_t *self, void **address, size_t *bytes)
{
    ucp_worker_attr_t worker = {.field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS};
    ucs_status_t status = ucp_worker_query(self->worker, &worker);
    if (status != UCS_OK)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "ucx: the worker's address: %s", ucs_status_string(status));
    *bytes = worker.address_length;
    *address = malloc(*bytes);
    if (*address != NULL)
        memcpy(*address, worker.address, *bytes);
    ucp_worker_release_address(self->worker, worker.address);
    return *address != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: an address of %zu bytes", *bytes);
}

/* ---- connect ---- */

static void on_endpoint_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    link_failed(argument, ISGQ_ERR_REMOTE, "connection lost", ucs_status_string(status));
}

/* Buffers and what we know of them, in one piece. */
static isgq_result_t allocate_slots(ucx_link_t *link)
{
    size_t count = 2 * (size_t)link->owner->slots, slot_bytes = link->owner->slot_bytes;
    size_t table_bytes = iq_align_up(count * sizeof(slot_t), IQ_CACHE_LINE);
    link->out = aligned_alloc(IQ_CACHE_LINE, table_bytes + count * slot_bytes);
    if (link->out == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "ucx: %zu slots of %zu bytes to rank %d", count, slot_bytes, link->base.peer);
    link->in = link->out + link->owner->slots;
    for (size_t i = 0; i < count; i++)
        link->out[i] = (slot_t){.data = (unsigned char *)link->out + table_bytes + i * slot_bytes};
    return ISGQ_SUCCESS;
}

static isgq_result_t open_link(iq_ucx_t *self, int peer, const void *address)
{
    ucx_link_t *link = &self->links[self->nlinks];
    const ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_endpoint_error, .arg = link},
    };
    *link = (ucx_link_t){.base = {.ops = &link_ops, .transport = "ucx", .peer = peer}, .owner = self, .owed = self->slots};
    IQ_TRY(allocate_slots(link));
    self->nlinks++;
    ucs_status_t status = ucp_ep_create(self->worker, &params, &link->endpoint);
    if (status != UCS_OK) {
        link->endpoint = NULL;
        return IQ_FAIL(ISGQ_ERR_REMOTE, "ucx: connect to rank %d: %s", peer, ucs_status_string(status));
    }
    for (unsigned i = 0; i < 2; i++)
        post_receive(link, NULL, 0, KIND_CREDIT, &link->credit_in[i]);
    for (unsigned i = 0; i < self->slots; i++)
        post_slot(link, &link->in[i]);
    return_credits(link);
    return self->failed_peer < 0 ? ISGQ_SUCCESS : report_failure(self);
}

static isgq_result_t ucx_connect(iq_ucx_t *self, const iq_transport_params_t *params, const void *addresses, size_t stride,
                                 uint64_t deadline_ns)
{
    isgq_result_t result = ISGQ_IN_PROGRESS;
    int greeted = 0, failed_peer;
    for (int peer = 0; peer < params->nranks; peer++)
        if (params->mine[peer])
            IQ_TRY(open_link(self, peer, (const char *)addresses + (size_t)peer * stride));
    while (result == ISGQ_IN_PROGRESS || (result == ISGQ_SUCCESS && greeted < self->nlinks)) {
        if (iq_now_ns() >= deadline_ns)
            return IQ_FAIL(ISGQ_ERR_TIMEOUT, "ucx: rank %d has not answered before the deadline",
                           self->links[greeted < self->nlinks ? greeted : 0].base.peer);
        ucx_sleep(self, 10000000);
        while (greeted < self->nlinks && has_credits(&self->links[greeted]))
            greeted++;
        result = ucx_progress(self, true, &failed_peer); /* settled: the others may still wait for our greeting */
    }
    return result;
}

const iq_ucx_module_t iq_module_ucx = {
    .base = {.abi = IQ_MODULE_ABI, .start = module_start},
    .create = ucx_create,
    .get_address = ucx_get_address,
    .connect = ucx_connect,
    .link = ucx_link,
    .progress = ucx_progress,
    .sleep = ucx_sleep,
    .wake = ucx_wake,
    .close = ucx_close,
};
