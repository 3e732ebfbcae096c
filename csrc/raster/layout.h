// Where the sections of a State lie in one block of memory, each on 64 bytes.
#pragma once

#include <cstring>

#include "raster/raster.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {

struct Layout {
    static constexpr int kSections = 8;
    size_t begin[kSections], bytes[kSections];  // without padding
    size_t size = 0;                            // of the whole block

    SPLATDISTILL_INLINE Layout(const Image& image, int64_t splats, int64_t entries) {
        const size_t V = size_t(image.V), tiles = V * size_t(image.tiles()),
                     pixels = tiles * kBlocks * kLanes;
        const size_t S = size_t(splats), E = size_t(entries);
        const size_t sizes[kSections] = {
            (V + 1) * sizeof(*State::splat_begin), (tiles + 1) * sizeof(*State::entry_begin),
            tiles * sizeof(*State::used),          pixels * sizeof(*State::transmittance),
            pixels * sizeof(*State::stop),         S * sizeof(*State::splats),
            E * sizeof(*State::entries),           E * sizeof(*State::masks),
        };
        for (int k = 0; k < kSections; ++k) {
            begin[k] = size;
            bytes[k] = sizes[k];
            size += padded(sizes[k]);
        }
    }

    SPLATDISTILL_INLINE State at(char* memory) const {
        return {
            reinterpret_cast<int64_t*>(memory + begin[0]),  reinterpret_cast<int64_t*>(memory + begin[1]),
            reinterpret_cast<int32_t*>(memory + begin[2]),  reinterpret_cast<float*>(memory + begin[3]),
            reinterpret_cast<int32_t*>(memory + begin[4]),  reinterpret_cast<Splat*>(memory + begin[5]),
            reinterpret_cast<uint32_t*>(memory + begin[6]), reinterpret_cast<uint16_t*>(memory + begin[7])};
    }

    // So that equal inputs give equal bytes.
    SPLATDISTILL_INLINE void clear_padding(char* memory) const {
        for (int k = 0; k < kSections; ++k)
            std::memset(memory + begin[k] + bytes[k], 0, padded(bytes[k]) - bytes[k]);
    }

  private:
    static SPLATDISTILL_INLINE size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }
};

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
