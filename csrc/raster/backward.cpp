// Back to front over each tile's list. The gradient of a (tile, splat) pair is summed in registers and
// written to its own slot; slots are then added up in one fixed order, whatever the number of threads.
#include <algorithm>
#include <cstring>

#include "raster/buffer.h"
#include "raster/tile.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {
namespace {

// Lanes of a slot. With g = -dL/dsigma: moments of g in the offset to the mean, then color and depth.
enum { kOne, kX, kY, kXX, kXY, kYY, kRed, kGreen, kBlue, kDepth, kSums };

struct Cotangents {
    vf r[kBlocks], g[kBlocks], b[kBlocks], depth[kBlocks];
    vf transmittance[kBlocks];  // in front of the splats done so far
    vf behind[kBlocks];         // dL/d(color) . (color of everything behind)
    vi stop[kBlocks];
};

// Read a tile's output gradients; returns its share of the background's gradient in `v_background`.
void read_cotangents(const Image& image, const State& state, const Tile& tile, int64_t index,
                     const float* background, const RasterGradient& in, Cotangents& c, float* v_background) {
    std::memset(&c, 0, sizeof(c));
    std::memcpy(c.transmittance, state.transmittance + index * kBlocks * kLanes, sizeof(c.transmittance));
    std::memcpy(c.stop, state.stop + index * kBlocks * kLanes, sizeof(c.stop));
    float *r = reinterpret_cast<float*>(c.r), *g = reinterpret_cast<float*>(c.g);
    float *b = reinterpret_cast<float*>(c.b), *depth = reinterpret_cast<float*>(c.depth);
    float *left = reinterpret_cast<float*>(c.transmittance), *behind = reinterpret_cast<float*>(c.behind);
    for (int y = 0; y < tile.height; ++y) {
        int64_t at = (tile.view * image.height + tile.y + y) * image.width + tile.x;
        for (int x = 0; x < tile.width; ++x, ++at) {
            int lane = lane_of(x, y);
            float v_alpha = in.alpha ? in.alpha[at] : 0.0f;
            if (in.rgb) {
                r[lane] = in.rgb[3 * at], g[lane] = in.rgb[3 * at + 1], b[lane] = in.rgb[3 * at + 2];
                v_alpha -= r[lane] * background[0] + g[lane] * background[1] + b[lane] * background[2];
                v_background[0] += r[lane] * left[lane];
                v_background[1] += g[lane] * left[lane];
                v_background[2] += b[lane] * left[lane];
            }
            if (in.depth) {  // expected depth = depth / max(alpha, 1e-10)
                float alpha = in.alpha_out[at], v = in.depth[at] / std::max(alpha, 1e-10f);
                depth[lane] = v;
                if (alpha > 1e-10f) v_alpha -= v * in.depth_out[at];
            }
            behind[lane] = -left[lane] * v_alpha;
        }
    }
}

// Add one block's share of a splat's gradient to `sum`.
inline void accumulate(Cotangents& c, const Brush& s, int block, int index, vf (&sum)[kSums]) {
    Footprint f = footprint(s, block);
    vm hit = both(less_equal(splat(kLog2AlphaMin), f.log2_alpha), less(splat(index), c.stop[block]));
    vf raw = keep(hit, exp2(f.log2_alpha));
    vf alpha = min(raw, splat(kAlphaMax));
    vf inverse = 1.0f / (1.0f - alpha);
    vf transmittance = c.transmittance[block] * inverse;
    c.transmittance[block] = transmittance;
    vf weight = alpha * transmittance;
    vf shade = c.r[block] * s.r + c.g[block] * s.g + c.b[block] * s.b + c.depth[block] * s.depth;
    vf v_alpha = transmittance * shade - inverse * c.behind[block];
    c.behind[block] += weight * shade;
    vf g = keep(less_equal(raw, splat(kAlphaMax)), raw * v_alpha), gx = g * f.dx, gy = g * f.dy;
    sum[kOne] += g;
    sum[kX] += gx;
    sum[kY] += gy;
    sum[kXX] += gx * f.dx;
    sum[kXY] += gx * f.dy;
    sum[kYY] += gy * f.dy;
    sum[kRed] += weight * c.r[block];
    sum[kGreen] += weight * c.g[block];
    sum[kBlue] += weight * c.b[block];
    sum[kDepth] += weight * c.depth[block];
}

void differentiate_tile(const Image& image, const State& state, const float* backgrounds,
                        const RasterGradient& in, int64_t index, vf* slots, float* v_background) {
    Tile tile = tile_at(image, index);
    const float black[3] = {};
    Cotangents c;
    read_cotangents(image, state, tile, index, backgrounds ? backgrounds + 3 * tile.view : black, in, c,
                    v_background);
    int64_t begin = state.entry_begin[index];
    for (int i = state.used[index] - 1; i >= 0; --i) {
        Brush s = brush(state.splats[state.entries[begin + i]], tile);
        vf sum[kSums] = {};
        for (uint32_t reached = state.masks[begin + i]; reached; reached &= reached - 1)
            accumulate(c, s, __builtin_ctz(reached), i, sum);
        slots[i] = sum_lanes(sum);
    }
}

// From a splat's sums over all tiles to the gradients of its inputs.
void write_gradients(const RasterInputs& in, const RasterGradient& out, int64_t at, int64_t id, vf sums) {
    alignas(64) float sum[kLanes];
    store(sum, sums);
    const float* conic = in.conics + 3 * at;
    out.v_means2d[2 * at] = -conic[0] * sum[kX] - conic[1] * sum[kY];
    out.v_means2d[2 * at + 1] = -conic[1] * sum[kX] - conic[2] * sum[kY];
    out.v_conics[3 * at] = -0.5f * sum[kXX];
    out.v_conics[3 * at + 1] = -sum[kXY];
    out.v_conics[3 * at + 2] = -0.5f * sum[kYY];
    for (int k = 0; k < 3; ++k) out.v_colors[3 * at + k] = sum[kRed + k];
    out.v_depths[at] = sum[kDepth];
    out.v_opacities[id] += sum[kOne] / in.opacities[id];
}

void zero(const Image& image, const RasterGradient& out) {
    std::fill(out.v_means2d, out.v_means2d + image.V * image.N * 2, 0.0f);
    std::fill(out.v_conics, out.v_conics + image.V * image.N * 3, 0.0f);
    std::fill(out.v_colors, out.v_colors + image.V * image.N * 3, 0.0f);
    std::fill(out.v_depths, out.v_depths + image.V * image.N, 0.0f);
    std::fill(out.v_opacities, out.v_opacities + image.N, 0.0f);
    if (out.v_backgrounds) std::fill(out.v_backgrounds, out.v_backgrounds + image.V * 3, 0.0f);
}

}  // namespace

