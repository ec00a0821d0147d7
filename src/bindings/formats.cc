#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "src/bindings/bindings.h"
#include "src/formats/format.h"

namespace py = pybind11;

namespace lowbit {

void BindFormats(py::module_& m) {
  py::class_<Format>(m, "Format")
      .def_property_readonly("name", [](const Format& f) { return f.name; })
      .def_readonly("ggml_type", &Format::ggml_type)
      .def_readonly("block_size", &Format::block_size)
      .def_readonly("block_bytes", &Format::block_bytes)
      .def_readonly("needs_imatrix", &Format::needs_imatrix)
      .def_property_readonly("bits_per_weight", &Format::BitsPerWeight);
  m.def("formats", &Formats, py::return_value_policy::reference);
}

}  // namespace lowbit
