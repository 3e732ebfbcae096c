// What the forward and the backward pass of a tile share.
#pragma once

#include <algorithm>

#include "raster/simd.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {

struct Tile {
    int64_t view;
    int x, y;           // of its first pixel
    int width, height;  // inside the image
};

SPLATDISTILL_INLINE Tile tile_at(const Image& image, int64_t index) {
    int64_t tile = index % image.tiles();
    int x = int(tile % image.tiles_x()) * kTile, y = int(tile / image.tiles_x()) * kTile;
    return {index / image.tiles(), x, y, std::min(kTile, image.width - x), std::min(kTile, image.height - y)};
}

// Lane l of a block is pixel (l % 4, l / 4); block b of a tile is (b % 4, b / 4).
alignas(64) constexpr float kColumns[4][kLanes] = {
    {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3},
    {4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7},
    {8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11},
    {12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15}};
alignas(64) constexpr float kRows[4][kLanes] = {
    {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3},
    {4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7},
    {8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11},
    {12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15}};

// Of each pixel of a block, from the tile's first.
SPLATDISTILL_INLINE vf columns(int block) { return load(kColumns[block % 4]); }
SPLATDISTILL_INLINE vf rows(int block) { return load(kRows[block / 4]); }

// Where pixel (x, y) of a tile lives among its 256 lanes.
SPLATDISTILL_INLINE int lane_of(int x, int y) {
    return (y / kBlock * 4 + x / kBlock) * kLanes + y % kBlock * 4 + x % kBlock;
}

// A splat as seen from a tile, every number in all lanes: loaded once, used by up to sixteen blocks.
struct Brush {
    vf x, y;  // of the mean, from the center of the tile's first pixel
    vf u, v, w, log2_opacity;
    vf r, g, b, depth;
};

SPLATDISTILL_INLINE Brush brush(const Splat& s, const Tile& tile) {
    return {splat(s.x - float(tile.x) - 0.5f),
            splat(s.y - float(tile.y) - 0.5f),
            splat(s.u),
            splat(s.v),
            splat(s.w),
            splat(s.log2_opacity),
            splat(s.r),
            splat(s.g),
            splat(s.b),
            splat(s.depth)};
}

// A brush on one block: per pixel, the offset to the mean and log2 of the opacity before the cuts.
struct Footprint {
    vf dx, dy, log2_alpha;
};

SPLATDISTILL_INLINE Footprint footprint(const Brush& s, int block) {
    Footprint f;
    f.dx = s.x - columns(block);
    f.dy = s.y - rows(block);
    vf t = f.dx * s.u + f.dy * s.v, q = f.dy * s.w;
    f.log2_alpha = s.log2_opacity - t * t - q * q;
    return f;
}

// Bit b: the ellipse may reach a pixel center of cell b, of 4x4 cells of Side x Side pixels; (x, y) is the
// mean from the center of the first pixel. One lane per cell; the least value of the quadratic form on a
// rectangle that does not hold the mean lies on one of the two edges that face it.
template <int Side>
SPLATDISTILL_INLINE uint32_t reached_cells(const Splat& s, float x, float y) {
    vf x0 = columns(0) * float(Side) - x, x1 = x0 + float(Side - 1);
    vf y0 = rows(0) * float(Side) - y, y1 = y0 + float(Side - 1);
    vf edge_x = clamp(vf{}, x0, x1), edge_y = clamp(vf{}, y0, y1);
    vf along_y = clamp(edge_x * s.slope, y0, y1);
    vf along_x = clamp(edge_y * (-s.v / s.u), x0, x1);
    vf t = edge_x * s.u + along_y * s.v, q = along_y * s.w;
    vf vertical = t * t + q * q;
    t = along_x * s.u + edge_y * s.v, q = edge_y * s.w;
    vf horizontal = t * t + q * q;
    return bits(less_equal(min(vertical, horizontal), splat(s.limit * 1.0001f + 1e-4f)));
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
