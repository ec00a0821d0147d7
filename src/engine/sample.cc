#include "src/engine/sample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "hwy/base.h"
#include "src/base/error.h"
#include "src/kernels/logits.h"

namespace lowbit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();
// Smaller weights are dropped. They would not change a sum, which is at least 1.
constexpr double kNegligible = 1e-20;
// So many tokens are sorted faster than divided into buckets.
constexpr size_t kFew = size_t{1} << 14;

void Check(bool ok, const char* name, double value, const char* expected) {
  if (!ok) throw InputError(Str(name, ":")).Expected(expected).Found(value);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options, uint64_t seed) : options_(options), random_(seed) {
  Check(options.temperature >= 0 && std::isfinite(options.temperature), "temperature", options.temperature, ">= 0");
  Check(options.top_k >= 0, "top_k", options.top_k, ">= 0");
  Check(options.top_p > 0 && options.top_p <= 1, "top_p", options.top_p, "above 0 and at most 1");
  Check(options.min_p >= 0 && options.min_p <= 1, "min_p", options.min_p, "0 to 1");
  Check(options.repetition_penalty > 0 && std::isfinite(options.repetition_penalty), "repetition_penalty",
        options.repetition_penalty, "above 0");
}

void Sampler::Accept(const int32_t* tokens, size_t num) {
  if (options_.repetition_penalty == 1.0f) return;
  for (size_t i = 0; i < num; ++i) {
    if (is_seen_.insert(tokens[i]).second) seen_.push_back(tokens[i]);
  }
}

const float* Sampler::Penalized(const float* logits, size_t num) {
  if (seen_.empty()) return logits;
  penalized_.assign(logits, logits + num);
  for (int32_t token : seen_) {
    if (token < 0 || static_cast<size_t>(token) >= num) continue;
    float& logit = penalized_[token];
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
  }
  return penalized_.data();
}

// A token's probability over that of the most likely one.
double Sampler::Weight(float logit) const {
  return std::exp((static_cast<double>(logit) - max_) / options_.temperature);
}

// A logit that has nearly this weight; lower logits have less than this weight.
float Sampler::LogitOf(double weight) const {
  const double slack = 1e-9 * (std::abs(max_) + 50.0 * options_.temperature);
  const double logit = max_ + options_.temperature * std::log(weight) - slack;
  return std::nextafter(static_cast<float>(std::max<double>(logit, kLowest)), kLowest);
}

// Makes candidates of the first `found` of ids_, the most likely first, the lowest id of equals first: a radix sort by
// bits of the logits.
void Sampler::Rank(const float* logits, size_t found) {
  // Orders as unsigned numbers as the logits in descending order. The sum makes -0 a 0.
  const auto key = [](const Candidate& c) {
    const uint32_t bits = hwy::BitCastScalar<uint32_t>(c.logit + 0.0f);
    return (bits & 0x80000000u) ? bits : ~bits & 0x7fffffffu;
  };
  constexpr uint32_t kDigits = 3, kBits = 11, kValues = 1u << kBits;
  std::array<std::array<uint32_t, kValues>, kDigits> begin = {};
  candidates_.resize(found);
  unsorted_.resize(found);
  for (size_t i = 0; i < found; ++i) {
    candidates_[i] = {logits[ids_[i]], ids_[i]};
    const uint32_t bits = key(candidates_[i]);
    for (uint32_t d = 0; d < kDigits; ++d) ++begin[d][bits >> (d * kBits) & (kValues - 1)];
  }
  for (uint32_t d = 0; d < kDigits; ++d) {
    uint32_t sum = 0;
    for (uint32_t& count : begin[d]) count = std::exchange(sum, sum + count);
    std::swap(candidates_, unsorted_);
    for (const Candidate& c : unsorted_) candidates_[begin[d][key(c) >> (d * kBits) & (kValues - 1)]++] = c;
  }
  weights_.clear();
}

// Adds weights of the first candidates to the sum until it is `enough`, and returns their number; of all if it never is.
// None if a sum is closer to `enough` than `margin`.
std::optional<size_t> Sampler::NumUntil(double* sum, double enough, double margin) {
  size_t i = 0;
  do {
    if (i == weights_.size()) weights_.push_back(Weight(candidates_[i].logit));
    *sum += weights_[i++];
    if (std::abs(*sum - enough) < margin) return std::nullopt;
  } while (i < candidates_.size() && *sum < enough);
  return i;
}

// Draws from the first num candidates that min-p keeps.
size_t Sampler::DrawFrom(size_t num, double uniform) {
  while (num > 1 && weights_[num - 1] < options_.min_p * weights_[0]) --num;
  double total = 0;
  for (size_t i = 0; i < num; ++i) total += weights_[i];
  double rest = uniform * total;
  size_t i = 0;
  while (i + 1 < num && rest >= weights_[i]) rest -= weights_[i++];
  return i;
}

