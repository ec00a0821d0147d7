#include "src/bindings/sampler.h"

#include <pybind11/stl.h>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"

namespace py = pybind11;

namespace lowbit {
namespace {

StepSampler MakeSampler(float temperature, int64_t top_k, float top_p, float min_p, float repetition_penalty,
                        uint64_t seed) {
  return StepSampler({temperature, top_k, top_p, min_p, repetition_penalty}, seed);
}

void AcceptList(StepSampler& sampler, const std::vector<int32_t>& tokens) {
  sampler.Accept(tokens.data(), tokens.size());
}

std::optional<int32_t> SampleArray(StepSampler& sampler, const py::array_t<float, py::array::c_style>& logits) {
  if (logits.ndim() != 1) throw InputError("sample:").Expected("logits of 1 dimension").Found(logits.ndim());
  const float* values = logits.data();
  const auto num = static_cast<size_t>(logits.size());
  const GilRelease release;
  return sampler.Sample(values, num);
}

}  // namespace

void BindSampler(py::module_& m) {
  py::class_<StepSampler>(m, "Sampler")
      .def(py::init(&MakeSampler), py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
           py::arg("min_p"), py::arg("repetition_penalty"), py::arg("seed"))
      .def("accept", &AcceptList, py::arg("tokens"))
      .def("sample", &SampleArray, py::arg("logits"));
}

}  // namespace lowbit
