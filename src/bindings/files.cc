#include <memory>
#include <string>

#include "src/bindings/bindings.h"
#include "src/io/file.h"

namespace py = pybind11;

namespace lowbit {
namespace {

// Returns the number of bytes, as the files of Python do.
uint64_t WriteBuffer(AtomicWriter& writer, const py::buffer& buffer) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> release_view(&view, PyBuffer_Release);
  const auto num_bytes = static_cast<uint64_t>(view.len);
  const py::gil_scoped_release release;
  writer.Write(view.buf, num_bytes);
  return num_bytes;
}

}  // namespace

void BindFiles(py::module_& m) {
  py::class_<AtomicWriter>(m, "AtomicWriter")
      .def(py::init<const std::string&>(), py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("write", &WriteBuffer, py::arg("buffer"))
      .def("commit", &AtomicWriter::Commit, py::call_guard<py::gil_scoped_release>())
      .def("abort", &AtomicWriter::Abort, py::call_guard<py::gil_scoped_release>());
}

}  // namespace lowbit