// The candidate with which the sum of the weights of all tokens in order reaches `enough`, which becomes that sum. Sorts
// only its bucket. None if rounding could matter.
std::optional<size_t> Sampler::Locate(const float* logits, size_t num, double* enough, double margin) {
  double sum = 0;
  size_t bucket = 0;
  while (bucket + 1 < kWeightBuckets && sum + mass_[bucket] < *enough - margin) sum += mass_[bucket++];
  if (bucket + 1 == kWeightBuckets) return std::nullopt;
  Rank(logits, FindInBucket(logits, num, {max_, options_.temperature}, bucket, ids_.data()));
  const std::optional<size_t> reached = NumUntil(&sum, *enough, margin);
  if (!reached || sum < *enough) return std::nullopt;
  *enough = sum;
  return *reached - 1;
}

// Without top-k. None if rounding of the sum of all weights could matter.
std::optional<size_t> Sampler::DrawFromLikeliest(const float* logits, size_t num, double uniform) {
  const bool has_top_p = options_.top_p < 1, has_min_p = options_.min_p > 0;
  const double rounding = static_cast<double>(num) * 0x1p-50 + 1e-11;  // several times the error of any sum
  if (has_min_p && options_.min_p < rounding) return std::nullopt;     // kept weights could vanish in the sum
  double total = kInfinity, margin = 0, least = std::max<double>(options_.min_p, kNegligible);
  double share = uniform;  // of the total: where the search ends
  if (has_top_p || has_min_p) share = options_.top_p;
  if (has_top_p || !has_min_p) {
    total = SumWeights(logits, num, {max_, options_.temperature});
    margin = rounding * total;
    // All tokens together that have less than this weight are less than the rest.
    least = std::max(least, (1 - share - 4 * rounding) * total / static_cast<double>(num));
  }
  double enough = share * total;
  const size_t found = FindAtLeast(logits, num, LogitOf(least), ids_.data());
  if (has_min_p || found <= kFew) {
    Rank(logits, found);
    double sum = 0;
    const std::optional<size_t> reached = NumUntil(&sum, enough, margin);
    if (!reached) return std::nullopt;
    return has_top_p || has_min_p ? DrawFrom(*reached, uniform) : *reached - 1;
  }
  mass_.resize(kWeightBuckets);
  WeighBuckets(logits, num, {max_, options_.temperature}, mass_.data());
  if (has_top_p) {
    if (!Locate(logits, num, &enough, margin)) return std::nullopt;
    enough *= uniform;
  }
  return Locate(logits, num, &enough, margin);
}

size_t Sampler::DrawFromTop(const float* logits, size_t num, size_t k, double uniform) {
  float threshold = kLowest;
  if (k <= maxima_.size()) {  // k blocks have a logit of at least the threshold
    std::nth_element(maxima_.begin(), maxima_.begin() + (k - 1), maxima_.end(), std::greater<float>());
    threshold = maxima_[k - 1];
  }
  Rank(logits, FindAtLeast(logits, num, threshold, ids_.data()));
  candidates_.resize(std::min(k, candidates_.size()));
  double total = 0;
  for (const Candidate& c : candidates_) {
    const double weight = Weight(c.logit);
    if (weight < kNegligible) break;
    total += weights_.emplace_back(weight);
  }
  candidates_.resize(weights_.size());
  double sum = 0;
  return DrawFrom(*NumUntil(&sum, options_.top_p * total, 0), uniform);
}

std::optional<int32_t> Sampler::Sample(const float* logits, size_t num) {
  logits = Penalized(logits, num);
  maxima_.resize((num + kLogitBlock - 1) / kLogitBlock);
  BlockMaxima(logits, num, maxima_.data());
  const auto block = std::max_element(maxima_.begin(), maxima_.end());
  if (block == maxima_.end() || *block == -kInfinity) return std::nullopt;
  max_ = *block;
  if (options_.temperature == 0) {
    const float* first = logits + (block - maxima_.begin()) * kLogitBlock;
    return static_cast<int32_t>(std::find(first, logits + num, max_) - logits);
  }
  // 53 random bits. std::uniform_real_distribution may differ between standard libraries.
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;
  ids_.resize(num + kLogitBlock);
  const size_t k = options_.top_k == 0 ? num : std::min<uint64_t>(options_.top_k, num);
  std::optional<size_t> drawn;
  if (k == num) drawn = DrawFromLikeliest(logits, num, uniform);
  if (!drawn) drawn = DrawFromTop(logits, num, k, uniform);
  return candidates_[*drawn].token;
}

}  // namespace lowbit
