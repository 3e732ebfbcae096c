// The module splatdistill._C: each subfolder binds its own functions. Nothing here knows torch.
#include <omp.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_ddim(py::module_& m);
void bind_raster(py::module_& m);
void bind_scenes(py::module_& m);

// A module compiled with -march=native on another machine would die of an illegal instruction: refuse early.
static void check_processor() {
#if defined(__x86_64__)
    bool fits = true;
#if defined(__AVX2__)
    fits = fits && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#if defined(__AVX512F__)
    fits = fits && __builtin_cpu_supports("avx512f");
#endif
    if (!fits) throw py::import_error("compiled for another processor (reinstall, or set SPLATDISTILL_ARCH)");
#endif
}

PYBIND11_MODULE(_C, m) {
    check_processor();
    m.doc() = "Native kernels of splatdistill: pointers, sizes and dtype tags in, nothing out.";
#if defined(SPLATDISTILL_CUDA)
    m.attr("has_cuda") = true;
#else
    m.attr("has_cuda") = false;
#endif
    m.def(
        "set_num_threads", [](int count) { omp_set_num_threads(count); },
        "Set the OpenMP team size of the calling thread.");
    m.def("get_num_threads", [] { return omp_get_max_threads(); });
    bind_ddim(m);
    bind_raster(m);
    bind_scenes(m);
}
