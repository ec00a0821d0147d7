// Packed weights as the integer products read them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lowbit {

// How a format's weights look to a product: weight = scale * (code - bias) - minimum. Codes are 0 to top. With kSigned,
// the codes are levels from -128 to 127: as such, or plus 128 on targets whose products have an unsigned operand.
struct PanelKind {
  static constexpr int kSigned = 255;

  int top = kSigned;
  int bias = 0;
  bool has_minima = false;
  uint32_t group = 32;  // weights that share a scale and a minimum: 16 or 32
};

// R rows side by side, where R is the number of 32-bit lanes of a vector: lane r of each vector belongs to
// row r. So a sum over K needs no step across lanes, and has the same order for any number of tokens. A panel has num_k
// weights of each row, a multiple of 32, at most kMaxK.
//
//   codes   [num_k / 4][R][4]
//   scales  [num_k / group][R]
//   minima  [num_k / group][R], if the format has minima
struct Panel {
  static constexpr size_t kMaxK = 256, kMaxRows = 16;

  alignas(64) uint8_t codes[kMaxK * kMaxRows];
  alignas(64) float scales[kMaxK / 16 * kMaxRows];
  alignas(64) float minima[kMaxK / 16 * kMaxRows];
};

// The same piece of R rows in a file's layout.
struct PackedRows {
  const uint8_t* data;   // of the first row
  size_t stride;         // bytes from row to row
  const uint8_t* ahead;  // bytes that are needed soon: as many are prefetched as are read. Any address.

  void Skip(size_t bytes) { data += bytes; }
};

}  // namespace lowbit
