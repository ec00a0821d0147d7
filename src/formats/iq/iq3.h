// Shared by IQ3_XXS and IQ3_S: grids, and the scalar encoder, which specifies the vector code in iq3-inl.h.
//
// Four weights are a point on a grid with levels 0 to 7 (the magnitudes; the encoder uses 2 * l + 1 for level l) and
// four signs. 32 weights share a scale of 4 bits; 256 weights share a factor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "src/formats/iq/grid.h"

namespace lowbit {

constexpr size_t kIq3Dims = 4, kIq3Levels = 8;
constexpr size_t kIq3Group = 32, kIq3Groups = 256 / kIq3Group;
constexpr size_t kIq3Quads = kIq3Group / kIq3Dims;  // points per group

// Created at the first call, thread-safe.
const Grid& Iq3XxsGrid();  // 256 points
const Grid& Iq3SGrid();    // 512

// The decoded values of the levels.
constexpr uint8_t kIq3XxsLevels[kIq3Levels] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr uint8_t kIq3SLevels[kIq3Levels] = {1, 3, 5, 7, 9, 11, 13, 15};

// The decoded values of the points by index: four bytes per point, the first level in the lowest byte.
extern const std::array<uint32_t, 256> kIq3XxsValues;
extern const std::array<uint32_t, 512> kIq3SValues;

extern const GridBytes<256> kIq3XxsBytes;
extern const GridBytes<512> kIq3SBytes;

// The differences of the two searches.
struct Iq3Search {
  int steps;         // multipliers to try: (15 + i / 5) / largest, i in [-steps, steps]
  float negligible;  // groups without a larger magnitude are zero, and groups of zeros
  bool even_signs;   // the number of minus signs is even (the eighth is not stored)
  bool refit_all;    // the last rounding includes points on the grid
  float factor;      // factor of the scale, to compensate for rounding
};

// A super-block before it is packed.
struct Iq3Block {
  uint16_t points[64];         // grid indices
  uint8_t signs[32];           // bit i: weight i is negative; no bit 7 if signs are even
  uint8_t scales[kIq3Groups];  // codes
  bool zero[kIq3Groups];       // the group has no points
  float d;
};

// Encodes 256 weights, which may have any values. importance may be null.
void Iq3Reference(const Iq3Search& search, const Grid& grid, const float* x, const float* importance, Iq3Block* block);

// The last part: codes for the scales of all groups, and d.
void Iq3StoreScales(const Iq3Search& search, const float* scales, Iq3Block* block);

}  // namespace lowbit
