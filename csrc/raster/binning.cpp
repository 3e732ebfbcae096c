// From projected Gaussians to one list per tile: pack, radix sort by depth, count, prefix sum, scatter.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "raster.h"

namespace splatdistill::raster {
namespace {

struct Keyed {
    uint32_t key, id;
};

// One view's working memory, kept between calls.
struct Scratch {
    std::vector<Keyed> order, other;
    std::vector<Splat> splats;
    std::vector<uint32_t> tiles;       // of the splats, one after the other
    std::vector<uint32_t> tile_count;  // of each splat
};

// Stable least-significant-digit radix sort by key, 11 bits a pass; a pass that would move nothing is skipped.
void radix_sort(std::vector<Keyed>& items, std::vector<Keyed>& other) {
    constexpr int kBits = 11, kBuckets = 1 << kBits;
    uint32_t count[3][kBuckets] = {};
    for (const Keyed& item : items)
        for (int pass = 0; pass < 3; ++pass) ++count[pass][(item.key >> (pass * kBits)) & (kBuckets - 1)];
    other.resize(items.size());
    for (int pass = 0; pass < 3; ++pass) {
        int shift = pass * kBits;
        if (items.empty() || count[pass][(items[0].key >> shift) & (kBuckets - 1)] == items.size()) continue;
        uint32_t sum = 0;
        for (uint32_t& c : count[pass]) {
            uint32_t next = sum + c;
            c = sum;
            sum = next;
        }
        for (const Keyed& item : items) other[count[pass][(item.key >> shift) & (kBuckets - 1)]++] = item;
        items.swap(other);
    }
}

// Fill in a splat; false when no pixel of the plane can see it or when it is not a finite ellipse.
bool pack(const RasterInputs& in, int64_t at, int64_t id, Splat& s) {
    const float half_log2e = 0.72134752044f, log2_255 = 7.99435343685886f;
    const float* conic = in.conics + 3 * at;
    const float* colour = in.colours + 3 * at;
    double a = conic[0], b = conic[1], c = conic[2];
    // Cholesky factor of the conic, in units of log2: never negative, whatever the rounding
    double w2 = std::max(c - b * b / a, 1e-9 * c) * half_log2e, u = std::sqrt(a * half_log2e);
    s.x = in.means2d[2 * at], s.y = in.means2d[2 * at + 1];
    s.u = float(u), s.v = float(b * half_log2e / u), s.w = float(std::sqrt(w2));
    s.log2_opacity = std::log2(in.opacities[id]);
    s.r = colour[0], s.g = colour[1], s.b = colour[2], s.depth = in.depths[at];
    s.limit = s.log2_opacity + log2_255;
    s.slope = float(-b / c);
    s.half_height = float(std::sqrt(s.limit / w2));
    s.half_width = float(std::sqrt(s.limit * c / (a * w2)));
    s.id = int32_t(id);
    float sum = s.x + s.y + s.u + s.v + s.w + s.r + s.g + s.b + s.depth + s.half_width + s.half_height;
    return s.limit >= 0.0f && std::isfinite(sum);
}

// The tiles [low, high) whose pixels' centres a span of the image may reach.
void tile_range(float from, float to, int tiles, int& low, int& high) {
    float end = float(tiles);
    low = int(std::clamp(std::ceil((from + 0.5f) / kTile) - 1.0f, 0.0f, end));
    high = std::max(low, int(std::clamp(std::floor((to - 0.5f) / kTile) + 1.0f, 0.0f, end)));
}

// Append the tiles that the splat's ellipse reaches, row by row.
uint32_t append_tiles(const Splat& s, const Image& image, std::vector<uint32_t>& out) {
    int x0, x1, y0, y1;
    const float slack = 1e-3f;  // more than rounding: pixels are tested exactly later
    float half_width = s.half_width * 1.0001f + slack, half_height = s.half_height * 1.0001f + slack;
    tile_range(s.x - half_width, s.x + half_width, image.tiles_x(), x0, x1);
    tile_range(s.y - half_height, s.y + half_height, image.tiles_y(), y0, y1);
    size_t before = out.size();
    bool by_row = x1 - x0 > 2 && y1 - y0 > 1;  // else the corners are not worth the arithmetic
    for (int ty = y0; ty < y1; ++ty) {
        int low = x0, high = x1;
        if (by_row) {
            // widest where dy = slope dx; in a band of rows, the nearest row to that on either side
            float top = ty * kTile + 0.5f - slack - s.y, bottom = top + kTile - 1 + 2 * slack;
            float right_y = std::clamp(s.slope * half_width, top, bottom);
            float left_y = std::clamp(-s.slope * half_width, top, bottom);
            auto half_chord = [&](float y) { return std::sqrt(std::max(s.limit - s.w * s.w * y * y, 0.0f)); };
            float right = (half_chord(right_y) - s.v * right_y) / s.u;
            float left = (-half_chord(left_y) - s.v * left_y) / s.u;
            float margin = slack + 1e-4f * half_width;
            tile_range(std::max(s.x + left - margin, s.x - half_width),
                       std::min(s.x + right + margin, s.x + half_width), image.tiles_x(), low, high);
        }
        for (int tx = low; tx < high; ++tx) out.push_back(uint32_t(ty * image.tiles_x() + tx));
    }
    return uint32_t(out.size() - before);
}

void sort_view(const Image& image, const RasterInputs& in, int64_t view, Scratch& s) {
    s.order.clear(), s.splats.clear(), s.tiles.clear(), s.tile_count.clear();
    for (int64_t id = 0; id < image.N; ++id) {
        int64_t at = view * image.N + id;
        if (in.radii[2 * at] <= 0 || in.radii[2 * at + 1] <= 0) continue;
        uint32_t key;  // depths are positive: their bits sort like the numbers
        std::memcpy(&key, in.depths + at, sizeof(key));
        s.order.push_back({key, uint32_t(id)});
    }
    radix_sort(s.order, s.other);
    for (const Keyed& item : s.order) {
        Splat splat = {};
        if (!pack(in, view * image.N + item.id, item.id, splat)) continue;
        uint32_t count = append_tiles(splat, image, s.tiles);
        if (count == 0) continue;
        s.splats.push_back(splat);
        s.tile_count.push_back(count);
    }
}

}  // namespace

size_t lay_out(const Image& image, int64_t splats, int64_t entries, char* memory, State& state, bool fresh) {
    int64_t tiles = image.V * image.tiles();
    size_t at = 0;
    auto section = [&](auto*& pointer, int64_t count) {
        using T = std::remove_reference_t<decltype(*pointer)>;
        size_t size = size_t(count) * sizeof(T), padded = (size + 63) / 64 * 64;
        if (memory) pointer = reinterpret_cast<T*>(memory + at);
        if (fresh) std::memset(memory + at + size, 0, padded - size);
        at += padded;
    };
    section(state.splat_begin, image.V + 1);
    section(state.entry_begin, tiles + 1);
    section(state.used, tiles);
    section(state.transmittance, tiles * kBlocks);
    section(state.stop, tiles * kBlocks);
    section(state.splats, splats);
    section(state.entries, entries);
    section(state.masks, entries);
    return at;
}

State bin(const Image& image, const RasterInputs& in, char* (*allocate)(void*, size_t), void* context) {
    static thread_local std::vector<Scratch> kept;
    if (kept.size() < size_t(image.V)) kept.resize(image.V);
    Scratch* views = kept.data();
#pragma omp parallel for schedule(dynamic)
    for (int64_t view = 0; view < image.V; ++view) sort_view(image, in, view, views[view]);

    int64_t splats = 0, entries = 0;
    for (int64_t view = 0; view < image.V; ++view) {
        splats += views[view].splats.size();
        entries += views[view].tiles.size();
    }
    State state;
    char* memory = allocate(context, lay_out(image, splats, entries, nullptr, state));
    lay_out(image, splats, entries, memory, state, true);
    state.splat_begin[0] = 0;
    for (int64_t view = 0; view < image.V; ++view)
        state.splat_begin[view + 1] = state.splat_begin[view] + int64_t(views[view].splats.size());
    int64_t tiles = image.tiles();
    std::fill(state.entry_begin, state.entry_begin + image.V * tiles + 1, 0);

    // entry_begin[t + 1] counts tile t, then holds its first free slot, and ends as its end
#pragma omp parallel for schedule(dynamic)
    for (int64_t view = 0; view < image.V; ++view)
        for (uint32_t tile : views[view].tiles) ++state.entry_begin[view * tiles + tile + 1];
    int64_t sum = 0;
    for (int64_t t = 1; t <= image.V * tiles; ++t) {
        int64_t count = state.entry_begin[t];
        state.entry_begin[t] = sum;
        sum += count;
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t view = 0; view < image.V; ++view) {
        const Scratch& s = views[view];
        int64_t base = state.splat_begin[view];
        if (!s.splats.empty()) std::memcpy(state.splats + base, s.splats.data(), s.splats.size() * sizeof(Splat));
        int64_t* next = state.entry_begin + view * tiles + 1;
        const uint32_t* tile = s.tiles.data();
        for (size_t i = 0; i < s.splats.size(); ++i)
            for (uint32_t k = 0; k < s.tile_count[i]; ++k) state.entries[next[*tile++]++] = uint32_t(base + i);
    }
    return state;
}

}  // namespace splatdistill::raster
