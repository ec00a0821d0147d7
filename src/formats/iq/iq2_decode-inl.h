// Decoding of IQ2_XXS, IQ2_XS and IQ2_S, and unpacking for integer products. Traits are those of iq2-inl.h.
//
// A grid point is looked up as a code of two bits per level (grid.h). Four codes and 32 signs are joined in general
// registers. Shifts per lane, and a table of the scale's three multiples, convert them to floats. Cost for 32 weights:
// about 20 scalar instructions, and eight for each vector of floats.
#if defined(LOWBIT_FORMATS_IQ2_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ2_DECODE_INL_H_
#undef LOWBIT_FORMATS_IQ2_DECODE_INL_H_
#else
#define LOWBIT_FORMATS_IQ2_DECODE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hwy/highway.h"
#include "src/formats/iq/grid-inl.h"
#include "src/formats/iq/grid_rows-inl.h"
#include "src/formats/iq/iq2.h"
#include "src/formats/iq/signs-inl.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq2 {

// Decoded values of the levels.
constexpr uint8_t kValue0 = 8, kValue1 = 25, kValue2 = 43;

// Sixteen scales of four bits in eight bytes.
HWY_INLINE void PackScales(const uint8_t* scales, uint8_t* bytes) {
  for (size_t j = 0; j < 8; ++j) bytes[j] = static_cast<uint8_t>(scales[2 * j] | scales[2 * j + 1] << 4);
}

HWY_INLINE void UnpackScales(const uint8_t* bytes, uint8_t* scales) {
  const hn::FixedTag<uint8_t, 8> d;
  const auto both = hn::LoadU(d, bytes);
  hn::StoreInterleaved2(hn::And(both, hn::Set(d, 15)), hn::ShiftRight<4>(both), d, scales);
}

// The codes of four points, and the signs of their 32 weights.
HWY_INLINE uint64_t FourCodes(const Grid& grid, const uint16_t* points) {
  return grid.Point(points[0]) | static_cast<uint64_t>(grid.Point(points[1])) << 16 |
         static_cast<uint64_t>(grid.Point(points[2])) << 32 | static_cast<uint64_t>(grid.Point(points[3])) << 48;
}

HWY_INLINE uint32_t FourSigns(const uint8_t* signs) {
  uint32_t bits;
  memcpy(&bits, signs, 4);
  return bits;
}

// d * (code + 0.5) / 4 of all groups.
HWY_INLINE void ScaleFactors(const Iq2Block& block, size_t num, float* HWY_RESTRICT out) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<uint8_t, decltype(df)> du8;
  const auto d = hn::Set(df, block.d);
  for (size_t j = 0; j < num; j += hn::Lanes(df)) {
    const auto code = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(du8, block.scales + j)));
    const auto scale = hn::Mul(hn::Mul(d, hn::Add(hn::Set(df, 0.5f), code)), hn::Set(df, 0.25f));
    hn::StoreU(scale, df, out + j);
  }
}

// Format::decode.
template <class Traits>
void DecodeSuperBlocks(const uint8_t* blocks, size_t num_blocks, float* HWY_RESTRICT out) {
  constexpr size_t kGroup = Traits::kSearch.group;
  const hn::CappedTag<float, 16> df;
  const hn::RebindToUnsigned<decltype(df)> du;
  const size_t N = hn::Lanes(df);
  const Grid& grid = Traits::GetGrid();
  alignas(16) constexpr float kValues[4] = {kValue0, kValue1, kValue2, 0.0f};
  const auto values = hn::LoadDup128(df, kValues);
  const auto lane = hn::Iota(du, 0), two_bits = hn::Add(lane, lane), to_top = hn::Sub(hn::Set(du, 31), lane);
  const auto top = hn::Set(du, 0x80000000u);
  Iq2Block block;
  float scales[16];
  for (size_t b = 0; b < num_blocks; ++b, blocks += Traits::kBlockBytes) {
    Traits::Unpack(blocks, block);
    ScaleFactors(block, kSuper / kGroup, scales);
    for (size_t j = 0; j < kSuper; j += 32, out += 32) {
      const uint64_t codes = FourCodes(grid, block.points + j / 8);
      const uint32_t signs = FourSigns(block.signs + j / 8);
      HWY_UNROLL(8)
      for (size_t i = 0; i < 32; i += N) {
        const auto multiples = hn::Mul(hn::Set(df, scales[(j + i) / kGroup]), values);
        const auto level = hn::Shr(hn::Set(du, static_cast<uint32_t>(codes >> (2 * i))), two_bits);
        const auto sign = hn::And(hn::Shl(hn::Set(du, signs >> i), to_top), top);
        hn::StoreU(hn::Xor(LookUpFour(df, multiples, level), hn::BitCast(df, sign)), df, out + i);
      }
    }
  }
}

