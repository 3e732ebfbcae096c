#include <pybind11/pybind11.h>

void bind_ddim(pybind11::module_&) {}
