// What IQ2_XXS, IQ2_XS and IQ2_S share: grids, and the scalar encoder, which is the specification of the vector code in
// iq2-inl.h.
//
// Eight weights are a point of a grid with levels 0, 1, 2 (the magnitudes), which stand for 8, 25 and 43 when decoded
// but for 1, 3 and 5 in the encoder, and eight signs. 32 or 16 weights share a scale of 4 bits, 256 a factor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/iq/grid.h"

namespace lowbit {

// Made at the first call, thread-safe.
const Grid& Iq2XxsGrid();  // 256 points
const Grid& Iq2XsGrid();   // 512
const Grid& Iq2SGrid();    // 1024

// What differs in the three searches.
struct Iq2Search {
  size_t group;      // weights that share a scale: 16 or 32
  int steps;         // multipliers to try: (5 + i / 10) / largest, i in [-steps, steps]
  float negligible;  // groups with nothing larger are zero
  bool even_signs;   // the number of minus signs is even (the eighth is not stored)
  bool fit_first;    // `largest` is three times the scale of FitPositive, not the largest magnitude
  float variance_factor;
};

// A super-block before it is packed.
struct Iq2Block {
  uint16_t points[32];  // grid indices
  uint8_t signs[32];    // bit i: weight i is negative; without bit 7 where signs are even
  uint8_t scales[16];   // codes
  float d;
};

// Encodes 256 weights. importance may be null where it is optional. Weights may be anything.
void Iq2Reference(const Iq2Search& search, const Grid& grid, const float* x, const float* importance, Iq2Block* block);

}  // namespace lowbit
