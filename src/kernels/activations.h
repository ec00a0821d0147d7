// Rounds float activations to the 8-bit form of src/formats/activations.h.
#pragma once

#include <cstddef>

#include "hwy/aligned_allocator.h"
#include "src/formats/activations.h"

namespace lowbit {

// Rounds num_tokens rows of K floats to integers with one scale per row, as in BitNet (Ma et al. 2024) and
// transformers: codes = clamp(round to even(x * s), -128, 127), s = 127 / max(max|x|, 1e-5), x = scales * codes, scales
// = 1 / s. The codes are stored as floats.
void RoundTokens(const float* x, size_t num_tokens, size_t K, size_t num_threads, float* codes, float* scales);

// Storage for Activations, reused by later calls. It grows to the largest one.
class ActivationBuffer {
 public:
  // x: num_tokens rows of K floats; K is a multiple of 32. The result points into this buffer. With `token_scales`, x
  // has the codes of RoundTokens and `token_scales` their scales; both are used unchanged.
  Activations Quantize(const float* x, size_t num_tokens, size_t K, size_t num_threads,
                       const float* token_scales = nullptr);

 private:
  hwy::AlignedVector<int8_t> q_;
  hwy::AlignedVector<float> scale_, sum16_, sum32_;
  hwy::AlignedVector<int32_t> q16_, q32_;
};

}  // namespace lowbit
