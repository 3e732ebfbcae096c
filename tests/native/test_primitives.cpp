// The kernels' building blocks against plain forms of the same; compiled once a level, as the kernels are.
#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "ddim/ddim_math.h"
#include "raster/radix_sort.h"
#include "raster/tile.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {
namespace {

using ddim::BFloat16;
using ddim::Half;

void test_exp2_is_within_two_parts_in_ten_million() {
    float in[kLanes], out[kLanes];
    for (float x = -126.0f; x < 126.0f; x += 0.37f) {
        for (int l = 0; l < kLanes; ++l) in[l] = std::min(x + 0.023f * float(l), 126.0f);
        store(out, exp2(load(in)));
        for (int l = 0; l < kLanes; ++l) CHECK_NEAR(out[l] / std::exp2(double(in[l])), 1.0, 2e-7);
    }
}

void test_log2_is_within_three_parts_in_ten_million() {
    float in[kLanes], out[kLanes];
    for (int exponent = -126; exponent < 127; ++exponent) {
        for (int l = 0; l < kLanes; ++l) in[l] = std::ldexp(1.0f + float(l) / kLanes, exponent);
        store(out, log2(load(in)));
        for (int l = 0; l < kLanes; ++l) {
            const double want = std::log2(double(in[l]));
            CHECK_NEAR(out[l], want, 3e-7 + 6e-8 * std::fabs(want));  // and the rounding of the sum
        }
    }
}

void test_lanes_are_compared_selected_and_summed_in_their_places() {
    float a[kLanes], b[kLanes], out[kLanes];
    vf terms[10];
    for (int l = 0; l < kLanes; ++l) a[l] = float(l), b[l] = l % 3 ? 5.0f : float(l);
    const vf x = load(a), y = load(b);
    uint32_t below = 0, equal = 0;
    for (int l = 0; l < kLanes; ++l)
        below |= uint32_t(a[l] < b[l]) << l, equal |= uint32_t(a[l] <= b[l]) << l;
    CHECK(bits(less(x, y)) == below);
    CHECK(bits(less_equal(x, y)) == equal);
    store(out, select(less(x, y), x, splat(-1.0f)));
    for (int l = 0; l < kLanes; ++l) CHECK(out[l] == (a[l] < b[l] ? a[l] : -1.0f));
    store(out, keep(less(x, y), x));
    for (int l = 0; l < kLanes; ++l) CHECK(out[l] == (a[l] < b[l] ? a[l] : 0.0f));
    for (int k = 0; k < 10; ++k) terms[k] = x + float(k);
    store(out, sum_lanes(terms));
    for (int k = 0; k < kLanes; ++k) CHECK(out[k] == (k < 10 ? 120.0f + 16.0f * float(k) : 0.0f));
    const float infinity = std::numeric_limits<float>::infinity();
    const float odd[kLanes] = {0, infinity, -infinity, std::nanf(""), 1e38f, -0.0f};
    CHECK(bits(is_finite(load(odd))) == 0xfff1u);
}

void test_gather_repeats_the_last_record_and_scatter_writes_no_more_than_asked() {
    float records[kLanes * 3], written[kLanes * 3] = {}, out[kLanes];
    for (int i = 0; i < kLanes * 3; ++i) records[i] = float(i);
    for (int count = 1; count <= kLanes; ++count) {
        store(out, gather(records, 3, 1, count));
        for (int l = 0; l < kLanes; ++l) CHECK(out[l] == float(3 * std::min(l, count - 1) + 1));
        std::fill(written, written + kLanes * 3, -1.0f);
        scatter(load(records), written, 3, 2, count);
        for (int i = 0; i < kLanes * 3; ++i)
            CHECK(written[i] == (i % 3 == 2 && i / 3 < count ? float(i / 3) : -1.0f));
    }
}

void test_radix_sort_is_a_stable_sort() {
    std::mt19937 random(7);
    for (const int64_t size : {0, 1, 2, 17, 1000, 5000})
        for (const uint32_t mask :
             {0u, 0x7u, 0x3ff800u, 0xffffffffu}) {  // all alike; few; one digit; all digits
            std::vector<Keyed> items(size_t(size + 1)), other(size_t(size + 1));
            for (int64_t i = 0; i < size; ++i) items[size_t(i)] = {uint32_t(random()) & mask, uint32_t(i)};
            std::vector<Keyed> expected(items.begin(), items.begin() + size);
            std::stable_sort(expected.begin(), expected.end(),
                             [](const Keyed& a, const Keyed& b) { return a.key < b.key; });
            const Keyed* sorted = radix_sort(items.data(), other.data(), size);
            for (int64_t i = 0; i < size; ++i)
                CHECK(sorted[i].key == expected[size_t(i)].key && sorted[i].id == expected[size_t(i)].id);
        }
}

// A half as a double, by its definition.
double value_of(Half half) {
    const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    const double sign = half.bits >> 15 ? -1.0 : 1.0;
    if (exponent == 31) return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

double value_of(BFloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

// Every number of 16 bits, and for each what lies at and beside the middle between it and the next.
template <class T>
void check_conversions(uint16_t infinity) {
    for (uint32_t i = 0; i <= 0xffff; ++i) {
        const T number{uint16_t(i)};
        T back{};
        store(back, load(number));
        if ((i & 0x7fff) > infinity) {
            CHECK(std::isnan(load(number)) && (back.bits & 0x7fff) > infinity);
            continue;
        }
        CHECK(double(load(number)) == value_of(number));
        CHECK(back.bits == number.bits);
        const T next{uint16_t(i + 1)};
        if ((next.bits & 0x7fff) >= infinity || (i & 0x7fff) >= infinity) continue;
        const float middle = float((value_of(number) + value_of(next)) / 2);  // exact: one more bit
        const T even = number.bits % 2 ? next : number;
        store(back, middle);
        CHECK(back.bits == even.bits);
        store(back, std::nextafter(middle, float(value_of(number))));
        CHECK(back.bits == number.bits);
        store(back, std::nextafter(middle, float(value_of(next))));
        CHECK(back.bits == next.bits);
    }
}

void test_halves_round_to_nearest_with_ties_to_even() {
    check_conversions<Half>(0x7c00);
    Half half;
    store(half, 65519.0f);  // the last that rounds down to the largest
    CHECK(half.bits == 0x7bff);
    store(half, 65520.0f);
    CHECK(half.bits == 0x7c00);
    store(half, -1e30f);
    CHECK(half.bits == 0xfc00);
}

void test_bfloats_round_to_nearest_with_ties_to_even() { check_conversions<BFloat16>(0x7f80); }

}  // namespace

void test_primitives() {
    test_exp2_is_within_two_parts_in_ten_million();
    test_log2_is_within_three_parts_in_ten_million();
    test_lanes_are_compared_selected_and_summed_in_their_places();
    test_gather_repeats_the_last_record_and_scatter_writes_no_more_than_asked();
    test_radix_sort_is_a_stable_sort();
    test_halves_round_to_nearest_with_ties_to_even();
    test_bfloats_round_to_nearest_with_ties_to_even();
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
