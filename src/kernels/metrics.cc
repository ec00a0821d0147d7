#include "src/kernels/metrics.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/base/threads.h"

namespace lowbit {
namespace {

using Row = Eigen::Map<const Eigen::ArrayXf>;

Row RowAt(const float* logits, size_t t, size_t vocab) {
  return Row(logits + t * vocab, static_cast<Eigen::Index>(vocab));
}

// The logarithm of the sum of exponentials. `top`: the index of the largest logit.
double LogSumExp(const Row& row, Eigen::Index* top) {
  const double largest = row.maxCoeff<Eigen::PropagateNaN>(top);
  // All logits are -infinity, or some are +infinity: subtracting it would give NaN although the result is known.
  if (std::isinf(largest)) return largest;
  return largest + std::log((row.cast<double>() - largest).exp().sum());
}

}  // namespace

void LogProbabilities(const float* logits, const int64_t* targets, size_t num_tokens, size_t vocab, size_t num_threads,
                      double* out) {
  for (size_t t = 0; t < num_tokens; ++t) {
    if (targets[t] < 0 || static_cast<uint64_t>(targets[t]) >= vocab) {
      throw InputError(Str("target of token ", t, " is ", targets[t]))
          .Expected("0 to ", static_cast<int64_t>(vocab) - 1)
          .Found(targets[t]);
    }
  }
  ParallelFor(num_tokens, num_threads, [&](size_t t) {
    const Row row = RowAt(logits, t, vocab);
    Eigen::Index top;
    out[t] = static_cast<double>(row[static_cast<Eigen::Index>(targets[t])]) - LogSumExp(row, &top);
  });
}

void KlDivergence(const float* reference, const float* logits, size_t num_tokens, size_t vocab, size_t num_threads,
                  double* divergence, uint8_t* same_top) {
  if (vocab == 0 && num_tokens != 0)
    throw InputError("logits:").Expected("a vocabulary of at least one token").Found("none");
  ParallelFor(num_tokens, num_threads, [&](size_t t) {
    const Row p_row = RowAt(reference, t, vocab);
    const Row q_row = RowAt(logits, t, vocab);
    Eigen::Index p_top, q_top;
    const double p_norm = LogSumExp(p_row, &p_top);
    const double q_norm = LogSumExp(q_row, &q_top);
    const auto log_p = p_row.cast<double>() - p_norm;
    const auto log_q = q_row.cast<double>() - q_norm;
    // A token with probability 0 in the reference (-infinity) adds nothing.
    const double sum = (p_row > -Eigen::NumTraits<float>::infinity()).select(log_p.exp() * (log_p - log_q), 0.0).sum();
    // Rounding can make the sum slightly negative (1e-17); a divergence is never negative. NaN is kept.
    divergence[t] = sum < 0 ? 0.0 : sum;
    same_top[t] = p_top == q_top;
  });
}

}  // namespace lowbit
