/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq-mse and isgq-mvu: the levels that they start from. What they do then, fitting the levels to the gradient by least squares, can
 * but lower a rank's error; so the error of the start bounds that of the end.
 *
 * Values that are not zero go to the nearest Lloyd-Max level of a normal distribution with their root mean square: all levels are positive
 * for X after a ReLU, half of them otherwise. Zeros stay.
 */
#include "perf/perf.h"

#include <math.h>
#include <string.h>

enum { RECIPE_BYTES = 256 };

static void round_factor(double *values, size_t count, unsigned levels)
{
    double squares = 0.0, nonzero = 0.0;
    bool folded = true;

    for (size_t i = 0; i < count; i++) {
        squares += values[i] * values[i];
        nonzero += values[i] != 0.0;
        folded &= values[i] >= 0.0;
    }
    if (squares == 0.0)
        return;
    double scale = sqrt(squares / nonzero);
    unsigned bits = (unsigned)log2(folded ? 2.0 * levels : levels);
    for (size_t i = 0; i < count; i++)
        if (values[i] != 0.0)
            values[i] = scale * iq_perf_normal_level(bits, values[i] / scale);
}

bool iq_perf_centers(const iq_perf_case_t *test, double *x, double *delta)
{
    char recipe[RECIPE_BYTES];

    iq_perf_recipe(test->quantizer_text, "factored=", recipe, sizeof(recipe));
    if (strncmp(recipe, "isgq-mse", 8) != 0 && strncmp(recipe, "isgq-mvu", 8) != 0)
        return false;
    unsigned levels = (unsigned)iq_perf_setting(recipe, "levels", 4.0);
    round_factor(x, test->rows * test->m, levels);
    round_factor(delta, test->rows * test->n, levels);
    return true;
}
