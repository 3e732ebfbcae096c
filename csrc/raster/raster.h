// The CPU rasterizer of 3D Gaussians: "3D Gaussian Splatting" (Kerbl et al., 2308.04079) with gsplat's
// conventions. All arrays are contiguous float32, row-major; V views, N Gaussians, K SH coefficients, H W
// pixels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "levels/level.h"

namespace splatdistill::raster {

constexpr int kLanes = 16;                  // floats in a vector, whatever the level
constexpr int kTile = 16;                   // pixels along a tile's side
constexpr int kBlock = 4;                   // pixels along a block's side: one block is one vector
constexpr int kBlocks = 16;                 // blocks in a tile, row by row
constexpr float kAlphaMin = 1.0f / 255.0f;  // a fainter contribution is skipped
constexpr float kLog2AlphaMin = -7.99435343685886f;
constexpr float kAlphaMax = 0.999f;
constexpr float kTransmittanceMin = 1e-4f;  // a pixel stops before it falls to this

struct Scene {
    const float* means;      // [N,3]
    const float* quats;      // [N,4] wxyz, any length but zero
    const float* scales;     // [N,3]
    const float* opacities;  // [N] in [0,1]
    const float* sh;         // [N,K,3]
    const float* viewmats;   // [V,4,4] world to camera
    const float* Ks;         // [V,3,3]
    int64_t N, K, V;
    int width, height, sh_degree;
    float near, far, radius_clip, eps2d;
};

struct Projection {
    float* means2d;  // [V,N,2] pixels; everything is zero for a culled Gaussian
    float* conics;   // [V,N,3] inverse 2D covariance: xx, xy, yy
    float* depths;   // [V,N] camera z
    float* colors;   // [V,N,3] max(SH + 0.5, 0)
    int32_t* radii;  // [V,N,2] pixels; zero for a culled Gaussian
};

struct ProjectionGradient {
    const float* means2d;  // [V,N,2] gradients of the outputs
    const float* conics;   // [V,N,3]
    const float* depths;   // [V,N]
    const float* colors;   // [V,N,3]
    float* v_means;        // [N,3] gradients of the inputs, overwritten
    float* v_quats;        // [N,4]
    float* v_scales;       // [N,3]
    float* v_sh;           // [N,K,3]
};

// One visible Gaussian of one view, 64 bytes, in depth order. With d the offset from pixel to mean,
// log2 of its opacity at that pixel is log2_opacity - (u dx + v dy)^2 - (w dy)^2.
struct alignas(64) Splat {
    float x, y;
    float u, v, w;
    float log2_opacity;
    float r, g, b, depth;
    float limit;                    // the ellipse of alpha >= 1/255 is (u dx + v dy)^2 + (w dy)^2 <= limit
    float slope;                    // dy along which the ellipse is widest, per dx
    float half_width, half_height;  // of the ellipse's bounding box
    int32_t id;                     // the Gaussian's index
    int32_t unused;
};
static_assert(sizeof(Splat) == 64, "a splat is one cache line");

struct Image {
    int64_t N, V;
    int width, height;
    SPLATDISTILL_INLINE int tiles_x() const { return (width + kTile - 1) / kTile; }
    SPLATDISTILL_INLINE int tiles_y() const { return (height + kTile - 1) / kTile; }
    SPLATDISTILL_INLINE int64_t tiles() const { return int64_t(tiles_x()) * tiles_y(); }
};

// What the forward pass leaves for the backward pass: sections of one block of memory, in this order.
struct State {
    int64_t* splat_begin;  // [V+1]
    int64_t* entry_begin;  // [V*tiles+1] into entries and masks
    int32_t* used;         // [V*tiles] entries a tile looked at before all its pixels stopped
    float* transmittance;  // [V*tiles,16,16] what is left of each block's pixels after the last contribution
    int32_t* stop;         // [V*tiles,16,16] index in the tile of the entry at which a pixel stopped
    Splat* splats;         // [S] view by view, near to far
    uint32_t* entries;     // [E] indices of splats, tile by tile, near to far
    uint16_t* masks;       // [E] the blocks each entry can reach
};

struct RasterInputs {
    const float* means2d;      // [V,N,2]
    const float* conics;       // [V,N,3]
    const float* colors;       // [V,N,3]
    const float* opacities;    // [N]
    const float* depths;       // [V,N]
    const int32_t* radii;      // [V,N,2]
    const float* backgrounds;  // [V,3] or null: black
};

// Gives 64-byte aligned memory of this many bytes.
struct Allocator {
    char* (*allocate)(void* context, size_t size);
    void* context;
};

struct RasterOutputs {
    float* rgb;    // [V,H,W,3]
    float* alpha;  // [V,H,W]
    float* depth;  // [V,H,W] expected depth
};
struct RasterGradient {
    const float* rgb;        // [V,H,W,3] gradients of the outputs; null: zero
    const float* alpha;      // [V,H,W]
    const float* depth;      // [V,H,W]
    const float* alpha_out;  // [V,H,W] the forward's outputs
    const float* depth_out;  // [V,H,W]
    float* v_means2d;        // [V,N,2] gradients of the inputs, overwritten
    float* v_conics;         // [V,N,3]
    float* v_colors;         // [V,N,3]
    float* v_opacities;      // [N]
    float* v_depths;         // [V,N]
    float* v_backgrounds;    // [V,3] or null
};
namespace SPLATDISTILL_LEVEL {

void project(const Scene& scene, const Projection& out);
void project_backward(const Scene& scene, const int32_t* radii, const ProjectionGradient& gradient);

// Sort and bin into one block of memory, asked for once.
State bin(const Image& image, const RasterInputs& in, const Allocator& allocator);
// The state that `bin` left in `memory`; std::invalid_argument where it is not one of this image.
State read_state(const Image& image, char* memory, size_t size);

void rasterize(const Image& image, const State& state, const float* backgrounds, const RasterOutputs& out);
void rasterize_backward(const Image& image, const State& state, const RasterInputs& in,
                        const RasterGradient& g);

}  // namespace SPLATDISTILL_LEVEL
}  // namespace splatdistill::raster
