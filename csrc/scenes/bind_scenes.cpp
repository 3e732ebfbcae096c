#include <pybind11/pybind11.h>

void bind_scenes(pybind11::module_&) {}
