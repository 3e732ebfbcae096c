// Per-element and per-sample arithmetic of the diffusion steps, shared by the CPU and the CUDA kernels.
//
//   e       = W_0 o_0 + sum_{r>=1} W_r (o_r - o_0)              guided network output (see *_weights below)
//   x0_hat  = x0_x x_t + x0_m e,   eps_hat = eps_x x_t + eps_m e
//   x_next  = next_x0 x0_hat + next_eps eps_hat + next_noise noise      (DDIM, 2010.02502, eq. 12)
//
// Storage is fp32, fp16 or bf16; arithmetic is fp32. Differences to o_0 keep CFG exact where branches agree.
#pragma once
#include <cstdint>
#include <cstring>

#include "ddim/ddim.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SPLATDISTILL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPLATDISTILL_HOST_DEVICE SPLATDISTILL_INLINE
#endif

namespace splatdistill::ddim {

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

SPLATDISTILL_HOST_DEVICE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

SPLATDISTILL_HOST_DEVICE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// The host forms are integer selects without branches, so that loops over them vectorise on any processor.
SPLATDISTILL_HOST_DEVICE float load(float value) { return value; }

SPLATDISTILL_HOST_DEVICE float load(BFloat16 value) { return as_float(uint32_t(value.bits) << 16); }

SPLATDISTILL_HOST_DEVICE float load(Half value) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(value.bits));
#else
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16, magnitude = uint32_t(value.bits & 0x7fffu)
                                                                            << 13;
    const uint32_t normal = magnitude + (112u << 23), infinite = magnitude + (224u << 23);
    const uint32_t denormal = as_bits(as_float(magnitude + (113u << 23)) - as_float(113u << 23));
    const uint32_t finite = magnitude < (1u << 23) ? denormal : normal;
    return as_float(sign | (magnitude >= (31u << 23) ? infinite : finite));
#endif
}

SPLATDISTILL_HOST_DEVICE void store(float& target, float value) { target = value; }

SPLATDISTILL_HOST_DEVICE void store(BFloat16& target, float value) {
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    target.bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

SPLATDISTILL_HOST_DEVICE void store(Half& target, float value) {
#if defined(__CUDA_ARCH__)
    target.bits = __half_as_ushort(__float2half_rn(value));
#else
    const uint32_t bits = as_bits(value), magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t denormal = as_bits(as_float(magnitude) + 0.5f) - (126u << 23);
    const uint32_t infinite = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < (113u << 23) ? denormal : normal;
    target.bits = uint16_t(((bits >> 16) & 0x8000u) | (magnitude >= 0x477ff000u ? infinite : finite));
#endif
}

// sum_r w_r o_r as differences: W_0 = sum_r w_r, W_r = w_r. Sample b's weights lie `stride` apart.
SPLATDISTILL_HOST_DEVICE void linear_weights(const float* weights, int64_t stride, int branches, float* W) {
    float total = 0.0f;
    for (int r = 0; r < branches; ++r) total += W[r] = weights[r * stride];
    W[0] = total;
}

// Perp-neg (2304.04968) with d_r = o_r - o_0 and dots[r] = <d_r, d_1>:
// o_0 + w_1 d_1 + sum_{i>=2} w_i (d_i - dots[i]/dots[1] d_1). A zero d_1 leaves every d_i as it is.
SPLATDISTILL_HOST_DEVICE void perp_neg_weights(const float* weights, int64_t stride, int branches,
                                               const float* dots, float* W) {
    W[0] = 1.0f;
    W[1] = weights[stride];
    for (int r = 2; r < branches; ++r) {
        W[r] = weights[r * stride];
        if (dots[1] > 0.0f) W[1] -= W[r] * (dots[r] / dots[1]);
    }
}

// The guided output at one element; o points at branch 0, the branches lie `stride` apart.
// R > 0 fixes the number of branches at compile time.
template <int R, class T>
SPLATDISTILL_HOST_DEVICE float guided(const T* o, int64_t stride, int branches, const float* W) {
    const float o_0 = load(o[0]);
    float e = W[0] * o_0;
    for (int r = 1; r < (R > 0 ? R : branches); ++r) e += W[r] * (load(o[r * stride]) - o_0);
    return e;
}

// x_next = x x_t + m e + noise * noise: the conversion and the move folded into three factors.
struct StepFactors {
    float x, m, noise;
};

SPLATDISTILL_HOST_DEVICE StepFactors
step_factors(const float* c) {  // c: x0_x x0_m eps_x eps_m next_x0 next_eps next_noise
    return {c[4] * c[0] + c[5] * c[2], c[4] * c[1] + c[5] * c[3], c[6]};
}

// gradient = w (eps_hat - noise) and x0_hat, for coefficients c: x0_x x0_m eps_x eps_m w.
SPLATDISTILL_HOST_DEVICE float residual(const float* c, float x_t, float e, float noise) {
    return c[4] * (c[2] * x_t + c[3] * e - noise);
}

SPLATDISTILL_HOST_DEVICE float clean(const float* c, float x_t, float e) { return c[0] * x_t + c[1] * e; }

// eps = c_0 x_t + c_1 x_0 and x_next = c_2 x_0 + c_3 eps.
SPLATDISTILL_HOST_DEVICE float recovered(const float* c, float x_0, float x_t) {
    return c[0] * x_t + c[1] * x_0;
}

SPLATDISTILL_HOST_DEVICE float renoised(const float* c, float x_0, float eps) {
    return c[2] * x_0 + c[3] * eps;
}

}  // namespace splatdistill::ddim
