// Activations in 8 bits: the other operand of every format's integer product.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// Tokens that are stored and multiplied together.
struct TokenTile {
  size_t first, num;
};

// num_tokens rows of K values; K is a multiple of 32. Each group of 32 has one scale: x = scale * q with q in [-127,
// 127], scale = max|x| / 127, and q rounded to nearest even. So |x - scale * q| <= scale / 2. The error of a product
// with weights w is at most sum |w| * scale / 2, plus float rounding. The tests use this bound.
//
// Tokens are stored in tiles of n, which are multiplied together (src/kernels/token_tiles-inl.h), so that a tile reads one
// stream: the values of a tile whose first token is `first` start at `first` times the row's length, and those of its tokens
// lie side by side. A single token is a plain row.
struct Activations {
  static constexpr size_t kGroup = 32;

  size_t num_tokens;
  size_t K;
  const int8_t* q;     // of a tile: [K / 4][n][4]
  const float* scale;  // [K / 32][n]
  const float* sum16;  // [K / 16][n]: scale * (sum of 16 q), for formats with a minimum for each 16 weights
  const float* sum32;  // [K / 32][n]: the same for 32
  const int32_t* q16;  // [K / 16][n]: sum of 16 q
  const int32_t* q32;  // [K / 32][n]
};

}  // namespace lowbit
