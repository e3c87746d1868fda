/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu/bench_cublaslt.h"

#if defined(ISGQ_BENCH_REAL) && __has_include(<cublasLt.h>) /* its headers are CUDA's own */

#include <cublasLt.h>
#include <dlfcn.h>
#include <stdint.h>

static struct {
    cublasStatus_t (*create)(cublasLtHandle_t *handle);
    cublasStatus_t (*desc_create)(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale);
    cublasStatus_t (*desc_set)(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const void *value,
                               size_t bytes);
    cublasStatus_t (*layout_create)(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows, uint64_t columns,
                                    int64_t stride);
    cublasStatus_t (*preference_create)(cublasLtMatmulPreference_t *preference);
    cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                                     const void *value, size_t bytes);
    cublasStatus_t (*heuristic)(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t *results,
                                int *found);
    cublasStatus_t (*matmul)(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                             cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                             const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                             const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream);
} lt;

static cublasLtHandle_t handle;
static cublasLtMatmulDesc_t desc;
static cublasLtMatrixLayout_t a_layout, b_layout, c_layout;
static cublasLtMatmulHeuristicResult_t best;

/* A function's address as a pointer to a function, which C does not convert. */
static bool find(void *library, const char *name, void *function)
{
    void *address = dlsym(library, name);
    *(void **)function = address;
    return address != NULL;
}

static bool load(const char **why)
{
    static void *library;
    const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    *why = "no libcublasLt could be opened";
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && library == NULL; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return false;
    *why = "libcublasLt lacks a function";
    return find(library, "cublasLtCreate", &lt.create) && find(library, "cublasLtMatmulDescCreate", &lt.desc_create) &&
           find(library, "cublasLtMatmulDescSetAttribute", &lt.desc_set) &&
           find(library, "cublasLtMatrixLayoutCreate", &lt.layout_create) &&
           find(library, "cublasLtMatmulPreferenceCreate", &lt.preference_create) &&
           find(library, "cublasLtMatmulPreferenceSetAttribute", &lt.preference_set) &&
           find(library, "cublasLtMatmulAlgoGetHeuristic", &lt.heuristic) && find(library, "cublasLtMatmul", &lt.matmul);
}

bool bench_cublaslt_open(size_t rows, size_t m, size_t n, const char **why)
{
    cublasLtMatmulPreference_t preference;
    cublasOperation_t transposed = CUBLAS_OP_T;
    size_t workspace = BENCH_CUBLASLT_WORKSPACE;
    int found = 0;
    if (!load(why))
        return false;
    *why = "cuBLASLt has no product of 8-bit integers for this shape";
    if (handle == NULL && lt.create(&handle) != CUBLAS_STATUS_SUCCESS)
        return false;
    return lt.desc_create(&desc, CUBLAS_COMPUTE_32I, CUDA_R_32I) == CUBLAS_STATUS_SUCCESS &&
           lt.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)) == CUBLAS_STATUS_SUCCESS &&
           lt.layout_create(&a_layout, CUDA_R_8I, rows, m, (int64_t)rows) == CUBLAS_STATUS_SUCCESS &&
           lt.layout_create(&b_layout, CUDA_R_8I, rows, n, (int64_t)rows) == CUBLAS_STATUS_SUCCESS &&
           lt.layout_create(&c_layout, CUDA_R_32I, m, n, (int64_t)m) == CUBLAS_STATUS_SUCCESS &&
           lt.preference_create(&preference) == CUBLAS_STATUS_SUCCESS &&
           lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)) ==
               CUBLAS_STATUS_SUCCESS &&
           lt.heuristic(handle, desc, a_layout, b_layout, c_layout, c_layout, preference, 1, &best, &found) ==
               CUBLAS_STATUS_SUCCESS &&
           found == 1;
}

bool bench_cublaslt_run(const void *a, const void *b, void *c, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    int32_t one = 1, zero = 0;
    return lt.matmul(handle, desc, &one, a, a_layout, b, b_layout, &zero, c, c_layout, c, c_layout, &best.algo, workspace,
                     workspace_bytes, stream) == CUBLAS_STATUS_SUCCESS;
}

#else

bool bench_cublaslt_open(size_t rows, size_t m, size_t n, const char **why)
{
    (void)rows;
    (void)m;
    (void)n;
    *why = "this build had no cublasLt.h";
    return false;
}

bool bench_cublaslt_run(const void *a, const void *b, void *c, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    (void)a;
    (void)b;
    (void)c;
    (void)workspace;
    (void)workspace_bytes;
    (void)stream;
    return false;
}

#endif
