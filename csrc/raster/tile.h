// What the forward and the backward pass of a tile share.
#pragma once

#include <algorithm>

#include "raster.h"

namespace splatdistill::raster {

struct Tile {
    int64_t view;
    int x, y;           // of its first pixel
    int width, height;  // inside the image
};

inline Tile tile_at(const Image& image, int64_t index) {
    int64_t tile = index % image.tiles();
    int x = int(tile % image.tiles_x()) * kTile, y = int(tile / image.tiles_x()) * kTile;
    return {index / image.tiles(), x, y, std::min(kTile, image.width - x), std::min(kTile, image.height - y)};
}

// Lane l of a block is pixel (l % 4, l / 4); block b of a tile is (b % 4, b / 4).
const vf kColumn = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
const vf kRow = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};

// Where pixel (x, y) of a tile lives among its 256 lanes.
inline int lane_of(int x, int y) { return (y / kBlock * 4 + x / kBlock) * kLanes + y % kBlock * 4 + x % kBlock; }

// A splat seen from one block: per pixel, the offset to the mean and log2 of the opacity before the cuts.
struct Footprint {
    vf dx, dy, log2_alpha;
};

inline Footprint footprint(const Splat& s, float x, float y, int block) {
    Footprint f;
    f.dx = (x - float(block % 4 * kBlock)) - kColumn;
    f.dy = (y - float(block / 4 * kBlock)) - kRow;
    vf t = f.dx * s.u + f.dy * s.v, q = f.dy * s.w;
    f.log2_alpha = s.log2_opacity - t * t - q * q;
    return f;
}

constexpr float kLog2AlphaMin = -7.99435343685886f;

}  // namespace splatdistill::raster
