/* SPDX-License-Identifier: Apache-2.0 */
/* The product of two tall matrices: reference loops, and the choice between them and the BLAS module. */
#include "kernels/gemm.h"

#include "base/config.h"
#include "base/log.h"
#include "kernels/blas_module.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>

static pthread_once_t blas_once = PTHREAD_ONCE_INIT;
static const iq_blas_module_t *blas; /* NULL: reference */

/* A program that uses OpenBLAS itself has its own opinion on threads. */
static bool program_uses_openblas(void)
{
    void *handle = dlopen("libopenblas.so.0", RTLD_NOLOAD | RTLD_LAZY);
    if (handle != NULL)
        dlclose(handle);
    return handle != NULL;
}

static void load_blas(void)
{
    char saved[IQ_ERROR_TEXT_BYTES];
    strncpy(saved, iq_last_error(), sizeof(saved) - 1);
    saved[sizeof(saved) - 1] = '\0';
    bool theirs = program_uses_openblas();
    blas = (const iq_blas_module_t *)iq_module_load("blas");
    if (blas == NULL) {
        IQ_INFO("products of factors run on the reference kernel: %s", iq_last_error());
        iq_set_last_error(saved); /* the caller did not fail */
        return;
    }
    uint32_t threads = iq_config()->blas_threads;
    if (!theirs && threads != 0)
        blas->set_threads(threads < INT_MAX ? (int)threads : INT_MAX);
}

static const iq_blas_module_t *usable_blas(size_t m, size_t n, size_t k, size_t lda, size_t ldb, size_t ldc)
{
    pthread_once(&blas_once, load_blas);
    bool fits = m <= INT_MAX && n <= INT_MAX && k <= INT_MAX && lda <= INT_MAX && ldb <= INT_MAX && ldc <= INT_MAX;
    return fits && m > 0 && n > 0 && k > 0 ? blas : NULL;
}

const char *iq_gemm_backend(void)
{
    pthread_once(&blas_once, load_blas);
    return blas != NULL ? "blas" : "reference";
}

bool iq_product_svd_present(void)
{
    pthread_once(&blas_once, load_blas);
    return blas != NULL && blas->product_svd != NULL;
}

size_t iq_product_svd_scratch(size_t rows, size_t m, size_t n) { return iq_product_svd_doubles(rows, m, n) * sizeof(double); }

int iq_product_svd(size_t rows, size_t m, size_t n, double *x, double *delta, double *scratch)
{
    if (rows == 0 || m == 0 || n == 0)
        return 0;
    if (!iq_product_svd_present() || m > INT_MAX || n > INT_MAX || rows > 16384) /* work is counted in an int */
        return -1;
    return blas->product_svd((int)rows, (int)m, (int)n, x, delta, scratch);
}

void iq_gemm_tn_f64(size_t m, size_t n, size_t k, const double *a, size_t lda, const double *b, size_t ldb, double *c, size_t ldc,
                    bool accumulate)
{
    const iq_blas_module_t *module = usable_blas(m, n, k, lda, ldb, ldc);
    if (module != NULL)
        module->gemm_tn_f64((int)m, (int)n, (int)k, a, (int)lda, b, (int)ldb, c, (int)ldc, accumulate);
    else
        iq_gemm_reference_f64(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

void iq_gemm_tn_f32(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc,
                    bool accumulate)
{
    const iq_blas_module_t *module = usable_blas(m, n, k, lda, ldb, ldc);
    if (module != NULL)
        module->gemm_tn_f32((int)m, (int)n, (int)k, a, (int)lda, b, (int)ldb, c, (int)ldc, accumulate);
    else
        iq_gemm_reference_f32(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

/* Zeros of A are skipped: half of what a ReLU lets through. */
void iq_gemm_reference_f64(size_t m, size_t n, size_t k, const double *a, size_t lda, const double *b, size_t ldb, double *c,
                           size_t ldc, bool accumulate)
{
    for (size_t i = 0; i < m; i++) {
        double *restrict sums = c + i * ldc;
        if (!accumulate)
            memset(sums, 0, n * sizeof(*sums));
        for (size_t row = 0; row < k; row++) {
            double factor = a[row * lda + i];
            const double *restrict terms = b + row * ldb;
            if (factor != 0)
                for (size_t j = 0; j < n; j++)
                    sums[j] += factor * terms[j];
        }
    }
}

/* No skipping: 0 * Inf and 0 * NaN must show. */
void iq_gemm_reference_f32(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c,
                           size_t ldc, bool accumulate)
{
    for (size_t i = 0; i < m; i++) {
        float *restrict sums = c + i * ldc;
        if (!accumulate)
            memset(sums, 0, n * sizeof(*sums));
        for (size_t row = 0; row < k; row++) {
            float factor = a[row * lda + i];
            const float *restrict terms = b + row * ldb;
            for (size_t j = 0; j < n; j++)
                sums[j] += factor * terms[j];
        }
    }
}
