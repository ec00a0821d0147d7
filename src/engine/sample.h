// Selects the next token from logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <unordered_set>
#include <vector>

namespace lowbit {

// Applied in this order, as in transformers: repetition penalty, temperature, top-k, top-p, min-p, then a draw.
struct SamplingOptions {
  float temperature = 0.0f;         // 0: always the most likely token, the lowest id of equals
  int64_t top_k = 0;                // keep the k most likely; 0: all
  float top_p = 1.0f;               // keep the fewest most likely tokens whose probabilities sum to p; 1: all
  float min_p = 0.0f;               // keep those at least p times as likely as the most likely one
  float repetition_penalty = 1.0f;  // logits of seen tokens are divided by it if positive, else multiplied
};

// The result is defined by sums in double over all tokens, the most likely first. A seed gives the same tokens on every
// machine. Few tokens are sorted: sums in another order, whose error has a bound, show which ones matter. Only if a
// comparison is closer than that bound, all tokens are sorted.
class Sampler {
 public:
  // Throws InputError for an option out of range.
  Sampler(const SamplingOptions& options, uint64_t seed);

  // Adds tokens of the text, which the repetition penalty applies to from now on.
  void Accept(const int32_t* tokens, size_t num);

  // The next token. None if no logit is a finite number.
  std::optional<int32_t> Sample(const float* logits, size_t num);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };

  const float* Penalized(const float* logits, size_t num);
  double Weight(float logit) const;
  float LogitOf(double weight) const;
  void Rank(const float* logits, size_t found);
  std::optional<size_t> NumUntil(double* sum, double enough, double margin);
  size_t DrawFrom(size_t num, double uniform);
  std::optional<size_t> Locate(const float* logits, size_t num, double* enough, double margin);
  std::optional<size_t> DrawFromLikeliest(const float* logits, size_t num, double uniform);
  size_t DrawFromTop(const float* logits, size_t num, size_t k, double uniform);

  SamplingOptions options_;
  std::mt19937_64 random_;
  std::unordered_set<int32_t> is_seen_;
  std::vector<int32_t> seen_;  // each once

  // Of one call, kept for their memory.
  float max_ = 0;
  std::vector<float> penalized_;
  std::vector<float> maxima_;  // of blocks
  std::vector<int32_t> ids_;
  std::vector<Candidate> candidates_, unsorted_;  // candidates: some of the most likely tokens in order
  std::vector<double> weights_;                   // of the first candidates
  std::vector<double> mass_;                      // of buckets
};

}  // namespace lowbit
