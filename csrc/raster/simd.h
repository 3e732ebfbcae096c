// Sixteen floats as one value: AVX-512 where the compiler targets it, portable vector extensions elsewhere.
#pragma once

#include <cstdint>
#include <cmath>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are only passed between inlined functions

namespace splatdistill::raster {

constexpr int kLanes = 16;

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));  // wraps where vi must not

inline vf splat(float x) { return vf{} + x; }
inline vi as_int(vf x) { return (vi)x; }
inline vf as_float(vi x) { return (vf)x; }
inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }

#ifdef __AVX512F__

typedef __mmask16 vm;
inline vm less(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
inline vm less_equal(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
inline vm less(vi a, vi b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
inline vf select(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
inline vi select(vm m, vi a, vi b) { return (vi)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
inline vf keep(vm m, vf a) { return (vf)_mm512_maskz_mov_ps(m, (__m512)a); }
inline vm both(vm a, vm b) { return a & b; }
inline uint32_t bits(vm m) { return m; }
inline vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
inline vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vf sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }

#else

typedef vi vm;
inline vm less(vf a, vf b) { return a < b; }
inline vm less_equal(vf a, vf b) { return a <= b; }
inline vm less(vi a, vi b) { return a < b; }
inline vf select(vm m, vf a, vf b) { return m ? a : b; }
inline vi select(vm m, vi a, vi b) { return m ? a : b; }
inline vf keep(vm m, vf a) { return as_float(m & as_int(a)); }
inline vm both(vm a, vm b) { return a & b; }
inline uint32_t bits(vm m) {
    uint32_t r = 0;
    for (int l = 0; l < kLanes; ++l) r |= (m[l] & 1u) << l;
    return r;
}
inline vf min(vf a, vf b) { return a < b ? a : b; }
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf sqrt(vf a) {
    vf r;
    for (int l = 0; l < kLanes; ++l) r[l] = std::sqrt(a[l]);
    return r;
}

#endif

inline vm is_finite(vf x) { return less_equal(x * 0.0f, vf{}); }
inline vf clamp(vf x, vf low, vf high) { return min(max(x, low), high); }

// Element `offset` of up to sixteen records; lanes past `count` repeat the last record.
inline vf gather(const float* base, int64_t stride, int offset, int count) {
    alignas(64) float lanes[kLanes];
    if (count == kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] = base[l * stride + offset];
    else
        for (int l = 0; l < kLanes; ++l) lanes[l] = base[(l < count ? l : count - 1) * stride + offset];
    return load(lanes);
}

inline void scatter(vf x, float* base, int64_t stride, int offset, int count) {
    alignas(64) float lanes[kLanes];
    store(lanes, x);
    for (int l = 0; l < count; ++l) base[l * stride + offset] = lanes[l];
}

inline void scatter(vi x, int32_t* base, int64_t stride, int offset, int count) {
    for (int l = 0; l < count; ++l) base[l * stride + offset] = x[l];
}

// 2^x for x in [-126, 126], relative error below 2e-7: round to the nearest integer by adding 1.5 * 2^23,
// a polynomial for the fraction in [-1/2, 1/2], the integer added to the exponent bits.
inline vf exp2(vf x) {
    const float shift = 12582912.0f;
    vf rounded = x + shift;
    vf f = x - (rounded - shift);
    vf p = f * 1.32647e-3f + 9.67151e-3f;
    p = p * f + 5.550734e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.9314698e-1f;
    p = p * f + 1.0f;
    return (vf)((vu)p + ((vu)rounded << 23));
}

// log2(x) for normal x > 0, absolute error below 3e-7: x = 2^e m with m in [sqrt(1/2), sqrt(2)),
// ln m = 2 artanh((m - 1) / (m + 1)).
inline vf log2(vf x) {
    vi e = (vi)((vu)x - 0x3f3504f3u) >> 23;
    vf m = (vf)((vu)x - ((vu)e << 23));
    vf s = (m - 1.0f) / (m + 1.0f);
    vf s2 = s * s;
    vf p = s2 * (1.0f / 9.0f) + 1.0f / 7.0f;
    p = p * s2 + 1.0f / 5.0f;
    p = p * s2 + 1.0f / 3.0f;
    p = p * s2 + 1.0f;
    return __builtin_convertvector(e, vf) + p * s * 2.885390082f;
}

// The sums over lanes of ten vectors, in lanes 0..9 of the result (the other lanes are zero).
inline vf sum_lanes(const vf (&v)[10]) {
#ifdef __AVX512F__
    auto pair = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    auto quad = [](__m512 a, __m512 b) {
        __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    };
    auto across = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    __m512 zero = _mm512_setzero_ps();
    __m512 a = quad(pair((__m512)v[0], (__m512)v[1]), pair((__m512)v[2], (__m512)v[3]));
    __m512 b = quad(pair((__m512)v[4], (__m512)v[5]), pair((__m512)v[6], (__m512)v[7]));
    __m512 c = quad(pair((__m512)v[8], (__m512)v[9]), zero);
    return (vf)across(across(a, b), across(c, zero));
#else
    vf r = {};
    for (int k = 0; k < 10; ++k) {
        float sum = 0.0f;
        for (int l = 0; l < kLanes; ++l) sum += v[k][l];
        r[k] = sum;
    }
    return r;
#endif
}

}  // namespace splatdistill::raster
