// Rounds float activations to the 8-bit form of src/formats/activations.h.
#pragma once

#include <cstddef>

#include "hwy/aligned_allocator.h"
#include "src/formats/activations.h"

namespace lowbit {

// Storage for Activations, reused from call to call; it grows to the largest.
class ActivationBuffer {
 public:
  // x: num_tokens rows of K floats, K a multiple of 32. The result points into this buffer.
  Activations Quantize(const float* x, size_t num_tokens, size_t K, size_t num_threads);

 private:
  hwy::AlignedVector<int8_t> q_;
  hwy::AlignedVector<float> scale_;
  hwy::AlignedVector<float> scale16_;
  hwy::AlignedVector<float> sum16_;
  hwy::AlignedVector<float> sum32_;
};

}  // namespace lowbit
