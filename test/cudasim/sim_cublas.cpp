/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products of the simulated cuBLAS: column-major, sums in double and rounded once.
 */
#include "cudasim/sim.h"

#include <cublas_v2.h>

#include <vector>

struct cublasContext {
    int device;
    cudaStream_t stream;
};

namespace cudasim {

static std::mutex handles_lock;
static std::map<cublasHandle_t, std::shared_ptr<cublasContext>> *handles;

static std::shared_ptr<cublasContext> find_handle(cublasHandle_t handle)
{
    std::lock_guard<std::mutex> guard(handles_lock);
    if (handles == nullptr)
        return nullptr;
    auto found = handles->find(handle);
    return found == handles->end() ? nullptr : found->second;
}

struct Matrix {
    bool transposed;
    const float *data;
    size_t stride;
    double at(size_t row, size_t column) const
    {
        return static_cast<double>(transposed ? data[column + row * stride] : data[row + column * stride]);
    }
};

struct Product {
    Matrix a, b;
    float *c;
    size_t m, n, k, stride;
    float alpha, beta;
};

static void multiply(const Product &p)
{
    std::vector<double> sums(p.m);
    for (size_t j = 0; j < p.n; j++) {
        sums.assign(p.m, 0.0);
        for (size_t l = 0; l < p.k; l++) {
            double factor = p.b.at(l, j);
            for (size_t i = 0; i < p.m; i++)
                sums[i] += p.a.at(i, l) * factor;
        }
        float *column = p.c + j * p.stride;
        for (size_t i = 0; i < p.m; i++) { /* C is not read if beta is 0 */
            double kept = p.beta == 0.0f ? 0.0 : static_cast<double>(p.beta) * static_cast<double>(column[i]);
            column[i] = static_cast<float>(static_cast<double>(p.alpha) * sums[i] + kept);
        }
    }
}

/* Bytes of a matrix of so many columns, each `stride` elements behind the one before. */
static size_t extent(size_t rows, size_t columns, size_t stride)
{
    return rows == 0 || columns == 0 ? 0 : ((columns - 1) * stride + rows) * sizeof(float);
}

static bool is_there(const void *memory, size_t bytes, int device)
{
    Place place = locate(memory, bytes);
    return bytes == 0 || (place.kind == Kind::device && place.whole && place.device == device);
}

static cublasStatus_t enqueue(const cublasContext &context, const Product &product)
{
    std::shared_ptr<Stream> stream = find_stream(context.stream);
    if (stream == nullptr || stream->device != context.device)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    const Product &p = product;
    size_t a_bytes = p.a.transposed ? extent(p.k, p.m, p.a.stride) : extent(p.m, p.k, p.a.stride);
    size_t b_bytes = p.b.transposed ? extent(p.n, p.k, p.b.stride) : extent(p.k, p.n, p.b.stride);
    size_t c_bytes = extent(p.m, p.n, p.stride);
    if (!is_there(p.a.data, a_bytes, context.device) || !is_there(p.b.data, b_bytes, context.device) ||
        !is_there(p.c, c_bytes, context.device))
        return CUBLAS_STATUS_EXECUTION_FAILED; /* the real one would fault */
    cudaError_t error = submit(stream, [product, a_bytes, b_bytes, c_bytes] {
        require_present("cublasSgemm", product.a.data, a_bytes);
        require_present("cublasSgemm", product.b.data, b_bytes);
        require_present("cublasSgemm", product.c, c_bytes);
        multiply(product);
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

/* Counts the call, and fails it if a test wants that. */
#define CUBLAS_ENTER()                            \
    static Call this_call(__func__);              \
    do {                                          \
        if (this_call.enter() != cudaSuccess)     \
            return CUBLAS_STATUS_NOT_INITIALIZED; \
    } while (0)

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    CUBLAS_ENTER();
    std::shared_ptr<cublasContext> context(new cublasContext{current_device(), nullptr});
    std::lock_guard<std::mutex> guard(handles_lock);
    if (handles == nullptr)
        handles = new std::map<cublasHandle_t, std::shared_ptr<cublasContext>>;
    (*handles)[context.get()] = context;
    *handle = context.get();
    return CUBLAS_STATUS_SUCCESS;
}

CUDASIM_EXPORT cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    CUBLAS_ENTER();
    std::lock_guard<std::mutex> guard(handles_lock);
    return handles != nullptr && handles->erase(handle) == 1 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

CUDASIM_EXPORT cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t streamId)
{
    CUBLAS_ENTER();
    std::shared_ptr<cublasContext> context = find_handle(handle);
    if (context == nullptr)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    context->stream = streamId;
    return CUBLAS_STATUS_SUCCESS;
}

CUDASIM_EXPORT cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t)
{
    CUBLAS_ENTER();
    return find_handle(handle) == nullptr ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

CUDASIM_EXPORT const char *cublasGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
    return "an unknown status";
}

CUDASIM_EXPORT cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
                                          const float *alpha, const float *A, int lda, const float *B, int ldb, const float *beta, float *C,
                                          int ldc)
{
    CUBLAS_ENTER();
    std::shared_ptr<cublasContext> context = find_handle(handle);
    if (context == nullptr)
        return CUBLAS_STATUS_NOT_INITIALIZED;
    bool a_turned = transa != CUBLAS_OP_N, b_turned = transb != CUBLAS_OP_N;
    if (m < 0 || n < 0 || k < 0 || lda < (a_turned ? k : m) || ldb < (b_turned ? n : k) || ldc < m || alpha == nullptr || beta == nullptr)
        return CUBLAS_STATUS_INVALID_VALUE;
    return enqueue(*context, {{a_turned, A, static_cast<size_t>(lda)},
                              {b_turned, B, static_cast<size_t>(ldb)},
                              C,
                              static_cast<size_t>(m),
                              static_cast<size_t>(n),
                              static_cast<size_t>(k),
                              static_cast<size_t>(ldc),
                              *alpha,
                              *beta});
}
