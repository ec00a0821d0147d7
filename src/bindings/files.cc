#include <memory>
#include <string>
#include <utility>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"
#include "src/io/file.h"

namespace py = pybind11;

namespace lowbit {
namespace {

std::string PathOf(AtomicWriter& writer) {
  const GilRelease release;
  return writer.TemporaryPath();
}

// Returns the number of bytes, as Python's files do.
uint64_t WriteBuffer(AtomicWriter& writer, const py::buffer& buffer) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> release_view(&view, PyBuffer_Release);
  const auto num_bytes = static_cast<uint64_t>(view.len);
  const GilRelease release;
  writer.Write(view.buf, num_bytes);
  return num_bytes;
}

void ReleaseBuffer(const py::buffer& buffer) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> release_view(&view, PyBuffer_Release);
  MappedFile::Release(view.buf, static_cast<size_t>(view.len));
}

// pybind11 holds only non-const pointers.
std::shared_ptr<MappedFile> OfDescriptor(int descriptor, const std::string& path) {
  return std::const_pointer_cast<MappedFile>(MappedFile::OfDescriptor(descriptor, path));
}

py::array Bytes(const std::shared_ptr<MappedFile>& file, uint64_t offset, uint64_t num_bytes) {
  file->Check();
  if (offset > file->size() || num_bytes > file->size() - offset) {
    throw FileError(Str("the file became shorter while it was read, at offset ", file->size()))
        .Path(file->path())
        .Offset(file->size());
  }
  return MappedBytes(file, file->data() + offset, num_bytes);
}

}  // namespace

py::array MappedBytes(std::shared_ptr<const MappedFile> file, const uint8_t* data, uint64_t num_bytes) {
  auto owner = std::make_unique<std::shared_ptr<const MappedFile>>(std::move(file));
  const py::capsule base(owner.get(), [](void* p) { delete static_cast<std::shared_ptr<const MappedFile>*>(p); });
  owner.release();
  py::array_t<uint8_t> array(static_cast<py::ssize_t>(num_bytes), data, base);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

void BindFiles(py::module_& m) {
  py::class_<MappedFile, std::shared_ptr<MappedFile>>(m, "MappedFile")
      .def_static("of_descriptor", &OfDescriptor, py::arg("descriptor"), py::arg("path"))
      .def_static("release", &ReleaseBuffer, py::arg("buffer"))
      .def("bytes", &Bytes, py::arg("offset"), py::arg("size"));

  py::class_<AtomicWriter>(m, "AtomicWriter")
      .def(py::init<const std::string&>(), py::arg("path"), py::call_guard<GilRelease>())
      .def_property_readonly("temporary_path", [](AtomicWriter& writer) { return py::bytes(PathOf(writer)); })
      .def("write", &WriteBuffer, py::arg("buffer"))
      .def("commit", &AtomicWriter::Commit, py::call_guard<GilRelease>())
      .def("abort", &AtomicWriter::Abort, py::call_guard<GilRelease>());
}

}  // namespace lowbit
