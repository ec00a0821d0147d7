// Rounds float activations to the 8-bit form of src/formats/activations.h.
#pragma once

#include <cstddef>

#include "hwy/aligned_allocator.h"
#include "src/formats/activations.h"
#include "src/formats/format.h"

namespace lowbit {

// Rounds a row of K floats to integers with one scale, as in BitNet (Ma et al. 2024) and transformers: codes =
// clamp(round to even(x * s), -128, 127), s = 127 / max(max|x|, 1e-5), x = scale * codes, scale = 1 / s. The codes
// replace x, as floats. Returns the scale.
float RoundToken(float* x, size_t K);

// The tile of row t of num_tokens.
TokenTile TileOf(size_t num_tokens, size_t t);

// Storage for Activations, reused by later calls. It grows to the largest one.
class ActivationBuffer {
 public:
  // Makes room for num_tokens rows of K values; K is a multiple of 32.
  void Reserve(size_t num_tokens, size_t K);

  // Rounds row t of num_tokens. With `token_scale`, x has the codes of RoundToken, and both are used unchanged.
  void Round(const float* x, size_t t, size_t num_tokens, size_t K, const float* token_scale = nullptr);

  // What rounding left of x, whose row is t: rest = x - the row's values.
  void Subtract(const float* x, size_t t, size_t num_tokens, size_t K, float* rest) const;

  // The first num_tokens rows.
  Activations View(size_t num_tokens, size_t K) const;

 private:
  hwy::AlignedVector<int8_t> q_;
  hwy::AlignedVector<float> scale_, sum16_, sum32_;
  hwy::AlignedVector<int32_t> q16_, q32_;
};

}  // namespace lowbit
