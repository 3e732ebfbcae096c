// Analytic ray caster for the procedural scenes that the shipped teacher is trained on.
#pragma once
#include <cstdint>

#include "levels/level.h"

namespace splatdistill::scenes {

// One solid, in its own space where it has unit size: x_local = world_to_local * [x_world, 1].
// `parameter` is the clip height of an ellipsoid (-1: whole), the top radius of a frustum (bottom: 1), the
// tube radius of a torus (ring: 1); boxes and prisms have none.
struct Solid {
    enum Kind : int { kNone = -1, kEllipsoid = 0, kBox = 1, kFrustum = 2, kPrism = 3, kTorus = 4 };
    float kind;
    float parameter;
    float world_to_local[12];  // 3x4, row-major
    float color[3];
};
static_assert(sizeof(Solid) == 17 * sizeof(float), "the Python side packs 17 floats a solid");

struct RaycastView {
    const Solid* solids;  // [solid_count]
    int solid_count;
    const float* viewmat;  // world to camera, 4x4 row-major, OpenCV axes
    const float* K;        // 3x3 row-major, in pixels of the output image
    int size;              // output pixels a side
    std::uint8_t* rgba;    // [size, size, 4], color premultiplied by coverage
};

namespace SPLATDISTILL_LEVEL {

// Cast 2x2 rays a pixel; thread-safe, allocates its own scratch.
void raycast(const RaycastView& view);

}  // namespace SPLATDISTILL_LEVEL

}  // namespace splatdistill::scenes
