// Chooses the next token from logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace lowbit {

// Applied in this order, as transformers does: repetition penalty, temperature, top-k, top-p, min-p, then a draw.
struct SamplingOptions {
  float temperature = 0.0f;         // 0: always the likeliest token, the lowest id of equals
  int64_t top_k = 0;                // keep the k likeliest; 0: all
  float top_p = 1.0f;               // keep the fewest likeliest whose probabilities reach p; 1: all
  float min_p = 0.0f;               // keep those at least p times as likely as the likeliest
  float repetition_penalty = 1.0f;  // logits of tokens seen are divided by it where positive, else multiplied
};

class Sampler {
 public:
  // Throws InputError for an option out of range. The same seed gives the same tokens on every machine.
  Sampler(const SamplingOptions& options, uint64_t seed);

  // `seen`: tokens that the penalty applies to, each once or more. Throws InputError if no logit is a number.
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
