/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clusters and networks as isgq_model's command line writes them.
 *
 *     cluster   "4@5GB/s:2us,16@10Gbit/s:30us"   from the ranks outwards: how many, their link, its latency
 *     network   "784x1000,1000x300"              or a name of iq_model_networks
 */
#ifndef ISGQ_TOOLS_MODEL_CLUSTER_H
#define ISGQ_TOOLS_MODEL_CLUSTER_H

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdbool.h>
#include <stddef.h>

#define IQ_MODEL_LAYERS 64

typedef struct iq_model_layer {
    double m, n;
} iq_model_layer_t;

typedef struct iq_model_network {
    const char *name, *layers, *help;
} iq_model_network_t;

extern const iq_model_network_t iq_model_networks[]; /* ends with name NULL */

/* What cannot be read ends the program with one line. */
void iq_model_read_cluster(const char *text, isgqx_machine_t *machine);
size_t iq_model_read_network(const char *text, iq_model_layer_t layers[IQ_MODEL_LAYERS]);

/* Ranks of a machine; and the same with another number of children on the outermost level, so that there are `ranks` (false: they do not
 * fill whole children). */
double iq_model_ranks(const isgqx_machine_t *machine);
bool iq_model_resize(isgqx_machine_t *machine, double ranks);

#endif
