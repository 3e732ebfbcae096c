// raycast_scenes: a batch of procedural scenes to RGBA pictures.
#include <pybind11/pybind11.h>

#include "dispatch.h"
#include "python/tensor_view.h"

namespace py = pybind11;

namespace splatdistill::python {
namespace {

using scenes::RaycastView;
using scenes::Solid;

void raycast_scenes(const TensorView& solids, const TensorView& viewmats, const TensorView& Ks,
                    const TensorView& rgba, int threads) {
    constexpr int64_t kFloats = sizeof(Solid) / sizeof(float);
    const int64_t count = solids.shape[0], parts = solids.shape[1], size = rgba.shape[1];
    if (size < 1 || size > 4096) throw py::value_error("rgba must be [B, size, size, 4] with size 1 to 4096");
    const auto* solid_data = reinterpret_cast<const Solid*>(solids.floats({count, parts, kFloats}, "solids"));
    const float* view_data = viewmats.floats({count, 4, 4}, "viewmats");
    const float* K_data = Ks.floats({count, 3, 3}, "Ks");
    uint8_t* out = rgba.bytes({count, size, size, 4}, "rgba");
    const Kernels& run = kernels();
    const py::gil_scoped_release release;
#pragma omp parallel for schedule(dynamic) num_threads(threads > 0 ? threads : 1)
    for (int64_t i = 0; i < count; ++i)
        run.raycast(RaycastView{solid_data + i * parts, int(parts), view_data + i * 16, K_data + i * 9,
                                int(size), out + i * size * size * 4});
}

}  // namespace

void bind_scenes(py::module_& m) {
    m.def("raycast_scenes", &raycast_scenes, py::arg("solids"), py::arg("viewmats"), py::arg("Ks"),
          py::arg("rgba"), py::arg("threads") = 1,
          "Draw solids [B, P, 17] from viewmats [B, 4, 4] and Ks [B, 3, 3] into rgba [B, size, size, 4] "
          "uint8.");
}

}  // namespace splatdistill::python
