/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hosts that netlab.py --outside made for this program: network namespaces, one after the other in NETLAB_HOSTS. A process
 * moves into one of them before its first library call; to the library it then lives on a host of its own.
 */
#ifndef ISGQ_TEST_NETLAB_LAB_H
#define ISGQ_TEST_NETLAB_LAB_H

#include <stdbool.h>

/* 0: there is no lab. */
int iq_lab_hosts(void);

/* Move this process, which has one thread, to host `host` and point the library at its interface. Aborts where it cannot. */
void iq_lab_enter(int host);

/* Where rank 0 can be found: an address of host 0, or of this machine where there is no lab. */
const char *iq_lab_address(void);

/* A port that nobody listens at, below those that the kernel hands out to others between this look and the caller's own use. */
int iq_lab_port(void);

/* For what cannot run in a lab by its nature: true there, after a line with the name and the reason. */
bool iq_lab_skips(const char *name, const char *why);

/* The algorithm of that name, or where the ranks of a lab are placed so that it does not exist, the one whose bits it has: boards need one host, sharing
 * as many ranks on every host. */
const char *iq_lab_algorithm(const char *algorithm, int nranks);

#endif
