/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The build without libsodium: nothing can be proved, so ranks meet on this host only, over unix sockets, where the kernel
 * vouches for the other side's user. Proofs are zeros; a build with libsodium does not accept them.
 */
#include "transport/auth.h"

#include "base/status.h"

#include <string.h>

isgq_result_t iq_auth_permits(const iq_rendezvous_t *rendezvous)
{
    if (rendezvous->kind != IQ_ADDRESS_UNIX)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED,
                       "cannot meet at tcp:%s:%u: this build has no libsodium, so its ranks can meet on one host only",
                       rendezvous->text, (unsigned)rendezvous->port);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_auth_derive(uint8_t secret[IQ_SECRET_BYTES], const void *phrase, size_t bytes, const char *purpose)
{
    (void)secret;
    (void)phrase;
    (void)bytes;
    (void)purpose;
    return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "a secret is set, but this build has no libsodium to check it with");
}

void iq_auth_prove(uint8_t proof[IQ_PROOF_BYTES], const uint8_t secret[IQ_SECRET_BYTES], const char *role, const void *transcript,
                   size_t bytes)
{
    (void)secret;
    (void)role;
    (void)transcript;
    (void)bytes;
    memset(proof, 0, IQ_PROOF_BYTES);
}

bool iq_auth_equal(const uint8_t a[IQ_PROOF_BYTES], const uint8_t b[IQ_PROOF_BYTES]) { return memcmp(a, b, IQ_PROOF_BYTES) == 0; }

void iq_auth_wipe(void *data, size_t bytes) { explicit_bzero(data, bytes); }
