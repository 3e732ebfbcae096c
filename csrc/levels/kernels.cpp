// The table of this level's kernels: addresses only, so that nothing runs when it is loaded.
#include "dispatch.h"

namespace splatdistill::SPLATDISTILL_LEVEL {

extern const Kernels kKernels;

const Kernels kKernels = {
    ddim::SPLATDISTILL_LEVEL::run_cpu,
    ddim::SPLATDISTILL_LEVEL::run_cpu,
    ddim::SPLATDISTILL_LEVEL::run_cpu,
    raster::SPLATDISTILL_LEVEL::project,
    raster::SPLATDISTILL_LEVEL::project_backward,
    raster::SPLATDISTILL_LEVEL::bin,
    raster::SPLATDISTILL_LEVEL::read_state,
    raster::SPLATDISTILL_LEVEL::rasterize,
    raster::SPLATDISTILL_LEVEL::rasterize_backward,
    scenes::SPLATDISTILL_LEVEL::raycast,
};

}  // namespace splatdistill::SPLATDISTILL_LEVEL
