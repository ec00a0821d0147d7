// The Python module lowbit._core: exceptions, then the parts (src/bindings).
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <exception>
#include <optional>
#include <string>

#include "src/base/error.h"
#include "src/base/simd.h"
#include "src/bindings/bindings.h"

namespace py = pybind11;

namespace lowbit {
namespace {

// Bytes that are not UTF-8 become \xNN.
py::str ToStr(const std::string& text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

void Raise(py::handle type, const Error& error) {
  const Error::Fields& fields = error.fields();
  py::dict arguments;
  const auto set = [&](const char* name, const std::optional<std::string>& text) {
    if (text) arguments[name] = ToStr(*text);
  };
  set("tensor", fields.tensor);
  set("key", fields.key);
  set("expected", fields.expected);
  set("found", fields.found);
  set("rest", fields.rest);
  if (fields.path) arguments["path"] = py::bytes(*fields.path);
  if (fields.offset) arguments["offset"] = *fields.offset;
  if (fields.errno_value) arguments["errno"] = *fields.errno_value;
  const py::object raised = type(ToStr(error.what()), **arguments);
  PyErr_SetObject(py::type::of(raised).ptr(), raised.ptr());
}

template <class E>
void BindError(const py::module_& errors, const char* name) {
  static PyObject* type;  // never freed: errors can be raised until the interpreter ends
  type = py::object(errors.attr(name)).release().ptr();
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const E& error) {
      Raise(type, error);
    }
  });
}

void BindErrors() {
  const py::module_ errors = py::module_::import("lowbit.base.errors");
  // pybind11 tries the newest translator first, so the base class is registered first.
  BindError<Error>(errors, "Error");
  BindError<FormatError>(errors, "FormatError");
  BindError<FileError>(errors, "FileError");
  BindError<UnsupportedError>(errors, "UnsupportedError");
  BindError<InputError>(errors, "InputError");
  BindError<ContextFullError>(errors, "ContextFullError");
}

}  // namespace
}  // namespace lowbit

PYBIND11_MODULE(_core, m) {
  lowbit::BindErrors();
  lowbit::BindSimd(m);
  lowbit::BindFiles(m);
  lowbit::BindFormats(m);
  lowbit::BindGguf(m);
  lowbit::BindLimits(m);
  lowbit::BindMetrics(m);
  lowbit::BindOnnx(m);
  lowbit::BindSampler(m);
  lowbit::BindModel(m);
  lowbit::BindTokenizer(m);
  if (const char* target = std::getenv("LOWBIT_SIMD")) lowbit::SimdForce(target);
}
