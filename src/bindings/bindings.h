// The parts of the Python module; each function adds one part's names to it.
#pragma once

#include <pybind11/pybind11.h>

namespace lowbit {

void BindFormats(pybind11::module_& m);
void BindSimd(pybind11::module_& m);

}  // namespace lowbit
