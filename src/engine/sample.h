// Selects the next token from logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
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

class Sampler {
 public:
  // Throws InputError for an option out of range. A seed gives the same tokens on every machine.
  Sampler(const SamplingOptions& options, uint64_t seed);

  // `seen`: tokens for the penalty; repetitions have no effect. Throws InputError if all logits are NaN.
  int32_t Sample(const float* logits, size_t num, const std::vector<int32_t>& seen);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };

  void KeepLikeliest();

  SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
};

}  // namespace lowbit
