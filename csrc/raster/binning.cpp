// From projected Gaussians to one list per tile: pack, radix sort by depth, count, prefix sum, scatter.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "raster/buffer.h"
#include "raster/layout.h"
#include "raster/radix_sort.h"
#include "raster/tile.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {
namespace {

const char* const kForeignState = "the rasterizer's state does not belong to these inputs";

// One view's working memory.
struct Scratch {
    Buffer<Splat> splats;  // the visible ones, by Gaussian
    Buffer<Keyed> order, other;
    Buffer<uint32_t> tiles;       // of the splats, near to far, one after the other
    Buffer<uint32_t> tile_count;  // of each splat
    Buffer<int64_t> tile_entries;
    Keyed* sorted;
    int64_t count, entries;
};

// Sixteen Gaussians as splats; bit l of the result: lane l can be seen and is a finite ellipse.
uint32_t pack(const RasterInputs& in, int64_t at, int64_t id, int count, Splat (&out)[kLanes]) {
    const float half_log2e = 0.72134752044f;
    vf x = gather(in.means2d + 2 * at, 2, 0, count), y = gather(in.means2d + 2 * at, 2, 1, count);
    vf a = gather(in.conics + 3 * at, 3, 0, count), b = gather(in.conics + 3 * at, 3, 1, count);
    vf c = gather(in.conics + 3 * at, 3, 2, count), opacity = gather(in.opacities + id, 1, 0, count);
    vf color[3], depth = gather(in.depths + at, 1, 0, count);
    for (int k = 0; k < 3; ++k) color[k] = gather(in.colors + 3 * at, 3, k, count);

    // Cholesky factor of the conic, in units of log2: never negative, whatever the rounding
    vf shear = b / a, w2 = max(c - b * shear, c * 1e-7f) * half_log2e, u = sqrt(a * half_log2e);
    vf log2_opacity = log2(opacity), limit = log2_opacity - kLog2AlphaMin;
    vf half_height = sqrt(limit / w2), half_width = sqrt(limit * c / (a * w2));
    vf w = sqrt(w2), v = u * shear;
    vf zero = x * 0.0f + y * 0.0f + u * 0.0f + v * 0.0f + w * 0.0f + half_width * 0.0f + half_height * 0.0f;
    zero += color[0] * 0.0f + color[1] * 0.0f + color[2] * 0.0f + depth * 0.0f + opacity * 0.0f;
    vm good = both(is_finite(zero), less_equal(vf{}, limit));
    good = both(good, both(less_equal(splat(kAlphaMin), opacity), less(vf{}, a)));

    const vf fields[] = {x,        y,        u,     v,     w,      log2_opacity, color[0],
                         color[1], color[2], depth, limit, -b / c, half_width,   half_height};
    for (int k = 0; k < 14; ++k) scatter(fields[k], reinterpret_cast<float*>(out), 16, k, count);
    for (int l = 0; l < count; ++l) {
        out[l].id = int32_t(id + l);
        out[l].unused = 0;
    }
    good = both(good, less(vi{}, gather<vi>(in.radii + 2 * at, 2, 0, count)));
    good = both(good, less(vi{}, gather<vi>(in.radii + 2 * at, 2, 1, count)));
    return bits(good) & ((1u << count) - 1);
}

// The tiles [low, high) whose pixels' centers a span of the image may reach.
void tile_range(float from, float to, int tiles, int& low, int& high) {
    float end = float(tiles);
    low = int(std::clamp(std::ceil((from + 0.5f) / kTile) - 1.0f, 0.0f, end));
    high = std::max(low, int(std::clamp(std::floor((to - 0.5f) / kTile) + 1.0f, 0.0f, end)));
}

// List the tiles that the splat's ellipse reaches after the view's other entries; returns how many.
uint32_t append_tiles(const Splat& s, const Image& image, Scratch& scratch) {
    int x0, x1, y0, y1;
    const float slack = 1e-3f;  // more than rounding: pixels are tested exactly later
    float half_width = s.half_width * 1.0001f + slack, half_height = s.half_height * 1.0001f + slack;
    tile_range(s.x - half_width, s.x + half_width, image.tiles_x(), x0, x1);
    tile_range(s.y - half_height, s.y + half_height, image.tiles_y(), y0, y1);
    int64_t before = scratch.entries, most = before + int64_t(x1 - x0) * (y1 - y0);
    uint32_t* out = scratch.tiles.extend(most, before);
    int64_t* entries = scratch.tile_entries.data();
    bool corners = x1 - x0 > 1 && y1 - y0 > 1;  // else the box is as good as the ellipse
    for (int ty = y0; ty < y1; ty += 4)
        for (int tx = x0; tx < x1; tx += 4) {
            uint32_t row = (1u << std::min(4, x1 - tx)) - 1;
            uint32_t cells = (row * 0x1111u) & ((1u << 4 * std::min(4, y1 - ty)) - 1);
            if (corners) cells &= reached_cells<kTile>(s, s.x - tx * kTile - 0.5f, s.y - ty * kTile - 0.5f);
            for (; cells; cells &= cells - 1) {
                int cell = __builtin_ctz(cells);
                uint32_t tile = uint32_t((ty + cell / 4) * image.tiles_x() + tx + cell % 4);
                ++entries[tile];
                out[scratch.entries++] = tile;
            }
        }
    return uint32_t(scratch.entries - before);
}

void sort_view(const Image& image, const RasterInputs& in, int64_t view, Scratch& s) {
    Splat* splats = s.splats.reserve(image.N);
    Keyed* order = s.order.reserve(image.N);
    s.count = s.entries = 0;
    for (int64_t id = 0; id < image.N; id += kLanes) {
        Splat lanes[kLanes];
        uint32_t seen =
            pack(in, view * image.N + id, id, int(std::min<int64_t>(kLanes, image.N - id)), lanes);
        for (; seen; seen &= seen - 1) {
            const Splat& splat = splats[s.count] = lanes[__builtin_ctz(seen)];
            uint32_t key;  // depths are positive: their bits sort like the numbers
            std::memcpy(&key, &splat.depth, sizeof(key));
            order[s.count] = {key, uint32_t(s.count)};
            ++s.count;
        }
    }
    s.sorted = radix_sort(order, s.other.reserve(image.N), s.count);
    uint32_t* count = s.tile_count.reserve(s.count);
    int64_t* entries = s.tile_entries.reserve(image.tiles());
    std::fill(entries, entries + image.tiles(), 0);
    for (int64_t i = 0; i < s.count; ++i) {
        constexpr int64_t kAhead = 8;  // depth order jumps about in memory
        __builtin_prefetch(&splats[s.sorted[std::min(i + kAhead, s.count - 1)].id]);
        count[i] = append_tiles(splats[s.sorted[i].id], image, s);
    }
}

}  // namespace

