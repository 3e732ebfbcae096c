// raycast_scenes: a batch of procedural scenes to RGBA pictures.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "scenes/raycast.h"

namespace py = pybind11;
using splatdistill::RaycastView;
using splatdistill::Solid;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

namespace {

py::array_t<std::uint8_t> raycast_scenes(const Floats& solids, const Floats& viewmats, const Floats& Ks,
                                         int size, int threads) {
    constexpr py::ssize_t kFloats = sizeof(Solid) / sizeof(float);
    if (solids.ndim() != 3 || solids.shape(2) != kFloats)
        throw std::invalid_argument("solids must be [B, P, 17] float32");
    const py::ssize_t count = solids.shape(0), parts = solids.shape(1);
    if (viewmats.ndim() != 3 || viewmats.shape(0) != count || viewmats.shape(1) != 4 ||
        viewmats.shape(2) != 4)
        throw std::invalid_argument("viewmats must be [B, 4, 4] float32 with the B of solids");
    if (Ks.ndim() != 3 || Ks.shape(0) != count || Ks.shape(1) != 3 || Ks.shape(2) != 3)
        throw std::invalid_argument("Ks must be [B, 3, 3] float32 with the B of solids");
    if (size < 1 || size > 4096) throw std::invalid_argument("size must be 1 to 4096 pixels");
    py::array_t<std::uint8_t> rgba({count, py::ssize_t(size), py::ssize_t(size), py::ssize_t(4)});
    const float *solid_data = solids.data(), *view_data = viewmats.data(), *K_data = Ks.data();
    std::uint8_t* out = rgba.mutable_data();
    {
        py::gil_scoped_release release;
#pragma omp parallel for schedule(dynamic) num_threads(threads > 0 ? threads : 1)
        for (py::ssize_t i = 0; i < count; ++i)
            raycast(RaycastView{reinterpret_cast<const Solid*>(solid_data + i * parts * kFloats), int(parts),
                                view_data + i * 16, K_data + i * 9, size, out + i * size * size * 4});
    }
    return rgba;
}

}  // namespace

void bind_scenes(py::module_& m) {
    m.def("raycast_scenes", &raycast_scenes, py::arg("solids"), py::arg("viewmats"), py::arg("Ks"),
          py::arg("size"), py::arg("threads") = 1);
}
