// The Python module lowbit._core: exceptions, then the parts (src/bindings).
#include <pybind11/pybind11.h>

#include <cstdlib>

#include "src/base/error.h"
#include "src/base/simd.h"
#include "src/bindings/bindings.h"

namespace py = pybind11;

namespace lowbit {
namespace {

template <class E>
void BindError(py::module_& m, const char* name, py::handle bases) {
  py::register_exception<E>(m, name, bases).attr("__module__") = "lowbit";
}

void BindErrors(py::module_& m) {
  // pybind11 asks the translators newest first, so the base comes first.
  BindError<Error>(m, "Error", py::module_::import("lowbit.base.quoting").attr("OneLineError"));
  const py::object base = m.attr("Error");
  BindError<FormatError>(m, "FormatError", base);
  BindError<FileError>(m, "FileError", base);
  BindError<UnsupportedError>(m, "UnsupportedError", base);
  BindError<InputError>(m, "InputError", py::make_tuple(base, py::reinterpret_borrow<py::object>(PyExc_ValueError)));
  BindError<ContextFullError>(m, "ContextFullError", base);
}

}  // namespace
}  // namespace lowbit

PYBIND11_MODULE(_core, m) {
  lowbit::BindErrors(m);
  lowbit::BindSimd(m);
  lowbit::BindFiles(m);
  lowbit::BindFormats(m);
  lowbit::BindGguf(m);
  lowbit::BindMetrics(m);
  lowbit::BindModel(m);
  if (const char* target = std::getenv("LOWBIT_SIMD")) lowbit::SimdForce(target);
}
