// What IQ3_XXS and IQ3_S share: grids, and the scalar encoder, which is the specification of the vector code in
// iq3-inl.h.
//
// Four weights are a point of a grid with levels 0 to 7 (the magnitudes; level l counts 2 * l + 1 in the encoder), and
// four signs. 32 weights share a scale of 4 bits, 256 a factor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "src/formats/iq/grid.h"

namespace lowbit {

constexpr size_t kIq3Dims = 4, kIq3Levels = 8;
constexpr size_t kIq3Group = 32, kIq3Groups = 256 / kIq3Group;
constexpr size_t kIq3Quads = kIq3Group / kIq3Dims;  // points a group

// Made at the first call, thread-safe.
const Grid& Iq3XxsGrid();  // 256 points
const Grid& Iq3SGrid();    // 512

// What the points decode to, by index: four bytes a point, the first level in the lowest.
extern const std::array<uint32_t, 256> kIq3XxsValues;
extern const std::array<uint32_t, 512> kIq3SValues;

// What differs in the two searches.
struct Iq3Search {
  int steps;         // multipliers to try: (15 + i / 5) / largest, i in [-steps, steps]
  float negligible;  // groups with nothing larger are zero, and those with nothing but zeros
  bool even_signs;   // the number of minus signs is even (the eighth is not stored)
  bool refit_all;    // the last rounding takes points that were on the grid as well
  float factor;      // of the scale, to make up for what rounding loses
};

// A super-block before it is packed.
struct Iq3Block {
  uint16_t points[64];         // grid indices
  uint8_t signs[32];           // bit i: weight i is negative; without bit 7 where signs are even
  uint8_t scales[kIq3Groups];  // codes
  bool zero[kIq3Groups];       // the group has no points
  float d;
};

// Encodes 256 weights. importance may be null. Weights may be anything.
void Iq3Reference(const Iq3Search& search, const Grid& grid, const float* x, const float* importance, Iq3Block* block);

// The last part: codes for the scales of all groups, and d.
void Iq3StoreScales(const Iq3Search& search, const float* scales, Iq3Block* block);

}  // namespace lowbit
