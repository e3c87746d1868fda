/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums of several arrays in one pass, for rows with vectors: the including file defines VECTOR, LANES, LOAD, STORE, STREAM, ADD and DIVIDE,
 * and REGISTER, the constraint of a vector register in inline assembly.
 * Every element goes through the same operations in the same order, wherever its array begins.
 */
#define SUM sum_of_vectors

/* Of two NaN an addition keeps the first operand's bits, and compilers think that it has no first: they must not see what was loaded. */
#define KEEP_FIRST(vector) __asm__("" : "+" REGISTER(vector))

TARGET static inline __attribute__((always_inline)) VECTOR sum_at(const iq_f32_any_t *const *terms, int nterms, size_t i, VECTOR divisor,
                                                                  bool divides)
{
    VECTOR total = LOAD(terms[0] + i);
    KEEP_FIRST(total);
    for (int term = 1; term < nterms; term++)
        total = ADD(total, LOAD(terms[term] + i));
    return divides ? DIVIDE(total, divisor) : total;
}

/* Elements that fill no vector go through one all the same. */
TARGET static void sum_few(const iq_f32_any_t *const *terms, int nterms, size_t first, size_t count, float by, iq_f32_any_t *dst)
{
    float padded[LANES], result[LANES];
    VECTOR total = {0};
    for (int term = 0; term < nterms; term++) {
        memset(padded, 0, sizeof(padded));
        memcpy(padded, terms[term] + first, count * sizeof(float));
        total = term == 0 ? LOAD(padded) : ADD(total, LOAD(padded));
        KEEP_FIRST(total);
    }
    STORE(result, by != 1 ? DIVIDE(total, SPREAD_FLOAT(by)) : total);
    memcpy(dst + first, result, count * sizeof(float));
}

/* Less than a line. */
TARGET static void sum_some(const iq_f32_any_t *const *terms, int nterms, size_t first, size_t count, float by, iq_f32_any_t *dst)
{
    for (size_t done = 0; done < count; done += LANES)
        sum_few(terms, nterms, first + done, count - done < LANES ? count - done : LANES, by, dst);
}

TARGET static inline __attribute__((always_inline)) void sum_lines(const iq_f32_any_t *const *terms, int nterms, size_t first, size_t end,
                                                                   float by, bool divides, iq_f32_any_t *dst, const iq_sum_output_t *output)
{
    VECTOR divisor = SPREAD_FLOAT(by);
    const char *ahead = output->ahead;
    if (!output->streams) {
        for (size_t i = first; i < end; i += LANES)
            STORE(dst + i, sum_at(terms, nterms, i, divisor, divides));
        return;
    }
    for (size_t i = first; i < end; i += 64 / sizeof(float)) { /* whole lines */
        if (ahead != NULL)
            __builtin_prefetch(ahead + i * sizeof(float));
        for (size_t lane = 0; lane < 64 / sizeof(float); lane += LANES)
            STREAM(dst + i + lane, sum_at(terms, nterms, i + lane, divisor, divides));
    }
}

TARGET static void sum_of_vectors(const void *const terms[], int nterms, size_t count, float by, iq_f32_any_t *dst,
                                  const iq_sum_output_t *output)
{
    const iq_f32_any_t *from[IQ_SUM_TERMS];
    size_t head = output->streams ? -(uintptr_t)dst % 64 / sizeof(float) : 0, end;
    iq_sum_output_t plain = *output;
    for (int term = 0; term < nterms; term++)
        from[term] = terms[term];
    head = head < count ? head : count;
    end = head + (count - head) / 16 * 16;
    plain.streams &= (uintptr_t)dst % sizeof(float) == 0;
    sum_some(from, nterms, 0, head, by, dst);
    if (by != 1)
        sum_lines(from, nterms, head, end, by, true, dst, &plain);
    else if (nterms == 2)
        sum_lines(from, 2, head, end, by, false, dst, &plain);
    else if (nterms == 4)
        sum_lines(from, 4, head, end, by, false, dst, &plain);
    else
        sum_lines(from, nterms, head, end, by, false, dst, &plain);
    sum_some(from, nterms, end, count - end, by, dst);
}
