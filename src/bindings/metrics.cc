#include "src/kernels/metrics.h"

#include <pybind11/numpy.h>

#include <vector>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"

namespace py = pybind11;

namespace lowbit {
namespace {

using Logits = py::array_t<float, py::array::c_style>;
using Targets = py::array_t<int64_t, py::array::c_style>;

void CheckLogits(const char* name, const Logits& logits) {
  if (logits.ndim() != 2) throw InputError(Str(name, ":")).Expected("two dimensions").Found(logits.ndim());
}

py::array_t<double> LogProbabilitiesArray(const Logits& logits, const Targets& targets, py::ssize_t threads) {
  CheckLogits("logits", logits);
  if (targets.ndim() != 1 || targets.shape(0) != logits.shape(0)) {
    throw InputError("targets:")
        .Expected("one for each of ", logits.shape(0), " rows of logits")
        .Found(targets.size(), " in ", targets.ndim(), " dimensions");
  }
  const size_t num_threads = Threads(threads);
  const size_t num_tokens = static_cast<size_t>(logits.shape(0));
  const size_t vocab = static_cast<size_t>(logits.shape(1));
  const float* rows = logits.data();
  const std::vector<int64_t> copied(targets.data(), targets.data() + num_tokens);
  py::array_t<double> out(static_cast<py::ssize_t>(num_tokens));
  double* values = out.mutable_data();
  {
    const GilRelease release;
    LogProbabilities(rows, copied.data(), num_tokens, vocab, num_threads, values);
  }
  return out;
}

py::tuple KlDivergenceArrays(const Logits& reference, const Logits& logits, py::ssize_t threads) {
  CheckLogits("reference", reference);
  CheckLogits("logits", logits);
  if (reference.shape(0) != logits.shape(0) || reference.shape(1) != logits.shape(1)) {
    throw InputError("logits:")
        .Expected("the reference's shape (", reference.shape(0), ", ", reference.shape(1), ")")
        .Found("(", logits.shape(0), ", ", logits.shape(1), ")");
  }
  const size_t num_threads = Threads(threads);
  const size_t num_tokens = static_cast<size_t>(logits.shape(0)), vocab = static_cast<size_t>(logits.shape(1));
  const float *p = reference.data(), *q = logits.data();
  py::array_t<double> divergence(static_cast<py::ssize_t>(num_tokens));
  py::array_t<bool> same_top(static_cast<py::ssize_t>(num_tokens));
  double* values = divergence.mutable_data();
  uint8_t* same = reinterpret_cast<uint8_t*>(same_top.mutable_data());
  {
    const GilRelease release;
    KlDivergence(p, q, num_tokens, vocab, num_threads, values, same);
  }
  return py::make_tuple(divergence, same_top);
}

}  // namespace

void BindMetrics(py::module_& m) {
  m.def("log_probabilities", &LogProbabilitiesArray, py::arg("logits"), py::arg("targets"), py::arg("threads"));
  m.def("kl_divergence", &KlDivergenceArrays, py::arg("reference"), py::arg("logits"), py::arg("threads"));
}

}  // namespace lowbit
