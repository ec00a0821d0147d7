#include "src/base/simd.h"

#include <pybind11/stl.h>

#include "src/base/threads.h"
#include "src/bindings/bindings.h"

namespace py = pybind11;

namespace lowbit {

void BindSimd(py::module_& m) {
  m.def("simd_targets", &SimdTargets);
  m.def("simd_current", &SimdCurrent);
  m.def("simd_force", &SimdForce, py::arg("name"));
  m.def("available_threads", &AvailableThreads);
}

}  // namespace lowbit
