// Grid points of rows side by side (panel-inl.h), on x86 with AVX-512 VBMI. A word has four grid indices of its row, as
// bytes. 64 points of 16 rows are looked up at once: a table of 128 bytes is two registers, and a larger one is several
// of these, among which the higher bits of the index choose. Then a shift for each byte, and a small table, make a word
// of four weights from a part of a code (grid.h). Other targets unpack row by row.
//
// Cost for 32 weights of 16 rows, of a grid of n points with eight coordinates: n / 32 instructions to look up points,
// and four (IQ1) or six for each of eight words.
#if defined(LOWBIT_FORMATS_GRID_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_GRID_ROWS_INL_H_
#undef LOWBIT_FORMATS_GRID_ROWS_INL_H_
#else
#define LOWBIT_FORMATS_GRID_ROWS_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/iq/grid.h"
#include "src/formats/iq/signs-inl.h"
#include "src/formats/panel-inl.h"

#undef LOWBIT_GRID_ROWS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define LOWBIT_GRID_ROWS 1
#else
#define LOWBIT_GRID_ROWS 0
#endif

#if LOWBIT_GRID_ROWS
HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace grid_rows {

using BytesV = hn::Vec<PanelBytes>;
using BytesM = hn::Mask<PanelBytes>;
using Tag64 = hn::Repartition<uint64_t, PanelWords>;

// Instructions ignore the upper bits of an index; Highway's debug checks do not.
HWY_INLINE hn::IndicesFromD<PanelBytes> Indices(BytesV index, uint8_t mask) {
  if constexpr (HWY_IS_DEBUG_BUILD) index = hn::And(index, hn::Set(PanelBytes(), mask));
  return hn::IndicesFromVec(PanelBytes(), index);
}

// Byte i of each word: eight bits of the word, from bit first + kBits * i on. Bits after the word's last may be any.
template <size_t kBits>
HWY_INLINE BytesV Fields(BytesV words, size_t first) {
  const uint64_t word = 0x03020100u * kBits + 0x01010101u * first;
  const auto shifts = hn::BitCast(PanelBytes(), hn::Set(Tag64(), word | (word + 0x20202020u) << 32));
  return hn::BitCast(PanelBytes(), hn::MultiRotateRight(hn::BitCast(Tag64(), words), shifts));
}

// Byte (index & 7) of eight.
HWY_INLINE BytesV LookUp8(uint64_t bytes, BytesV index) {
  return hn::TableLookupLanes(hn::BitCast(PanelBytes(), hn::Set(Tag64(), bytes)), Indices(index, 63));
}

// Byte (index & 15) of a table.
HWY_INLINE BytesV LookUp16(const uint8_t* table, BytesV index) {
  return hn::TableLookupLanes(hn::LoadDup128(PanelBytes(), table), Indices(index, 63));
}

// The higher bits of two vectors of indices: bit 8 of indices i is high[i][0], and so on.
template <size_t kNum>
using HighBits = BytesM[2][HWY_MAX(size_t{1}, hwy::FloorLog2(kNum) - 8)];

// Elements of a table. Two vectors at once, because loads of the table take as long as the lookups.
template <size_t kNum, class High>
HWY_INLINE void LookUp(const uint8_t* table, const BytesV (&index)[2], const High& high, BytesV (&out)[2]) {
  const PanelBytes d;
  if constexpr (kNum == 128) {
    const BytesV first = hn::Load(d, table), second = hn::Load(d, table + 64);
    for (size_t i = 0; i < 2; ++i) out[i] = hn::TwoTablesLookupLanes(d, first, second, Indices(index[i], 127));
  } else {
    BytesV upper[2];
    LookUp<kNum / 2>(table, index, high, out);
    LookUp<kNum / 2>(table + kNum / 2, index, high, upper);
    for (size_t i = 0; i < 2; ++i) {
      BytesM is_upper = hn::RebindMask(d, hn::IsNegative(hn::BitCast(PanelLevels(), index[i])));  // bit 7
      if constexpr (kNum > 256) is_upper = high[i][hwy::FloorLog2(kNum) - 9];
      out[i] = hn::IfThenElse(is_upper, upper[i], out[i]);
    }
  }
}

// SpreadSigns (signs-inl.h).
HWY_INLINE WordsV RowSigns(WordsV words) {
  const WordsV seven = hn::BitCast(PanelWords(), Fields<7>(hn::BitCast(PanelBytes(), words), 0));
  return CompleteSigns(PanelWords(), hn::And(seven, hn::Set(PanelWords(), 0x7f7f7f7f)));
}

// Bytes that are weights plus 128 become negative where the sign's bit is set: bit 4 * n + i of a word, for byte i.
HWY_INLINE WordsV ApplySigns(BytesV weights, WordsV signs, size_t n) {
  const auto negative = hn::MaskedSubOr(weights, QuadBits(signs, n), hn::Zero(PanelBytes()), weights);
  return hn::BitCast(PanelWords(), negative);
}

// finish(fields, n) for the 16 words n of two groups of 32 weights: bits 0-1 of byte i have the level of weight
// 4 * n + i. A group is four points with eight coordinates.
template <size_t kNum, class Finish>
HWY_INLINE void UnpackEights(const GridBytes<kNum>& grid, const BytesV (&indices)[2], const HighBits<kNum>& high,
                             Finish finish) {
  BytesV first[2], second[2];
  LookUp<kNum>(grid.low, indices, high, first);
  LookUp<kNum>(grid.high, indices, high, second);
  HWY_UNROLL(8)
  for (size_t k = 0; k < 8; ++k) {
    finish(Fields<2>(first[k / 4], 8 * (k % 4)), 2 * k);
    finish(Fields<2>(second[k / 4], 8 * (k % 4)), 2 * k + 1);
  }
}

// Bits 0 and 1, or bits 2 and 3, of four signs as bits 3 and 7.
alignas(16) constexpr uint8_t kLowSigns[16] = {0x00, 0x08, 0x80, 0x88, 0x00, 0x08, 0x80, 0x88,
                                               0x00, 0x08, 0x80, 0x88, 0x00, 0x08, 0x80, 0x88};
alignas(16) constexpr uint8_t kHighSigns[16] = {0x00, 0x00, 0x00, 0x00, 0x08, 0x08, 0x08, 0x08,
                                                0x80, 0x80, 0x80, 0x80, 0x88, 0x88, 0x88, 0x88};

// finish(fields, n) for the eight words n of a group of 32 weights: bits 0-2 of byte i have the level of weight
// 4 * n + i, bit 3 its sign. A group is eight points with four coordinates, and a word of 32 signs.
template <size_t kNum, class Finish>
HWY_INLINE void UnpackFours(const GridBytes<kNum>& grid, const BytesV (&indices)[2], const HighBits<kNum>& high,
                            WordsV signs, Finish finish) {
  const PanelBytes d;
  const hn::Repartition<uint16_t, PanelBytes> d16;
  BytesV low[2], upper[2];
  LookUp<kNum>(grid.low, indices, high, low);
  LookUp<kNum>(grid.high, indices, high, upper);
  HWY_UNROLL(2)
  for (size_t i = 0; i < 2; ++i) {
    // Each point's four signs move to the places that its two bytes of levels leave.
    const BytesV nibbles = Fields<4>(hn::BitCast(d, signs), 16 * i);
    const BytesV a = hn::Or(low[i], LookUp16(kLowSigns, nibbles)), b = hn::Or(upper[i], LookUp16(kHighSigns, nibbles));
    // Points 0 and 2, and points 1 and 3.
    const BytesV even = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<8>(hn::BitCast(d16, b))), a);
    const BytesV odd = hn::OddEven(b, hn::BitCast(d, hn::ShiftRight<8>(hn::BitCast(d16, a))));
    HWY_UNROLL(2)
    for (size_t n = 0; n < 4; n += 2) {
      finish(Fields<4>(even, 8 * n), 4 * i + n);
      finish(Fields<4>(odd, 8 * n), 4 * i + n + 1);
    }
  }
}

}  // namespace grid_rows
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();
#endif  // LOWBIT_GRID_ROWS

#endif  // LOWBIT_FORMATS_GRID_ROWS_INL_H_
