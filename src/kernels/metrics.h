// Measures of predictions: the numbers behind perplexity and divergence.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// `num_tokens` rows of `vocab` logits, contiguous. All results are computed in double from the float logits, each row
// alone, so they do not depend on num_threads. A row with NaN gives NaN.

// out[t] = log softmax(logits[t])[targets[t]]. Throws InputError for a target outside the vocabulary.
void LogProbabilities(const float* logits, const int64_t* targets, size_t num_tokens, size_t vocab, size_t num_threads,
                      double* out);

// divergence[t] = KL(softmax(reference[t]) || softmax(logits[t])) in nats, never below 0. same_top[t] = 1 if both rows
// have their maximum (the first of equals) at the same index, else 0.
void KlDivergence(const float* reference, const float* logits, size_t num_tokens, size_t vocab, size_t num_threads,
                  double* divergence, uint8_t* same_top);

}  // namespace lowbit
