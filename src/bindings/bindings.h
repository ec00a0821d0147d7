// The parts of the Python module; each function adds one part's names to it.
//
// Which memory others may change while a call reads it without Python's lock: arrays of weights, packed weights,
// activations and logits, and what is written to a file. They are read where they lie, and no value in them leads out
// of bounds, though the result is then undefined. What is checked first and relied on later (ids, positions, masks,
// targets, importances, every shape) is copied while the lock is held. An array must not be resized meanwhile
// (`ndarray.resize(refcheck=False)`), as for NumPy's own functions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "src/io/mapped_file.h"

namespace lowbit {

void BindFiles(pybind11::module_& m);
void BindFormats(pybind11::module_& m);
void BindGguf(pybind11::module_& m);
void BindMetrics(pybind11::module_& m);
void BindSimd(pybind11::module_& m);
void BindModel(pybind11::module_& m);
void BindTokenizer(pybind11::module_& m);

// A number of threads that a caller asks for. Throws InputError unless it is from 1 to 1024.
size_t Threads(pybind11::ssize_t threads);

// Bytes in the map, read-only; it lives as long as the array or a view of it does.
pybind11::array MappedBytes(std::shared_ptr<const MappedFile> file, const uint8_t* data, uint64_t num_bytes);

}  // namespace lowbit
