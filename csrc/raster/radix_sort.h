#pragma once

#include <cstdint>
#include <utility>

#include "levels/level.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {

struct Keyed {
    uint32_t key, id;  // id: which packed splat
};

// Stable least-significant-digit radix sort by key, 11 bits a pass; a pass that would move nothing is
// skipped.
// The sorted items are in the returned one of the two arrays.
inline Keyed* radix_sort(Keyed* items, Keyed* other, int64_t size) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    uint32_t count[3][kBuckets] = {};
    for (int64_t i = 0; i < size; ++i)
        for (int pass = 0; pass < 3; ++pass) ++count[pass][(items[i].key >> (pass * kBits)) & (kBuckets - 1)];
    for (int pass = 0; pass < 3; ++pass) {
        int shift = pass * kBits;
        if (size == 0 || count[pass][(items[0].key >> shift) & (kBuckets - 1)] == size) continue;
        uint32_t sum = 0;
        for (uint32_t& c : count[pass]) {
            uint32_t next = sum + c;
            c = sum;
            sum = next;
        }
        for (int64_t i = 0; i < size; ++i)
            other[count[pass][(items[i].key >> shift) & (kBuckets - 1)]++] = items[i];
        std::swap(items, other);
    }
    return items;
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
