// The parts of the Python module; each function adds one part's names to it.
#pragma once

#include <pybind11/pybind11.h>

namespace lowbit {

void BindFiles(pybind11::module_& m);
void BindFormats(pybind11::module_& m);
void BindGguf(pybind11::module_& m);
void BindMetrics(pybind11::module_& m);
void BindSimd(pybind11::module_& m);
void BindModel(pybind11::module_& m);

// A number of threads that a caller asks for. Throws InputError unless it is from 1 to 1024.
size_t Threads(pybind11::ssize_t threads);

}  // namespace lowbit
