#include "src/engine/sample.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"

namespace lowbit {
namespace {

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

// Keeps candidates by top-k, top-p and min-p, and stores their weights, the most likely first.
void Sampler::KeepLikeliest() {
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
  };
  const float max = std::min_element(candidates_.begin(), candidates_.end(), likelier)->logit;
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k - 1, candidates_.end(), likelier);
    candidates_.resize(options_.top_k);
  }
  // Weights below this share of the largest do not change a sum in double. Dropping them makes sorting faster.
  const auto weight = [&](const Candidate& c) {
    return std::exp((static_cast<double>(c.logit) - max) / options_.temperature);
  };
  const auto negligible = [&](const Candidate& c) { return weight(c) < 1e-20; };
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), negligible), candidates_.end());
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  weights_.clear();
  double total = 0;
  for (const Candidate& c : candidates_) total += weights_.emplace_back(weight(c));
  size_t keep = 0;
  for (double sum = 0; keep < weights_.size() && (keep == 0 || sum < options_.top_p * total); ++keep) {
    sum += weights_[keep];
  }
  while (keep > 1 && weights_[keep - 1] < options_.min_p * weights_[0]) --keep;
  weights_.resize(keep);
}

int32_t Sampler::Sample(const float* logits, size_t num, const std::vector<int32_t>& seen) {
  candidates_.clear();
  for (size_t i = 0; i < num; ++i) candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  if (options_.repetition_penalty != 1.0f) {
    for (int32_t token : seen) {
      if (token < 0 || static_cast<size_t>(token) >= num) continue;
      const float logit = logits[token];
      candidates_[token].logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
  }
  const auto unusable = [](const Candidate& c) { return !std::isfinite(c.logit); };
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), unusable), candidates_.end());
  if (candidates_.empty()) throw InputError(Str("none of the ", num, " logits is a finite number"));
  if (options_.temperature == 0) {
    const auto less = [](const Candidate& a, const Candidate& b) { return a.logit < b.logit; };
    return std::max_element(candidates_.begin(), candidates_.end(), less)->token;
  }
  KeepLikeliest();
  double total = 0;
  for (double w : weights_) total += w;
  // 53 random bits. std::uniform_real_distribution may differ between standard libraries.
  double rest = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  size_t i = 0;
  while (i + 1 < weights_.size() && rest >= weights_[i]) rest -= weights_[i++];
  return candidates_[i].token;
}

}  // namespace lowbit