void rasterize_backward(const Image& image, const State& state, const RasterInputs& in,
                        const RasterGradient& g) {
    zero(image, g);
    int64_t tiles = image.V * image.tiles(), splats = state.splat_begin[image.V];
    static thread_local Buffer<vf> kept_slots, kept_sums;
    static thread_local Buffer<int64_t> kept_begin;
    static thread_local Buffer<float> kept_backgrounds;
    int64_t* slot_begin = kept_begin.reserve(tiles + 1);
    slot_begin[0] = 0;
    for (int64_t t = 0; t < tiles; ++t) slot_begin[t + 1] = slot_begin[t] + state.used[t];
    vf *slots = kept_slots.reserve(slot_begin[tiles]), *sums = kept_sums.reserve(splats);
    float* v_backgrounds = kept_backgrounds.reserve(tiles * 3);
    std::fill(sums, sums + splats, vf{});
    std::fill(v_backgrounds, v_backgrounds + tiles * 3, 0.0f);
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < tiles; ++t)
        differentiate_tile(image, state, in.backgrounds, g, t, slots + slot_begin[t], v_backgrounds + 3 * t);

    for (int64_t t = 0; t < tiles; ++t) {
        const uint32_t* entries = state.entries + state.entry_begin[t];
        const vf* slot = slots + slot_begin[t];
        for (int i = 0; i < state.used[t]; ++i) sums[entries[i]] += slot[i];
        if (g.v_backgrounds)
            for (int k = 0; k < 3; ++k)
                g.v_backgrounds[3 * (t / image.tiles()) + k] += v_backgrounds[3 * t + k];
    }
    for (int64_t view = 0; view < image.V; ++view)
        for (int64_t i = state.splat_begin[view]; i < state.splat_begin[view + 1]; ++i) {
            int64_t id = state.splats[i].id;
            write_gradients(in, g, view * image.N + id, id, sums[i]);
        }
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
