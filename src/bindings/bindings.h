// The parts of the Python module. Each function adds the names of one part.
//
// Calls read some memory without Python's lock while other threads may change it: arrays of weights, packed weights,
// activations and logits, and data to write to a file. These are read in place. No value in them causes an access out
// of bounds, but the result is undefined if they change. Values that are checked first and used later (ids, positions,
// masks, targets, importances, every shape) are copied while the lock is held. An array must not be resized during a
// call (`ndarray.resize(refcheck=False)`), as for NumPy's own functions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "src/io/gguf.h"
#include "src/io/mapped_file.h"

namespace lowbit {

// An array of strings in a file's metadata, without a Python object for each string.
struct GgufStrings {
  std::shared_ptr<const Gguf> file;
  const GgufValue* value;
};

void BindFiles(pybind11::module_& m);
void BindFormats(pybind11::module_& m);
void BindGguf(pybind11::module_& m);
void BindLimits(pybind11::module_& m);
void BindMetrics(pybind11::module_& m);
void BindOnnx(pybind11::module_& m);
void BindSimd(pybind11::module_& m);
void BindModel(pybind11::module_& m);
void BindSampler(pybind11::module_& m);
void BindTokenizer(pybind11::module_& m);

// The requested number of threads. Throws InputError unless it is from 1 to 1024.
size_t Threads(pybind11::ssize_t threads);

// Bytes of the map, read-only. The map lives as long as the array or a view of it.
pybind11::array MappedBytes(std::shared_ptr<const MappedFile> file, const uint8_t* data, uint64_t num_bytes);

}  // namespace lowbit
