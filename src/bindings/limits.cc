#include "src/kernels/limits.h"

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"

namespace py = pybind11;

namespace lowbit {
namespace {

size_t Count(const char* name, py::ssize_t value) {
  if (value < 1) throw InputError(Str(name, ":")).Expected("at least 1").Found(value);
  return static_cast<size_t>(value);
}

double MeasuredReadRate(py::ssize_t num_bytes, bool huge_pages, py::ssize_t passes, py::ssize_t threads) {
  const size_t bytes = Count("num_bytes", num_bytes), num_passes = Count("passes", passes);
  const size_t num_threads = Threads(threads);
  const GilRelease release;
  return ReadRate(bytes, huge_pages, num_threads, num_passes);
}

double MeasuredMultiplyAddRate(const std::string& arithmetic, py::ssize_t passes, py::ssize_t threads) {
  const size_t num_passes = Count("passes", passes), num_threads = Threads(threads);
  Arithmetic kind = Arithmetic::kF32;
  if (arithmetic == "int8") {
    kind = Arithmetic::kInt8;
  } else if (arithmetic == "bf16") {
    kind = Arithmetic::kBf16;
  } else if (arithmetic != "f32") {
    throw InputError("arithmetic:").Expected("int8, bf16 or f32").Found(arithmetic);
  }
  const GilRelease release;
  return MultiplyAddRate(kind, num_threads, num_passes);
}

}  // namespace

void BindLimits(py::module_& m) {
  m.def("read_rate", &MeasuredReadRate, py::arg("num_bytes"), py::arg("huge_pages"), py::arg("passes"),
        py::arg("threads"));
  m.def("multiply_add_rate", &MeasuredMultiplyAddRate, py::arg("arithmetic"), py::arg("passes"), py::arg("threads"));
}

}  // namespace lowbit
