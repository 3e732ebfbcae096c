// Front to back over each tile's list, a block of 4x4 pixels at a time.
#include <algorithm>
#include <limits>

#include "tile.h"

namespace splatdistill::raster {
namespace {

// Bit b: the ellipse may reach a pixel centre of block b. One lane per block; the least value of the quadratic
// form on a rectangle that does not hold the centre lies on one of the two edges that face the centre.
uint32_t reached_blocks(const Splat& s, float x, float y) {
    vf x0 = kColumn * float(kBlock) - x, x1 = x0 + float(kBlock - 1);
    vf y0 = kRow * float(kBlock) - y, y1 = y0 + float(kBlock - 1);
    vf zero = {};
    vf edge_x = clamp(zero, x0, x1), edge_y = clamp(zero, y0, y1);
    vf along_y = clamp(edge_x * s.slope, y0, y1);
    vf along_x = clamp(edge_y * (-s.v / s.u), x0, x1);
    vf t = edge_x * s.u + along_y * s.v, q = along_y * s.w;
    vf vertical = t * t + q * q;
    t = along_x * s.u + edge_y * s.v, q = edge_y * s.w;
    vf horizontal = t * t + q * q;
    return bits(less_equal(min(vertical, horizontal), splat(s.limit * 1.0001f + 1e-4f)));
}

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
        vf x = kColumn + float(block % 4 * kBlock), y = kRow + float(block / 4 * kBlock);
        vm inside = both(less(x, splat(float(tile.width))), less(y, splat(float(tile.height))));
        p.cut[block] = select(inside, splat(kLog2AlphaMin), splat(infinity));
        p.stop[block] = vi{} + std::numeric_limits<int32_t>::max();
    }
}

uint32_t open_blocks(const Tile& tile) {
    uint32_t open = 0;
    for (int block = 0; block < kBlocks; ++block)
        open |= uint32_t(block % 4 * kBlock < tile.width && block / 4 * kBlock < tile.height) << block;
    return open;
}

// Blend a splat into one block; true when the block's last pixel stopped.
inline bool blend(Pixels& p, const Splat& s, float x, float y, int block, int index) {
    Footprint f = footprint(s, x, y, block);
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
        p.stop[block] = select(stopped, vi{} + index, p.stop[block]);
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
        uint32_t reached = reached_blocks(s, x, y) & open;
        state.masks[begin + used] = uint16_t(reached);
        for (; reached; reached &= reached - 1) {
            int block = __builtin_ctz(reached);
            if (blend(p, s, x, y, block, used)) open &= ~(1u << block);
        }
    }
    state.used[index] = used;
    std::fill(state.masks + begin + used, state.masks + begin + count, 0);
    for (int block = 0; block < kBlocks; ++block) {
        state.transmittance[index * kBlocks + block] = p.transmittance[block];
        state.stop[index * kBlocks + block] = p.stop[block];
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

}  // namespace splatdistill::raster
