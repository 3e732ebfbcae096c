// CPU launchers: loops that the compiler vectorises, threads over samples.
#include <cmath>

#include "ddim/ddim.h"
#include "ddim/ddim_math.h"

namespace splatdistill::ddim::SPLATDISTILL_LEVEL {
namespace {

constexpr int64_t kBlock = 512;  // sums run in fp32 within a block and in fp64 across blocks

template <class F>
void for_each_sample(const Batch& batch, int threads, F&& body) {
    if (threads == 1 ||
        batch.samples == 1) {  // not an if() clause: even a team of one costs as much as a step
        for (int64_t b = 0; b < batch.samples; ++b) body(b);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch.samples; ++b) body(b);
}

template <class F>
void with_dtype(DType dtype, F&& body) {
    if (dtype == DType::f32) return body(float{});
    if (dtype == DType::f16) return body(Half{});
    return body(BFloat16{});
}

template <int R>
struct Branches {
    static constexpr int value = R;
};

template <class F>
void with_branches(int branches, F&& body) {
    if (branches == 1) return body(Branches<1>{});
    if (branches == 2) return body(Branches<2>{});
    if (branches == 3) return body(Branches<3>{});
    if (branches == 4) return body(Branches<4>{});
    return body(Branches<0>{});
}

// <o_r - o_0, o_1 - o_0> over one sample.
template <class T>
float dot_with_positive(const T* o, const T* o_1, const T* o_r, int64_t size) {
    double total = 0.0;
    for (int64_t start = 0; start < size; start += kBlock) {
        const int64_t stop = start + kBlock < size ? start + kBlock : size;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < stop; ++i) {
            const float o_0 = load(o[i]);
            sum += (load(o_r[i]) - o_0) * (load(o_1[i]) - o_0);
        }
        total += sum;
    }
    return float(total);
}

template <class T>
void sample_weights(const Guidance& g, const Batch& batch, int64_t b, const T* o, float* W) {
    if (!g.perp_neg) return linear_weights(g.weights + b, batch.samples, g.branches, W);
    const int64_t stride = batch.samples * batch.size;
    float dots[kMaxBranches] = {};
    for (int r = 1; r < g.branches; ++r)
        dots[r] = dot_with_positive(o, o + stride, o + r * stride, batch.size);
    perp_neg_weights(g.weights + b, batch.samples, g.branches, dots, W);
}

template <int R, class T>
void step_sample(const Step& op, int64_t b) {
    const int64_t size = op.batch.size, stride = op.batch.samples * size;
    const int branches = op.guidance.branches;
    const T* o = static_cast<const T*>(op.guidance.outputs) + b * size;
    const T* x_t = static_cast<const T*>(op.x_t) + b * size;
    const T* noise = op.noise ? static_cast<const T*>(op.noise) + b * size : nullptr;
    T* __restrict__ x_next = static_cast<T*>(op.x_next) + b * size;
    float W[kMaxBranches];
    sample_weights(op.guidance, op.batch, b, o, W);
    const StepFactors f = step_factors(op.batch.coefficients + 7 * b);
    if (noise) {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i)
            store(x_next[i], f.x * load(x_t[i]) + f.m * guided<R>(o + i, stride, branches, W) +
                                 f.noise * load(noise[i]));
    } else {
#pragma omp simd
        for (int64_t i = 0; i < size; ++i)
            store(x_next[i], f.x * load(x_t[i]) + f.m * guided<R>(o + i, stride, branches, W));
    }
}

template <int R, class T>
void residual_sample(const Residual& op, int64_t b) {
    const int64_t size = op.batch.size, stride = op.batch.samples * size;
    const int branches = op.guidance.branches;
    const T* o = static_cast<const T*>(op.guidance.outputs) + b * size;
    const T* x_t = static_cast<const T*>(op.x_t) + b * size;
    const T* noise = static_cast<const T*>(op.noise) + b * size;
    T* __restrict__ gradient = static_cast<T*>(op.gradient) + b * size;
    T* __restrict__ x0_hat = static_cast<T*>(op.x0_hat) + b * size;
    float W[kMaxBranches], c[5];
    sample_weights(op.guidance, op.batch, b, o, W);
    std::memcpy(c, op.batch.coefficients + 5 * b, sizeof(c));
    double total = 0.0;
    for (int64_t start = 0; start < size; start += kBlock) {
        const int64_t stop = start + kBlock < size ? start + kBlock : size;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < stop; ++i) {
            const float x = load(x_t[i]), e = guided<R>(o + i, stride, branches, W);
            const float g = residual(c, x, e, load(noise[i]));
            sum += g * g;
            store(gradient[i], g);
            store(x0_hat[i], clean(c, x, e));
        }
        total += sum;
    }
    op.norms[b] = float(std::sqrt(total));
}

template <class T>
void recover_sample(const Recover& op, int64_t b) {
    const int64_t size = op.batch.size;
    const T* x_0 = static_cast<const T*>(op.x_0) + b * size;
    const T* x_t = static_cast<const T*>(op.x_t) + b * size;
    T* __restrict__ eps = static_cast<T*>(op.eps) + b * size;
    T* __restrict__ x_next = static_cast<T*>(op.x_next) + b * size;
    float c[4];
    std::memcpy(c, op.batch.coefficients + 4 * b, sizeof(c));
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
        const float x = load(x_0[i]), e = recovered(c, x, load(x_t[i]));
        store(eps[i], e);
        store(x_next[i], renoised(c, x, e));
    }
}

}  // namespace

void run_cpu(const Step& op, int threads) {
    with_dtype(op.batch.dtype, [&](auto element) {
        with_branches(op.guidance.branches, [&](auto R) {
            for_each_sample(op.batch, threads,
                            [&](int64_t b) { step_sample<R.value, decltype(element)>(op, b); });
        });
    });
}

void run_cpu(const Residual& op, int threads) {
    with_dtype(op.batch.dtype, [&](auto element) {
        with_branches(op.guidance.branches, [&](auto R) {
            for_each_sample(op.batch, threads,
                            [&](int64_t b) { residual_sample<R.value, decltype(element)>(op, b); });
        });
    });
}

void run_cpu(const Recover& op, int threads) {
    with_dtype(op.batch.dtype, [&](auto element) {
        for_each_sample(op.batch, threads, [&](int64_t b) { recover_sample<decltype(element)>(op, b); });
    });
}

}  // namespace splatdistill::ddim::SPLATDISTILL_LEVEL
