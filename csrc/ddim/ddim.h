// What the launchers take: plain pointers, sizes and dtype tags. Tensors are contiguous; see ddim_math.h for
// the maths.
#pragma once
#include <cstdint>

#include "levels/level.h"

namespace splatdistill::ddim {

enum class DType { f32, f16, bf16 };

constexpr int kMaxBranches = 16;

// What every operation knows of its batch; `size` is C h w, the elements of one sample.
struct Batch {
    DType dtype;  // of all tensors but weights, coefficients and norms, which are fp32
    int64_t samples, size;
    const float* coefficients;  // [B, 7 | 5 | 4]
};

struct Guidance {
    const void* outputs;   // [R, B, size]
    const float* weights;  // [R, B]
    int branches;
    bool perp_neg;
};

struct Step {
    Batch batch;
    Guidance guidance;
    const void* x_t;    // [B, size]
    const void* noise;  // [B, size] or null
    void* x_next;       // [B, size]
};

struct Residual {
    Batch batch;
    Guidance guidance;
    const void* x_t;    // [B, size]
    const void* noise;  // [B, size]
    void* gradient;     // [B, size]
    void* x0_hat;       // [B, size]
    float* norms;       // [B]
};

struct Recover {
    Batch batch;
    const void* x_0;  // [B, size]
    const void* x_t;  // [B, size]
    void* eps;        // [B, size]
    void* x_next;     // [B, size]
};

namespace SPLATDISTILL_LEVEL {

// One thread computes a whole sample, so results do not depend on `threads`.
void run_cpu(const Step& op, int threads);
void run_cpu(const Residual& op, int threads);
void run_cpu(const Recover& op, int threads);

}  // namespace SPLATDISTILL_LEVEL

// Enqueue on `stream` of `device`; return null, or CUDA's message for a launch that failed.
const char* run_cuda(const Step& op, int device, void* stream);
const char* run_cuda(const Residual& op, int device, void* stream);
const char* run_cuda(const Recover& op, int device, void* stream);

}  // namespace splatdistill::ddim
