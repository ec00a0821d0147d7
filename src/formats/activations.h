// Activations in 8 bits: the other operand of every format's integer product.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// num_tokens rows of K values; K is a multiple of 32. Each group of 32 has one scale: x = scale * q with q in [-127,
// 127], scale = max|x| / 127, and q rounded to nearest even. So |x - scale * q| <= scale / 2. The error of a product
// with weights w is at most sum |w| * scale / 2, plus float rounding. The tests use this bound.
struct Activations {
  static constexpr size_t kGroup = 32;

  size_t num_tokens;
  size_t K;
  const int8_t* q;     // [num_tokens][K]
  const float* scale;  // [num_tokens][K / 32]
  const float* sum16;  // [num_tokens][K / 16]: scale * (sum of 16 q), for formats with a minimum for each 16 weights
  const float* sum32;  // [num_tokens][K / 32]: the same for 32
  const int32_t* q16;  // [num_tokens][K / 16]: sum of 16 q
  const int32_t* q32;  // [num_tokens][K / 32]
};

}  // namespace lowbit
