/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Proving that one knows a secret without telling it. auth_sodium.c does it with libsodium; auth_none.c is for builds without it,
 * where unix sockets with their uid check are all there is.
 */
#ifndef ISGQ_TRANSPORT_AUTH_H
#define ISGQ_TRANSPORT_AUTH_H

#include "transport/control.h"

#define IQ_PROOF_BYTES 32

/* May this build meet there? ISGQ_ERR_UNSUPPORTED where a proof is needed and none can be made. */
isgq_result_t iq_auth_permits(const iq_rendezvous_t *rendezvous);

/* A secret made from any bytes (a pass phrase, a key file) and from what it is for: other purposes get other secrets. */
isgq_result_t iq_auth_derive(uint8_t secret[IQ_SECRET_BYTES], const void *phrase, size_t bytes, const char *purpose);

/* The proof for one role in one conversation; nobody computes it without the secret. */
void iq_auth_prove(uint8_t proof[IQ_PROOF_BYTES], const uint8_t secret[IQ_SECRET_BYTES], const char *role, const void *transcript,
                   size_t bytes);

/* Compared in constant time. */
bool iq_auth_equal(const uint8_t a[IQ_PROOF_BYTES], const uint8_t b[IQ_PROOF_BYTES]);

/* Overwrite a secret that is no longer needed. */
void iq_auth_wipe(void *data, size_t bytes);

#endif
