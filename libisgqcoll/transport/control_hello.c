/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What two ranks say to each other when they meet:
 *
 *     rank               rank 0
 *     HELLO      ->                 rank, nranks, version, process, nonce
 *                <-      CHALLENGE  the same of rank 0
 *     PROOF      ->                 authenticator("rank", both hellos, address)
 *                <-      WELCOME    authenticator("root", both hellos, address)
 *
 * Each side contributed a fresh nonce, so no proof can be replayed; the roles differ, so none can be reflected. Who listens gives
 * a proof only to somebody who has given one. The layout of the hello does not change between versions: versions are compared
 * with it.
 */
#include "transport/control_internal.h"

#include "base/util.h"
#include "transport/auth.h"
#include "transport/topology.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAMED_AT_MOST 8

isgq_result_t iq_random_bytes(void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t got = getrandom((char *)data + done, bytes - done, 0);
        if (got < 0 && errno != EINTR)
            return IQ_FAIL(ISGQ_ERR_SYSTEM, "no random bytes from the kernel: %s", strerror(errno));
        done += got > 0 ? (size_t)got : 0;
    }
    return ISGQ_SUCCESS;
}

uint64_t iq_process_space(void)
{
    uint64_t host = iq_host_id(), hash = iq_hash(IQ_HASH_START, &host, sizeof(host));
    struct stat space;
    return stat("/proc/self/ns/pid", &space) == 0 ? iq_hash(hash, &space.st_ino, sizeof(space.st_ino)) : hash;
}

isgq_result_t iq_hello_init(iq_hello_t *hello, int rank, int nranks, int version)
{
    *hello = (iq_hello_t){
        .rank = rank, .nranks = nranks, .version = version, .pid = (int32_t)getpid(), .process_space = iq_process_space()};
    return iq_random_bytes(hello->nonce, sizeof(hello->nonce));
}

void iq_hello_pack(iq_pack_t *pack, const iq_hello_t *hello)
{
    iq_pack_u32(pack, (uint32_t)hello->rank);
    iq_pack_u32(pack, (uint32_t)hello->nranks);
    iq_pack_u32(pack, (uint32_t)hello->version);
    iq_pack_u32(pack, (uint32_t)hello->pid);
    iq_pack_u64(pack, hello->process_space);
    iq_pack_bytes(pack, hello->nonce, sizeof(hello->nonce));
}

bool iq_hello_unpack(const iq_control_frame_t *frame, iq_hello_t *hello)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    hello->rank = (int32_t)iq_unpack_u32(&unpack);
    hello->nranks = (int32_t)iq_unpack_u32(&unpack);
    hello->version = (int32_t)iq_unpack_u32(&unpack);
    hello->pid = (int32_t)iq_unpack_u32(&unpack);
    hello->process_space = iq_unpack_u64(&unpack);
    iq_unpack_bytes(&unpack, hello->nonce, sizeof(hello->nonce));
    return !unpack.bad && unpack.left == 0;
}

void iq_hello_prove(const iq_rendezvous_t *rendezvous, const char *role, const iq_hello_t *rank, const iq_hello_t *root,
                    uint8_t *proof)
{
    char name[IQ_ADDRESS_NAME_BYTES];
    iq_pack_t transcript = {.used = 0};

    iq_hello_pack(&transcript, rank);
    iq_hello_pack(&transcript, root);
    iq_pack_text(&transcript, iq_address_name(rendezvous, name));
    iq_auth_prove(proof, rendezvous->secret, role, transcript.data, transcript.used);
}

int iq_name_missing(const bool *present, int nranks, char *text, size_t bytes)
{
    int missing = 0, named = 0;
    size_t used;

    for (int rank = 0; rank < nranks; rank++)
        missing += !present[rank];
    used = (size_t)snprintf(text, bytes, missing == 1 ? "rank" : "ranks");
    for (int rank = 0; rank < nranks && named < NAMED_AT_MOST && used < bytes; rank++) {
        if (present[rank])
            continue;
        const char *comma = named == 0 ? " " : named == missing - 1 ? " and " : ", ";
        used += (size_t)snprintf(text + used, bytes - used, "%s%d", comma, rank);
        named++;
    }
    if (named < missing && used < bytes)
        snprintf(text + used, bytes - used, " and %d more", missing - named);
    return missing;
}
