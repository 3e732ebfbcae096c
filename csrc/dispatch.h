// Which level of vector instructions the kernels use: the widest that this processor runs, or a chosen one.
#pragma once
#include <string>
#include <vector>

#include "ddim/ddim.h"
#include "raster/raster.h"
#include "scenes/raycast.h"

namespace splatdistill {

// The kernels of one level.
struct Kernels {
    void (*step)(const ddim::Step&, int threads);
    void (*residual)(const ddim::Residual&, int threads);
    void (*recover)(const ddim::Recover&, int threads);
    void (*project)(const raster::Scene&, const raster::Projection&);
    void (*project_backward)(const raster::Scene&, const int32_t* radii, const raster::ProjectionGradient&);
    raster::State (*bin)(const raster::Image&, const raster::RasterInputs&, const raster::Allocator&);
    raster::State (*read_state)(const raster::Image&, char* memory, size_t size);
    void (*rasterize)(const raster::Image&, const raster::State&, const float* backgrounds,
                      const raster::RasterOutputs&);
    void (*rasterize_backward)(const raster::Image&, const raster::State&, const raster::RasterInputs&,
                               const raster::RasterGradient&);
    void (*raycast)(const scenes::RaycastView&);
};

// The kernels in use. Results differ between levels by rounding only, and not at all within one.
const Kernels& kernels();

// Names of the levels that this processor runs, narrowest first.
std::vector<std::string> levels();

const char* level();  // in use

// Use this level from the next call on; std::invalid_argument where this processor does not run it.
void set_level(const std::string& name);

}  // namespace splatdistill
