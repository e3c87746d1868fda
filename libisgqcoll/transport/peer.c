/* SPDX-License-Identifier: Apache-2.0 */
/* How a rank describes itself to the others, so that each pair can choose its transport. */
#include "base/util.h"
#include "transport/topology.h"
#include "transport/transport.h"

#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t process_nonce; /* process ids repeat across pid namespaces and after a wrap */

static void draw_nonce(void)
{
    if (getrandom(&process_nonce, sizeof(process_nonce), 0) != sizeof(process_nonce))
        process_nonce = iq_now_ns() ^ (uint64_t)(uintptr_t)&process_nonce;
}

void iq_peer_describe(iq_peer_t *peer)
{
    pthread_once(&once, draw_nonce);
    uint64_t host = iq_host_id();
    int32_t pid = (int32_t)getpid(); /* differs in a forked child, which inherits the nonce */
    uint64_t process =
        iq_hash(iq_hash(iq_hash(IQ_HASH_START, &host, sizeof(host)), &pid, sizeof(pid)), &process_nonce, sizeof(process_nonce));
    *peer = (iq_peer_t){.host = host, .process = process, .pid = pid, .device_type = ISGQ_DEVICE_HOST,
                        .cores = iq_core_set()};
}
