// Front to back over each tile's list, a block of 4x4 pixels at a time.
#include <algorithm>
#include <limits>

#include "raster/tile.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {
namespace {

struct Pixels {
    vf transmittance[kBlocks], alpha[kBlocks], r[kBlocks], g[kBlocks], b[kBlocks], depth[kBlocks];
    vf cut[kBlocks];  // least log2 alpha that counts: infinite once a pixel has stopped
    vi stop[kBlocks];
};

void clear(Pixels& p, const Tile& tile) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (int block = 0; block < kBlocks; ++block) {
        p.transmittance[block] = splat(1.0f);
        p.alpha[block] = p.r[block] = p.g[block] = p.b[block] = p.depth[block] = vf{};
        vm inside = both(less(columns(block), splat(float(tile.width))),
                         less(rows(block), splat(float(tile.height))));
        p.cut[block] = select(inside, splat(kLog2AlphaMin), splat(infinity));
        p.stop[block] = splat(std::numeric_limits<int32_t>::max());
    }
}

uint32_t open_blocks(const Tile& tile) {
    uint32_t open = 0;
    for (int block = 0; block < kBlocks; ++block)
        open |= uint32_t(block % 4 * kBlock < tile.width && block / 4 * kBlock < tile.height) << block;
    return open;
}

// Blend a splat into one block; true when the block's last pixel stopped.
inline bool blend(Pixels& p, const Brush& s, int block, int index) {
    Footprint f = footprint(s, block);
    vm hit = less_equal(p.cut[block], f.log2_alpha);
    vf before = p.transmittance[block];
    vf alpha = keep(hit, min(exp2(f.log2_alpha), splat(kAlphaMax)));
    vf weight = alpha * before, after = before - weight;
    vm stopped = both(hit, less_equal(after, splat(kTransmittanceMin)));
    bool closed = false;
    if (__builtin_expect(bits(stopped) != 0, 0)) {
        const float infinity = std::numeric_limits<float>::infinity();
        weight = select(stopped, vf{}, weight);
        after = select(stopped, before, after);
        p.cut[block] = select(stopped, splat(infinity), p.cut[block]);
        p.stop[block] = select(stopped, splat(index), p.stop[block]);
        closed = bits(less(p.cut[block], splat(infinity))) == 0;
    }
    p.transmittance[block] = after;
    p.alpha[block] += weight;  // 1 - transmittance would lose what a faint pixel's expected depth needs
    p.r[block] += weight * s.r;
    p.g[block] += weight * s.g;
    p.b[block] += weight * s.b;
    p.depth[block] += weight * s.depth;
    return closed;
}

void write_pixels(const Image& image, const Tile& tile, const Pixels& p, const float* background,
                  const RasterOutputs& out) {
    const float* transmittance = reinterpret_cast<const float*>(p.transmittance);
    const float* alpha = reinterpret_cast<const float*>(p.alpha);
    const float *r = reinterpret_cast<const float*>(p.r), *g = reinterpret_cast<const float*>(p.g);
    const float *b = reinterpret_cast<const float*>(p.b), *depth = reinterpret_cast<const float*>(p.depth);
    for (int y = 0; y < tile.height; ++y) {
        int64_t at = (tile.view * image.height + tile.y + y) * image.width + tile.x;
        for (int x = 0; x < tile.width; ++x, ++at) {
            int lane = lane_of(x, y);
            float left = transmittance[lane];
            out.rgb[3 * at] = r[lane] + left * background[0];
            out.rgb[3 * at + 1] = g[lane] + left * background[1];
            out.rgb[3 * at + 2] = b[lane] + left * background[2];
            out.alpha[at] = alpha[lane];
            out.depth[at] = depth[lane] / std::max(alpha[lane], 1e-10f);
        }
    }
}

void draw_tile(const Image& image, const State& state, const float* backgrounds, const RasterOutputs& out,
               int64_t index) {
    Tile tile = tile_at(image, index);
    Pixels p;
    clear(p, tile);
    int64_t begin = state.entry_begin[index];
    int count = int(state.entry_begin[index + 1] - begin), used = 0;
    uint32_t open = open_blocks(tile);
    for (; used < count && open; ++used) {
        const Splat& s = state.splats[state.entries[begin + used]];
        float x = s.x - float(tile.x) - 0.5f, y = s.y - float(tile.y) - 0.5f;
        uint32_t reached = reached_cells<kBlock>(s, x, y) & open;
        Brush paint = brush(s, tile);
        state.masks[begin + used] = uint16_t(reached);
        for (; reached; reached &= reached - 1) {
            int block = __builtin_ctz(reached);
            if (blend(p, paint, block, used)) open &= ~(1u << block);
        }
    }
    state.used[index] = used;
    std::fill(state.masks + begin + used, state.masks + begin + count, 0);
    for (int block = 0; block < kBlocks; ++block) {
        store(state.transmittance + (index * kBlocks + block) * kLanes, p.transmittance[block]);
        store(state.stop + (index * kBlocks + block) * kLanes, p.stop[block]);
    }
    const float black[3] = {};
    write_pixels(image, tile, p, backgrounds ? backgrounds + 3 * tile.view : black, out);
}

}  // namespace

void rasterize(const Image& image, const State& state, const float* backgrounds, const RasterOutputs& out) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t index = 0; index < image.V * image.tiles(); ++index)
        draw_tile(image, state, backgrounds, out, index);
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
