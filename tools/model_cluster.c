/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/model_cluster.h"

#include "tools/common/options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const iq_model_network_t iq_model_networks[] = {
    {"paper", "784x1000,1000x300,300x100,100x10", "the fully connected network of the ISGQ paper"},
    {"alexnet", "9216x4096,4096x4096,4096x1000", "AlexNet's fully connected layers"},
    {"vgg16", "25088x4096,4096x4096,4096x1000", "VGG-16's fully connected layers"},
    {"bert-large", "1024x4096,4096x1024,1024x1024,1024x1024,1024x1024,1024x1024", "one encoder layer of BERT-Large"},
    {NULL, NULL, NULL},
};

typedef struct unit {
    const char *name;
    double factor;
} unit_t;

static const unit_t rates[] = {{"TB/s", 1e12},     {"GB/s", 1e9},      {"MB/s", 1e6},     {"kB/s", 1e3},
                               {"Tbit/s", 1.25e11}, {"Gbit/s", 1.25e8}, {"Mbit/s", 1.25e5}, {"kbit/s", 125}, {NULL, 0}};
static const unit_t times[] = {{"us", 1e-6}, {"ms", 1e-3}, {"ns", 1e-9}, {"s", 1}, {NULL, 0}};

/* A number above 0 and one of the units. Moves *text behind it. */
static double quantity(const char *what, const char **text, const unit_t *units)
{
    char *end;
    double number = strtod(*text, &end);
    for (const unit_t *unit = units; unit->name != NULL && end != *text && number >= 0 && isfinite(number); unit++)
        if (strncmp(end, unit->name, strlen(unit->name)) == 0) {
            *text = end + strlen(unit->name);
            return number * unit->factor;
        }
    iq_die(IQ_EXIT_USAGE, "--cluster: \"%s\" is no %s (\"10%s\")", *text, what, units[1].name);
}

/* "16@10Gbit/s:30us" */
static isgqx_level_t read_level(const char *text)
{
    isgqx_level_t level;
    char *end;
    const char *rest;
    level.children = strtod(text, &end);
    if (end == text || *end != '@' || !(level.children >= 1) || level.children > 1e9 || level.children != floor(level.children))
        iq_die(IQ_EXIT_USAGE, "--cluster: \"%s\" does not begin with a whole number and @", text);
    rest = end + 1;
    level.rate = quantity("rate", &rest, rates);
    if (*rest != ':')
        iq_die(IQ_EXIT_USAGE, "--cluster: \"%s\" lacks a latency after the rate (\":10us\")", text);
    rest++;
    level.latency = quantity("latency", &rest, times);
    if (*rest != '\0' || level.rate == 0)
        iq_die(IQ_EXIT_USAGE, "--cluster: \"%s\" is no level, such as \"4@10Gbit/s:30us\"", text);
    return level;
}

void iq_model_read_cluster(const char *text, isgqx_machine_t *machine)
{
    const char *items[ISGQX_LEVELS];
    char *copy;
    size_t count = iq_split("--cluster", text, ",", &copy, items, ISGQX_LEVELS);
    for (size_t l = 0; l < count; l++)
        machine->levels[l] = read_level(items[l]);
    machine->nlevels = (unsigned)count;
    free(copy);
    if (!(iq_model_ranks(machine) <= 2147483647.0))
        iq_die(IQ_EXIT_USAGE, "--cluster: these are %.3g ranks, at most 2147483647 are known", iq_model_ranks(machine));
}

size_t iq_model_read_network(const char *text, iq_model_layer_t layers[IQ_MODEL_LAYERS])
{
    const char *items[IQ_MODEL_LAYERS];
    char *copy;
    for (const iq_model_network_t *network = iq_model_networks; network->name != NULL; network++)
        if (strcmp(network->name, text) == 0)
            text = network->layers;
    size_t count = iq_split("--layers", text, ",", &copy, items, IQ_MODEL_LAYERS);
    for (size_t i = 0; i < count; i++) {
        unsigned long m, n;
        char rest;
        if (sscanf(items[i], "%lux%lu%c", &m, &n, &rest) != 2 || m == 0 || n == 0 || m > 1000000000 || n > 1000000000)
            iq_die(IQ_EXIT_USAGE, "--layers: \"%s\" is neither a layer, such as \"784x1000\", nor a network that --help names", items[i]);
        layers[i] = (iq_model_layer_t){(double)m, (double)n};
    }
    free(copy);
    return count;
}

double iq_model_ranks(const isgqx_machine_t *machine)
{
    double ranks = 1;
    for (unsigned l = 0; l < machine->nlevels; l++)
        ranks *= machine->levels[l].children;
    return ranks;
}

bool iq_model_resize(isgqx_machine_t *machine, double ranks)
{
    isgqx_level_t *outermost = &machine->levels[machine->nlevels - 1];
    double below = iq_model_ranks(machine) / outermost->children;
    if (fmod(ranks, below) != 0)
        return false;
    outermost->children = ranks / below;
    return true;
}