State bin(const Image& image, const RasterInputs& in, const Allocator& allocator) {
    static thread_local std::vector<Scratch> kept;
    if (kept.size() < size_t(image.V)) kept.resize(image.V);
    Scratch* views = kept.data();
#pragma omp parallel for schedule(dynamic)
    for (int64_t view = 0; view < image.V; ++view) sort_view(image, in, view, views[view]);

    int64_t splats = 0, entries = 0, tiles = image.tiles();
    for (int64_t view = 0; view < image.V; ++view) {
        splats += views[view].count;
        entries += views[view].entries;
    }
    const Layout layout(image, splats, entries);
    char* memory = allocator.allocate(allocator.context, layout.size);
    layout.clear_padding(memory);
    State state = layout.at(memory);
    state.splat_begin[0] = state.entry_begin[0] = 0;
    int64_t* next =
        state.entry_begin + 1;  // each tile's next free entry, and so in the end the next one's begin
    for (int64_t view = 0, sum = 0; view < image.V; ++view) {
        state.splat_begin[view + 1] = state.splat_begin[view] + views[view].count;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            next[view * tiles + tile] = sum;
            sum += views[view].tile_entries.data()[tile];
        }
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t view = 0; view < image.V; ++view) {
        const Scratch& s = views[view];
        const uint32_t *tile = s.tiles.data(), *count = s.tile_count.data();
        for (int64_t i = 0; i < s.count; ++i) {
            int64_t splat = state.splat_begin[view] + i;
            state.splats[splat] = s.splats.data()[s.sorted[i].id];
            for (uint32_t k = 0; k < count[i]; ++k)
                state.entries[next[view * tiles + *tile++]++] = uint32_t(splat);
        }
    }
    return state;
}

State read_state(const Image& image, char* memory, size_t size) {
    const State begins = Layout(image, 0, 0).at(memory);  // where the counts lie does not depend on them
    const size_t tiles = size_t(image.V * image.tiles());
    if (size < Layout(image, 0, 0).size) throw std::invalid_argument(kForeignState);
    const Layout layout(image, begins.splat_begin[image.V], begins.entry_begin[tiles]);
    if (layout.size != size) throw std::invalid_argument(kForeignState);
    return layout.at(memory);
}

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
