/* SPDX-License-Identifier: Apache-2.0 */
/* Proofs by HMAC-SHA512-256 and secrets by BLAKE2b, both from libsodium: the only file that knows it. */
#include "transport/auth.h"

#include "base/status.h"

#include <sodium.h>
#include <string.h>

_Static_assert(IQ_PROOF_BYTES == crypto_auth_hmacsha512256_BYTES, "the proof is one authenticator");
_Static_assert(IQ_SECRET_BYTES == crypto_auth_hmacsha512256_KEYBYTES, "the secret is its key");

isgq_result_t iq_auth_permits(const iq_rendezvous_t *rendezvous)
{
    (void)rendezvous;
    if (sodium_init() < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "libsodium finds no source of random numbers");
    return ISGQ_SUCCESS;
}

isgq_result_t iq_auth_derive(uint8_t secret[IQ_SECRET_BYTES], const void *phrase, size_t bytes, const char *purpose)
{
    uint8_t key[crypto_generichash_KEYBYTES];

    if (sodium_init() < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "libsodium finds no source of random numbers");

    crypto_generichash(key, sizeof(key), phrase, bytes, NULL, 0);
    crypto_generichash(secret, IQ_SECRET_BYTES, (const uint8_t *)purpose, strlen(purpose), key, sizeof(key));
    sodium_memzero(key, sizeof(key));
    return ISGQ_SUCCESS;
}

void iq_auth_prove(uint8_t proof[IQ_PROOF_BYTES], const uint8_t secret[IQ_SECRET_BYTES], const char *role, const void *transcript,
                   size_t bytes)
{
    crypto_auth_hmacsha512256_state state;

    crypto_auth_hmacsha512256_init(&state, secret, IQ_SECRET_BYTES);
    crypto_auth_hmacsha512256_update(&state, (const uint8_t *)role, strlen(role) + 1);
    crypto_auth_hmacsha512256_update(&state, transcript, bytes);
    crypto_auth_hmacsha512256_final(&state, proof);
    sodium_memzero(&state, sizeof(state));
}

bool iq_auth_equal(const uint8_t a[IQ_PROOF_BYTES], const uint8_t b[IQ_PROOF_BYTES])
{
    return sodium_memcmp(a, b, IQ_PROOF_BYTES) == 0;
}

void iq_auth_wipe(void *data, size_t bytes) { sodium_memzero(data, bytes); }
