// IQ2_S: 256 weights in 82 bytes, 2.5625 bits per weight. Sixteen groups of 16.
//
//   byte 0-1    d           float16
//   byte 2-33   points[32]  bits 0-7 of the grid index of eight weights
//   byte 34-65  signs[32]   byte k, bit i: weight 8 * k + i, 1 for minus
//   byte 66-73  high[8]     byte j: bits 8-9 of index 4 * j + k in bits 2k and 2k + 1
//   byte 74-81  scales[8]   byte j: scale 2j in bits 0-3, scale 2j + 1 in bits 4-7
//
//   w[i] = d * (scale[i / 16] + 0.5) / 4 * value(level[i]) * sign[i]
//
// value(0, 1, 2) = 8, 25, 43. Levels are the coordinates of the grid point (iq2_grids.cc).
//
// Source: ggml-common.h (block_iq2_s, iq2s_grid), quantize_row_iq2_s_impl, dequantize_row_iq2_s.

// Fit: iq/iq2-inl.h, with the grid search of iq/grid-inl.h; scalar reference: iq/iq2.cc.
// Packing: Traits::Pack in this file.
// Product: Traits::Unpack in this file, Codec in iq/iq2_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq2_s.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq2-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq2_s {

constexpr size_t kPointsAt = 2, kSignsAt = 34, kHighAt = 66, kScalesAt = 74;

struct Traits {
  static constexpr size_t kBlockBytes = 82;
  static constexpr Iq2Search kSearch = {16, 9, 1e-8f, false, false, 2.0f};

  static const Grid& GetGrid() { return Iq2SGrid(); }

  static HWY_INLINE void Pack(const Iq2Block& from, uint8_t* block) {
    StoreHalf(from.d * 0.9875f, block);
    memcpy(block + kSignsAt, from.signs, 32);
    for (size_t j = 0; j < 8; ++j) {
      int high = 0;
      for (size_t k = 0; k < 4; ++k) {
        block[kPointsAt + 4 * j + k] = static_cast<uint8_t>(from.points[4 * j + k]);
        high |= from.points[4 * j + k] >> 8 << (2 * k);
      }
      block[kHighAt + j] = static_cast<uint8_t>(high);
    }
    iq2::PackScales(from.scales, block + kScalesAt);
  }

  static HWY_INLINE void Unpack(const uint8_t* block, Iq2Block& to) {
    to.d = LoadHalf(block);
    memcpy(to.signs, block + kSignsAt, 32);
    for (size_t j = 0; j < 8; ++j) {
      const uint32_t high = block[kHighAt + j];
      for (size_t k = 0; k < 4; ++k) {
        to.points[4 * j + k] = static_cast<uint16_t>(block[kPointsAt + 4 * j + k] | (high << (8 - 2 * k) & 0x300));
      }
    }
    iq2::UnpackScales(block + kScalesAt, to.scales);
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    const PanelBytes d;
    const auto bit8 = hn::BitCast(d, hn::Set(PanelWords(), 0x40100401));
    const auto bit9 = hn::BitCast(d, hn::Set(PanelWords(), 0x80200802));
    const FloatsV scale = iq2::ScaleOfRows(rows);
    WordsV upper[4], low[4], sign_words[4];  // upper: the high bits in two words, then the scales
    LoadWords(rows, kHighAt, upper);
    StoreOddScales<4>(scale, upper[2], 8, 0, sink);
    StoreOddScales<4>(scale, upper[3], 8, 8, sink);
    HWY_UNROLL(8)
    for (size_t j = 0; j < 8; j += 2) {
      if (j % 4 == 0) LoadWords(rows, kPointsAt + 4 * j, low);
      if (j % 4 == 0) LoadWords(rows, kSignsAt + 4 * j, sign_words);
      const hn::Vec<PanelBytes> points[2] = {hn::BitCast(d, low[j % 4]), hn::BitCast(d, low[j % 4 + 1])};
      const WordsV signs[2] = {sign_words[j % 4], sign_words[j % 4 + 1]};
      grid_rows::HighBits<1024> high;
      for (size_t i = 0; i < 2; ++i) {
        const auto bits = RepeatByte(upper[j / 4], j % 4 + i);
        high[i][0] = hn::TestBit(bits, bit8);
        high[i][1] = hn::TestBit(bits, bit9);
      }
      iq2::UnpackGroups(kIq2SBytes, points, high, signs, j, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq2::Format<Traits>;

}  // namespace iq2_s
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq2_s::Functions, "IQ2_S", /*ggml_type=*/22, /*block_size=*/256, /*block_bytes=*/82,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
