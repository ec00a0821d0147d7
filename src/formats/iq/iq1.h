// Shared by IQ1_S and IQ1_M: the grid, and the scalar encoders, which specify the vector code in iq1-inl.h, iq1_s.cc
// and iq1_m.cc.
//
// Eight weights are a point on a grid with levels 0, 1, 2. The levels have the values -1 + shift, shift and 1 + shift,
// with a shift of 1/8 or -1/8. 32 or 16 weights share a scale of 3 bits; 256 weights share a factor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "src/formats/iq/grid.h"

namespace lowbit {

constexpr float kIq1Shift = 0.125f;
constexpr size_t kIq1GridSize = 2048;
// Groups without a larger magnitude count as zero.
constexpr float kIq1SNegligible = 1e-12f, kIq1MNegligible = 1e-7f;
// The reference multiplies d by this factor at the end, to compensate for the rounding of the scales.
constexpr float kIq1SFactor = 1.125f, kIq1MFactor = 1.1125f;

// Created at the first call, thread-safe. For encoders.
const Grid& Iq1Grid();

// For decoders: the eight levels of each point times eight, as bytes, the first level in the lowest byte.
extern const std::array<uint64_t, kIq1GridSize> kIq1Rows;
extern const GridBytes<kIq1GridSize> kIq1Bytes;

// A super-block before it is packed.
struct Iq1Block {
  uint16_t points[32];  // grid indices of eight weights each
  // For each group. IQ1_S: 1 if the shift is -1/8. IQ1_M: bit 1 for the first eight weights, bit 0 for the others.
  uint8_t shifts[16];
  uint8_t scales[16];  // codes
  float d;
};

// The value of a level.
constexpr float Iq1Value(uint32_t level, bool down) {
  return static_cast<float>(static_cast<int>(level) - 1) + (down ? -kIq1Shift : kIq1Shift);
}

// Encodes 256 weights, which may have any values.
void Iq1SReference(const float* x, const float* importance, Iq1Block* block);
// importance may be null.
void Iq1MReference(const float* x, const float* importance, Iq1Block* block);

}  // namespace lowbit