#if LOWBIT_GRID_ROWS
// Two groups of 32 weights of each row: four points each, with their signs.
template <size_t kNum, class Sink>
HWY_INLINE void UnpackGroups(const GridBytes<kNum>& grid, const hn::Vec<PanelBytes> (&points)[2],
                             const grid_rows::HighBits<kNum>& high, const WordsV (&signs)[2], size_t group,
                             Sink& sink) {
  constexpr uint64_t kFour = 0x80808080 + (kValue0 | kValue1 << 8 | kValue2 << 16);
  grid_rows::UnpackEights(grid, points, high, [&](auto levels, size_t n) HWY_ATTR {
    const auto values = grid_rows::LookUp8(kFour | kFour << 32, levels);
    sink.Quad(grid_rows::ApplySigns(values, signs[n / 8], n % 8), 8 * group + n);
  });
}

// The scale of code c is d * (c + 0.5) / 4.
HWY_INLINE FloatsV ScaleOfRows(PackedRows& rows) {
  return hn::Mul(LoadHalfOfRows(rows, 0), hn::Set(PanelFloats(), 0.125f));
}
#endif  // LOWBIT_GRID_ROWS

template <class Traits>
struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Traits::kBlockBytes, kGroup = Traits::kSearch.group;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    Traits::UnpackRows(rows, sink);
  }
#endif  // LOWBIT_GRID_ROWS

  // A byte has one level in bits 2k and 2k + 1. It is folded to a nibble, which indexes the table of values.
  static HWY_INLINE void Unpack(const uint8_t* bytes, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> d;
    const hn::RebindToSigned<decltype(d)> di8;
    const hn::Repartition<uint16_t, decltype(d)> du16;
    const hn::Repartition<uint32_t, decltype(d)> du32;
    const hn::Repartition<uint64_t, decltype(d)> du64;
    alignas(32) static constexpr uint8_t kFourth[32] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3,
                                                        4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7};
    alignas(32) static constexpr uint8_t kEighth[32] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                        2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    alignas(16) static constexpr uint8_t kByNibble[16] = {kValue0, kValue1, kValue2, 0, kValue1, 0, 0, 0, kValue2};
    const auto level_mask = hn::BitCast(d, hn::Set(du32, 0xC0300C03u)), nibble = hn::Set(d, 15);
    const auto sign_mask = hn::BitCast(d, hn::Set(du64, 0x8040201008040201u));
    const auto values = hn::LoadDup128(d, kByNibble);
    const Grid& grid = Traits::GetGrid();
    Iq2Block block;
    Traits::Unpack(bytes, block);
    ScaleFactors(block, kSuper / kGroup, u.scale);
    for (size_t j = 0; j < kSuper; j += 32) {
      const auto codes = hn::BitCast(d, hn::Set(du64, FourCodes(grid, block.points + j / 8)));
      const auto signs = hn::BitCast(d, hn::Set(du32, FourSigns(block.signs + j / 8)));
      for (size_t i = 0; i < 32; i += hn::Lanes(d)) {
        const auto level = hn::And(hn::TableLookupBytes(codes, hn::Load(d, kFourth + i)), level_mask);
        const auto high = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(du16, level)));
        const auto value = hn::TableLookupBytes(values, hn::And(hn::Or(level, high), nibble));
        const auto sign = hn::And(hn::TableLookupBytes(signs, hn::Load(d, kEighth + i)), sign_mask);
        const auto minus = hn::BitCast(d, hn::Neg(hn::BitCast(di8, value)));
        hn::Store(hn::IfThenElse(hn::Eq(sign, sign_mask), minus, value), d, u.code + j + i);
      }
    }
  }
};

}  // namespace iq2
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ2_DECODE_INL_H_
