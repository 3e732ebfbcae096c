// The module splatdistill._C: each file here binds one folder of kernels, and nothing knows torch. Functions
// take arrays as TensorView, write their results into arrays of the caller, and release the GIL.
#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "dispatch.h"
#include "python/tensor_view.h"

namespace py = pybind11;

namespace splatdistill::python {
void bind_ddim(py::module_& m);
void bind_raster(py::module_& m);
void bind_scenes(py::module_& m);
}  // namespace splatdistill::python

PYBIND11_MODULE(_C, m) {
    using namespace splatdistill;
    m.doc() = "Native kernels of splatdistill; the typed face is splatdistill.ops.";
    if (const char* asked = std::getenv("SPLATDISTILL_SIMD")) {
        try {
            set_level(asked);
        } catch (const std::invalid_argument& error) {
            throw py::import_error(std::string("SPLATDISTILL_SIMD: ") + error.what());
        }
    }
#if defined(SPLATDISTILL_CUDA)
    m.attr("has_cuda") = true;
#else
    m.attr("has_cuda") = false;
#endif
    m.def("levels", &levels, "Names of the vector levels that this processor runs, narrowest first.");
    m.def("level", &level, "Name of the vector level in use.");
    m.def("set_level", &set_level, py::arg("name"), "Use this vector level; ValueError where there is none.");
    m.def(
        "set_num_threads", [](int count) { omp_set_num_threads(count); }, py::arg("count"),
        "Set the OpenMP team size of the calling thread.");
    m.def("get_num_threads", [] { return omp_get_max_threads(); });
    m.def("set_exchange", &python::set_exchange, py::arg("tensor_type"), py::arg("capsule"),
          "Read tensors of this type through this DLPack exchange capsule (None: by __dlpack__).");
    python::bind_ddim(m);
    python::bind_raster(m);
    python::bind_scenes(m);
}
