// Sixteen floats as one value: one register with AVX-512, pairs of pairs of narrower ones elsewhere.
// vf: floats, vi: int32, vm: a truth value for each lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 means its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "raster/raster.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are only passed between inlined functions

namespace splatdistill::raster::SPLATDISTILL_LEVEL {

// --- one register of the machine ---

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

typedef float rf __attribute__((vector_size(kRegister)));
typedef int32_t ri __attribute__((vector_size(kRegister)));
typedef uint32_t ru __attribute__((vector_size(kRegister)));  // wraps where ri must not

#ifdef __AVX512F__

typedef __mmask16 rm;
SPLATDISTILL_INLINE rm less(rf a, rf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
SPLATDISTILL_INLINE rm less_equal(rf a, rf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
SPLATDISTILL_INLINE rm less(ri a, ri b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
SPLATDISTILL_INLINE rf select(rm m, rf a, rf b) { return (rf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
SPLATDISTILL_INLINE ri select(rm m, ri a, ri b) {
    return (ri)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a);
}
SPLATDISTILL_INLINE rf keep(rm m, rf a) { return (rf)_mm512_maskz_mov_ps(m, (__m512)a); }
SPLATDISTILL_INLINE uint32_t bits(rm m) { return m; }
SPLATDISTILL_INLINE rf min(rf a, rf b) { return (rf)_mm512_min_ps((__m512)a, (__m512)b); }
SPLATDISTILL_INLINE rf max(rf a, rf b) { return (rf)_mm512_max_ps((__m512)a, (__m512)b); }
SPLATDISTILL_INLINE rf sqrt(rf a) { return (rf)_mm512_sqrt_ps((__m512)a); }

#else

typedef ri rm;
SPLATDISTILL_INLINE rm less(rf a, rf b) { return a < b; }
SPLATDISTILL_INLINE rm less_equal(rf a, rf b) { return a <= b; }
SPLATDISTILL_INLINE rm less(ri a, ri b) { return a < b; }
SPLATDISTILL_INLINE rf select(rm m, rf a, rf b) { return m ? a : b; }
SPLATDISTILL_INLINE ri select(rm m, ri a, ri b) { return m ? a : b; }
SPLATDISTILL_INLINE rf keep(rm m, rf a) { return (rf)(m & (ri)a); }
SPLATDISTILL_INLINE rf min(rf a, rf b) { return a < b ? a : b; }
SPLATDISTILL_INLINE rf max(rf a, rf b) { return a > b ? a : b; }
#ifdef __AVX2__
SPLATDISTILL_INLINE uint32_t bits(rm m) { return uint32_t(_mm256_movemask_ps((__m256)m)); }
SPLATDISTILL_INLINE rf sqrt(rf a) { return (rf)_mm256_sqrt_ps((__m256)a); }
#else
SPLATDISTILL_INLINE uint32_t bits(rm m) {
    uint32_t r = 0;
    for (int l = 0; l < kRegister / 4; ++l) r |= (uint32_t(m[l]) & 1u) << l;
    return r;
}
SPLATDISTILL_INLINE rf sqrt(rf a) {
    for (int l = 0; l < kRegister / 4; ++l) a[l] = std::sqrt(a[l]);
    return a;
}
#endif

#endif

SPLATDISTILL_INLINE rm both(rm a, rm b) { return a & b; }
SPLATDISTILL_INLINE ri to_int(rf a) { return __builtin_convertvector(a, ri); }

// 2^x for x in [-126, 126], relative error below 2e-7: round to the nearest integer by adding 1.5 * 2^23,
// a polynomial for the fraction in [-1/2, 1/2], the integer added to the exponent bits.
SPLATDISTILL_INLINE rf exp2(rf x) {
    const float shift = 12582912.0f;
    rf rounded = x + shift;
    rf f = x - (rounded - shift);
    rf p = f * 1.32647e-3f + 9.67151e-3f;
    p = p * f + 5.550734e-2f;
    p = p * f + 2.4022242e-1f;
    p = p * f + 6.9314698e-1f;
    p = p * f + 1.0f;
    return (rf)((ru)p + ((ru)rounded << 23));
}

// log2(x) for normal x > 0, absolute error below 3e-7: x = 2^e m with m in [sqrt(1/2), sqrt(2)),
// ln m = 2 artanh((m - 1) / (m + 1)).
SPLATDISTILL_INLINE rf log2(rf x) {
    ri e = (ri)((ru)x - 0x3f3504f3u) >> 23;
    rf m = (rf)((ru)x - ((ru)e << 23));
    rf s = (m - 1.0f) / (m + 1.0f);
    rf s2 = s * s;
    rf p = s2 * (1.0f / 9.0f) + 1.0f / 7.0f;
    p = p * s2 + 1.0f / 5.0f;
    p = p * s2 + 1.0f / 3.0f;
    p = p * s2 + 1.0f;
    return __builtin_convertvector(e, rf) + p * s * 2.885390082f;
}

// --- sixteen lanes ---

#ifdef __AVX512F__

typedef rf vf;
typedef ri vi;
typedef rm vm;

#else

// Two of T as one, lane by lane; E is the type of a lane.
template <class T, class E>
struct Pair {
    T a, b;
    Pair operator-() const { return {-a, -b}; }
    Pair& operator+=(Pair y) { return *this = *this + y; }
    Pair& operator*=(Pair y) { return *this = *this * y; }
#define SPLATDISTILL_LANEWISE(op)                                                \
    friend Pair operator op(Pair x, Pair y) { return {x.a op y.a, x.b op y.b}; } \
    friend Pair operator op(Pair x, E y) { return {x.a op y, x.b op y}; }        \
    friend Pair operator op(E x, Pair y) { return {x op y.a, x op y.b}; }
    SPLATDISTILL_LANEWISE(+)
    SPLATDISTILL_LANEWISE(-)
    SPLATDISTILL_LANEWISE(*)
    SPLATDISTILL_LANEWISE(/)
    SPLATDISTILL_LANEWISE(&)
    SPLATDISTILL_LANEWISE(|)
#undef SPLATDISTILL_LANEWISE
};

template <class F, class I>
struct Doubled {
    typedef Pair<F, float> f;
    typedef Pair<I, int32_t> i;
};
#ifdef __AVX2__
typedef Doubled<rf, ri>::f vf;
typedef Doubled<rf, ri>::i vi;
#else
typedef Doubled<Doubled<rf, ri>::f, Doubled<rf, ri>::i>::f vf;
typedef Doubled<Doubled<rf, ri>::f, Doubled<rf, ri>::i>::i vi;
#endif
typedef vi vm;

template <class T, class E>
auto less(Pair<T, E> x, Pair<T, E> y) -> Pair<decltype(less(x.a, y.a)), int32_t> {
    return {less(x.a, y.a), less(x.b, y.b)};
}
template <class T>
auto less_equal(Pair<T, float> x, Pair<T, float> y) -> Pair<decltype(less_equal(x.a, y.a)), int32_t> {
    return {less_equal(x.a, y.a), less_equal(x.b, y.b)};
}
template <class M, class T, class E>
Pair<T, E> select(Pair<M, int32_t> m, Pair<T, E> x, Pair<T, E> y) {
    return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)};
}
template <class M, class T>
Pair<T, float> keep(Pair<M, int32_t> m, Pair<T, float> x) {
    return {keep(m.a, x.a), keep(m.b, x.b)};
}
template <class M>
Pair<M, int32_t> both(Pair<M, int32_t> x, Pair<M, int32_t> y) {
    return x & y;
}
template <class M>
uint32_t bits(Pair<M, int32_t> m) {
    return bits(m.a) | bits(m.b) << (sizeof(M) / 4);
}
template <class T>
auto to_int(Pair<T, float> x) -> Pair<decltype(to_int(x.a)), int32_t> {
    return {to_int(x.a), to_int(x.b)};
}
#define SPLATDISTILL_UNARY(name)            \
    template <class T>                      \
    Pair<T, float> name(Pair<T, float> x) { \
        return {name(x.a), name(x.b)};      \
    }
#define SPLATDISTILL_BINARY(name)                             \
    template <class T>                                        \
    Pair<T, float> name(Pair<T, float> x, Pair<T, float> y) { \
        return {name(x.a, y.a), name(x.b, y.b)};              \
    }
SPLATDISTILL_UNARY(sqrt)
SPLATDISTILL_UNARY(exp2)
SPLATDISTILL_UNARY(log2)
SPLATDISTILL_BINARY(min)
SPLATDISTILL_BINARY(max)
#undef SPLATDISTILL_UNARY
#undef SPLATDISTILL_BINARY

#endif

SPLATDISTILL_INLINE vf splat(float x) { return vf{} + x; }
SPLATDISTILL_INLINE vi splat(int32_t x) { return vi{} + x; }
SPLATDISTILL_INLINE vf load(const float* p) {
    vf x;
    std::memcpy(&x, p, sizeof(x));
    return x;
}
SPLATDISTILL_INLINE void store(float* p, vf x) { std::memcpy(p, &x, sizeof(x)); }
SPLATDISTILL_INLINE void store(int32_t* p, vi x) { std::memcpy(p, &x, sizeof(x)); }
SPLATDISTILL_INLINE vf clamp(vf x, vf low, vf high) { return min(max(x, low), high); }
SPLATDISTILL_INLINE vm is_finite(vf x) { return less_equal(x * 0.0f, vf{}); }

// Element `offset` of up to sixteen records; lanes past `count` repeat the last record.
template <class V = vf, class E>
V gather(const E* base, int64_t stride, int offset, int count) {
    alignas(64) E lanes[kLanes];
    if (count == kLanes)
        for (int l = 0; l < kLanes; ++l) lanes[l] = base[l * stride + offset];
    else
        for (int l = 0; l < kLanes; ++l) lanes[l] = base[(l < count ? l : count - 1) * stride + offset];
    V x;
    std::memcpy(&x, lanes, sizeof(x));
    return x;
}

template <class V, class E>
void scatter(V x, E* base, int64_t stride, int offset, int count) {
    alignas(64) E lanes[kLanes];
    std::memcpy(lanes, &x, sizeof(x));
    for (int l = 0; l < count; ++l) base[l * stride + offset] = lanes[l];
}

// The sums over lanes of ten vectors, in lanes 0..9 of the result (the other lanes are zero).
SPLATDISTILL_INLINE vf sum_lanes(const vf (&v)[10]) {
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
#elif defined(__AVX2__)
    auto half = [&](int k) { return (__m256)(v[k].a + v[k].b); };
    auto pair = [](__m256 a, __m256 b) {
        return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    };
    auto quad = [](__m256 a, __m256 b) {
        __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
        return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                             _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    };
    auto across = [](__m256 a, __m256 b) {
        return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    };
    __m256 zero = _mm256_setzero_ps();
    __m256 a = quad(pair(half(0), half(1)), pair(half(2), half(3)));
    __m256 b = quad(pair(half(4), half(5)), pair(half(6), half(7)));
    return {(rf)across(a, b), (rf)across(quad(pair(half(8), half(9)), zero), zero)};
#else
    alignas(64) float r[kLanes] = {};
    for (int k = 0; k < 10; ++k) {
        rf sum = (v[k].a.a + v[k].a.b) + (v[k].b.a + v[k].b.b);
        r[k] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return load(r);
#endif
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
