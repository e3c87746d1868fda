/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll-blas.so: OpenBLAS behind the table of kernels/blas_module.h. The only file that knows CBLAS and LAPACK; links nothing of the
 * library. */
#include "kernels/blas_module.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

static void start(const iq_services_t *services) { (void)services; }

static void gemm_tn_f64(int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc,
                        bool accumulate)
{
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1, a, lda, b, ldb, accumulate ? 1 : 0, c, ldc);
}

static void gemm_tn_f32(int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc, bool accumulate)
{
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1, a, lda, b, ldb, accumulate ? 1 : 0, c, ldc);
}

#ifdef ISGQ_LAPACK
/* LAPACK as Fortran has it: columns first, so a matrix of rows [rows x m] is a transpose [m x rows]. */
extern void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *lwork, int *info);
extern void dormqr_(const char *side, const char *trans, const int *m, const int *n, const int *k, const double *a, const int *lda,
                    const double *tau, double *c, const int *ldc, double *work, const int *lwork, int *info, size_t, size_t);
extern void dgesdd_(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s, double *u, const int *ldu,
                    double *vt, const int *ldvt, double *work, const int *lwork, int *iwork, int *info, size_t);

/* Values below this share of the largest are what rounding left. */
#define NEGLIGIBLE 0x1p-40

static int smaller(int a, int b) { return a < b ? a : b; }

/* transpose(R) of the QR decomposition in `a` [columns x rows], as `r` [reflectors x rows]. */
static void take_upper(int columns, int rows, const double *a, double *r)
{
    int reflectors = smaller(columns, rows);
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < reflectors; i++)
            r[i + (size_t)j * reflectors] = i <= j ? a[i + (size_t)j * columns] : 0;
}

/* The first `count` vectors (vector i: core[i * step + r * next], r below `reflectors`) rotated by Q of `a`, scaled, to the rows of `a`. */
static int rotate(int columns, int rows, int count, double *a, const double *tau, const double *core, size_t step, size_t next,
                  const double *scale, double balance, double *wide, double *work, int lwork)
{
    int reflectors = smaller(columns, rows), info;
    memset(wide, 0, (size_t)columns * count * sizeof(*wide));
    for (int i = 0; i < count; i++)
        for (int r = 0; r < reflectors; r++)
            wide[r + (size_t)i * columns] = core[i * step + r * next];
    dormqr_("L", "N", &columns, &count, &reflectors, a, &columns, tau, wide, &columns, work, &lwork, &info, 1, 1);
    for (int i = 0; i < count; i++)
        for (int r = 0; r < columns; r++)
            a[r + (size_t)i * columns] = wide[r + (size_t)i * columns] * sqrt(scale[i]) * balance;
    return info;
}

/* Two QR decompositions, and that of the small matrix between them: transpose(x) delta = Qx (Rx transpose(Rd)) transpose(Qd). */
static int product_svd(int rows, int m, int n, double *x, double *delta, double *scratch)
{
    iq_product_svd_layout_t lay = iq_product_svd_lay((size_t)rows, (size_t)m, (size_t)n);
    double *tau_x = scratch, *tau_delta = tau_x + rows, *values = tau_delta + rows, *integers = values + rows;
    double *core = integers + (size_t)4 * rows, *left = core + lay.square, *right = left + lay.square, *wide = right + lay.square,
           *work = wide + lay.wide;
    int of_x = smaller(rows, m), of_delta = smaller(rows, n), both = smaller(of_x, of_delta), lwork = (int)lay.work, info, count = 0;
    double norm_x = cblas_dnrm2(m, x, 1), norm_delta = cblas_dnrm2(n, delta, 1);
    for (int r = 1; r < rows; r++) { /* row by row: rows * m may be beyond an int */
        norm_x = hypot(norm_x, cblas_dnrm2(m, x + (size_t)r * m, 1));
        norm_delta = hypot(norm_delta, cblas_dnrm2(n, delta + (size_t)r * n, 1));
    }
    if (!(norm_x > 0 && norm_delta > 0))
        return 0;
    dgeqrf_(&m, &rows, x, &m, tau_x, work, &lwork, &info);
    dgeqrf_(&n, &rows, delta, &n, tau_delta, work, &lwork, &info);
    take_upper(m, rows, x, left);
    take_upper(n, rows, delta, right);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, of_x, of_delta, rows, 1, left, of_x, right, of_delta, 0, core, of_x);
    dgesdd_("S", &of_x, &of_delta, core, &of_x, values, left, &of_x, right, &both, work, &lwork, (int *)(void *)integers, &info, 1);
    if (info != 0)
        return -1;
    while (count < both && values[count] > NEGLIGIBLE * norm_x * norm_delta)
        count++;
    double balance = sqrt(norm_x / norm_delta);
    info = rotate(m, rows, count, x, tau_x, left, (size_t)of_x, 1, values, balance, wide, work, lwork);
    info |= rotate(n, rows, count, delta, tau_delta, right, 1, (size_t)both, values, 1 / balance, wide, work, lwork);
    return info == 0 ? count : -1;
}
#endif

extern const iq_blas_module_t iq_module_blas;

ISGQ_API const iq_blas_module_t iq_module_blas = {
    .module = {.abi = IQ_MODULE_ABI, .start = start},
    .set_threads = openblas_set_num_threads,
    .gemm_tn_f64 = gemm_tn_f64,
    .gemm_tn_f32 = gemm_tn_f32,
#ifdef ISGQ_LAPACK
    .product_svd = product_svd,
#endif
};
