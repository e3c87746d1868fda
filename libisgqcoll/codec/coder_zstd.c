/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zstd for bytes that are independent draws: its Huffman coder does the work, so matches are searched for as little as possible.
 * Contexts are kept per thread, since making one costs more than coding a message.
 */
#include "base/status.h"
#include "codec/coder.h"

#include <pthread.h>
#include <zstd.h>

/*
 * Matches among independent symbols are chance, and cost more than the symbols: look for them rarely (the step between trials)
 * and not far (the table's size), which still finds long runs. With such a step zstd would leave literals as they are unless
 * told otherwise, by a parameter that libzstd has since 1.3.8 and calls experimental: where it is missing messages are longer,
 * and nothing else. Frames say nothing that the message around them does.
 */
#define LEVEL 1
#define LITERALS ZSTD_c_experimentalParam5 /* ZSTD_c_literalCompressionMode */

typedef struct contexts {
    ZSTD_CCtx *out;
    ZSTD_DCtx *in;
} contexts_t;

static _Thread_local contexts_t contexts;
static pthread_key_t at_exit;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void forget(void *unused)
{
    (void)unused;
    ZSTD_freeCCtx(contexts.out);
    ZSTD_freeDCtx(contexts.in);
    contexts = (contexts_t){0};
}

static void make_key(void) { (void)pthread_key_create(&at_exit, forget); }

static void remember(void)
{
    (void)pthread_once(&once, make_key);
    (void)pthread_setspecific(at_exit, &contexts);
}

static ZSTD_CCtx *compressor(void)
{
    if (contexts.out != NULL)
        return contexts.out;
    contexts.out = ZSTD_createCCtx();
    if (contexts.out == NULL)
        return NULL;
    remember();
    ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_compressionLevel, LEVEL);
    ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_contentSizeFlag, 0);
    ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_checksumFlag, 0);
    ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_dictIDFlag, 0);
    ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_minMatch, 7);
    ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_hashLog, 6);
    if (!ZSTD_isError(ZSTD_CCtx_setParameter(contexts.out, LITERALS, 1))) {
        ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_strategy, ZSTD_fast);
        ZSTD_CCtx_setParameter(contexts.out, ZSTD_c_targetLength, 64);
    }
    return contexts.out;
}

bool iq_coder_present(void) { return true; }

size_t iq_coder_encode(const void *src, size_t count, void *dst, size_t room)
{
    ZSTD_CCtx *context = compressor();
    if (context == NULL || room == 0)
        return 0;
    size_t bytes = ZSTD_compress2(context, dst, room, src, count);
    return ZSTD_isError(bytes) || bytes >= room ? 0 : bytes;
}

isgq_result_t iq_coder_decode(const void *src, size_t bytes, void *dst, size_t count)
{
    if (contexts.in == NULL) {
        contexts.in = ZSTD_createDCtx();
        if (contexts.in == NULL)
            return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "coder: no memory for zstd's tables");
        remember();
    }
    size_t found = ZSTD_decompressDCtx(contexts.in, dst, count, src, bytes);
    if (ZSTD_isError(found))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "coder: %zu bytes are no code of %zu: %s", bytes, count, ZSTD_getErrorName(found));
    if (found != count)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "coder: %zu bytes are the code of %zu bytes, not of %zu", bytes, found, count);
    return ISGQ_SUCCESS;
}
