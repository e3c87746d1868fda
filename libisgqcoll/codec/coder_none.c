/* SPDX-License-Identifier: Apache-2.0 */
/* A build without libzstd: see coder.h. */
#include "base/status.h"
#include "codec/coder.h"

bool iq_coder_present(void) { return false; }

size_t iq_coder_encode(const void *src, size_t count, void *dst, size_t room)
{
    (void)src, (void)count, (void)dst, (void)room;
    return 0;
}

isgq_result_t iq_coder_decode(const void *src, size_t bytes, void *dst, size_t count)
{
    (void)src, (void)bytes, (void)dst, (void)count;
    return IQ_FAIL(ISGQ_ERR_CORRUPT, "a message is entropy coded, which this build (without libzstd) never asked for");
}
