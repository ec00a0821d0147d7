// Shared by IQ2_XXS, IQ2_XS and IQ2_S: grids, and the scalar encoder, which specifies the vector code in iq2-inl.h.
//
// Eight weights are a point on a grid with levels 0, 1, 2 (the magnitudes) and eight signs. The levels decode to 8, 25
// and 43; the encoder uses 1, 3 and 5. 32 or 16 weights share a scale of 4 bits; 256 weights share a factor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/iq/grid.h"

namespace lowbit {

// Created at the first call, thread-safe.
const Grid& Iq2XxsGrid();  // 256 points
const Grid& Iq2XsGrid();   // 512
const Grid& Iq2SGrid();    // 1024

extern const GridBytes<256> kIq2XxsBytes;
extern const GridBytes<512> kIq2XsBytes;
extern const GridBytes<1024> kIq2SBytes;

// The differences of the three searches.
struct Iq2Search {
  size_t group;      // weights that share a scale: 16 or 32
  int steps;         // multipliers to try: (5 + i / 10) / largest, i in [-steps, steps]
  float negligible;  // groups without a larger magnitude are zero
  bool even_signs;   // the number of minus signs is even (the eighth is not stored)
  bool fit_first;    // `largest` is three times the scale of FitPositive, not the largest magnitude
  float variance_factor;
};

// A super-block before it is packed.
struct Iq2Block {
  uint16_t points[32];  // grid indices
  uint8_t signs[32];    // bit i: weight i is negative; no bit 7 if signs are even
  uint8_t scales[16];   // codes
  float d;
};

// Encodes 256 weights, which may have any values. importance may be null where it is optional.
void Iq2Reference(const Iq2Search& search, const Grid& grid, const float* x, const float* importance, Iq2Block* block);

}  // namespace lowbit
