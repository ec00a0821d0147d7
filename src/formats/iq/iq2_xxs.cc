// IQ2_XXS: 256 weights in 66 bytes, 2.0625 bits per weight. Eight groups of 32.
//
//   byte 0-1   d           float16
//   byte 2-65  groups[8]   eight bytes for each group:
//     byte 0-3   points    grid index of eight weights each
//     byte 4-7   word      little-endian: bits 7k to 7k + 6, k in [0, 4): the signs of point k's first seven weights,
//                          1 for minus; bits 28-31: scale
//
//   w[i] = d * (scale[i / 32] + 0.5) / 4 * value(level[i]) * sign[i]
//
// value(0, 1, 2) = 8, 25, 43. Levels are the coordinates of the grid point (iq2_grids.cc). The eighth sign makes the
// number of minus signs even. Encoding requires importances.
//
// Source: ggml-common.h (block_iq2_xxs, iq2xxs_grid, ksigns_iq2xs), quantize_row_iq2_xxs_impl, dequantize_row_iq2_xxs.

// Fit: iq/iq2-inl.h, with the grid search of iq/grid-inl.h; scalar reference: iq/iq2.cc.
// Packing: Traits::Pack in this file.
// Product: Traits::Unpack in this file, Codec in iq/iq2_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq2_xxs.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq2-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq2_xxs {

constexpr size_t kGroupsAt = 2;

struct Traits {
  static constexpr size_t kBlockBytes = 66;
  static constexpr Iq2Search kSearch = {32, 6, kNegligible, true, true, 1.0f};

  static const Grid& GetGrid() { return Iq2XxsGrid(); }

  static HWY_INLINE void Pack(const Iq2Block& from, uint8_t* block) {
    StoreHalf(from.d, block);
    for (size_t j = 0; j < 8; ++j) {
      uint32_t words[2] = {0, static_cast<uint32_t>(from.scales[j]) << 28};
      for (size_t k = 0; k < 4; ++k) {
        words[0] |= static_cast<uint32_t>(from.points[4 * j + k]) << (8 * k);
        words[1] |= static_cast<uint32_t>(from.signs[4 * j + k]) << (7 * k);
      }
      memcpy(block + kGroupsAt + 8 * j, words, sizeof(words));
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* block, Iq2Block& to) {
    const hn::CappedTag<uint32_t, 8> du;
    const hn::Repartition<uint8_t, decltype(du)> du8;
    const hn::Rebind<uint8_t, decltype(du)> du8_each;
    HWY_ALIGN uint32_t words[16];
    memcpy(words, block + kGroupsAt, sizeof(words));
    to.d = LoadHalf(block);
    for (size_t j = 0; j < 8; j += hn::Lanes(du)) {
      hn::Vec<decltype(du)> points, word;
      hn::LoadInterleaved2(du, words + 2 * j, points, word);
      hn::StoreU(hn::BitCast(du8, SpreadSigns(du, word)), du8, to.signs + 4 * j);
      hn::StoreU(hn::TruncateTo(du8_each, hn::ShiftRight<28>(word)), du8_each, to.scales + j);
      HWY_ALIGN uint8_t bytes[32];
      hn::Store(hn::BitCast(du8, points), du8, bytes);
      for (size_t i = 0; i < 4 * hn::Lanes(du); ++i) to.points[4 * j + i] = bytes[i];
    }
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    const PanelBytes d;
    const FloatsV scale = iq2::ScaleOfRows(rows);
    HWY_UNROLL(8)
    for (size_t j = 0; j < 8; j += 2) {
      WordsV words[4];
      LoadWords(rows, kGroupsAt + 8 * j, words);
      StoreOddScales<4>(scale, hn::ShiftRight<28>(words[1]), 1, j, sink);
      StoreOddScales<4>(scale, hn::ShiftRight<28>(words[3]), 1, j + 1, sink);
      const hn::Vec<PanelBytes> points[2] = {hn::BitCast(d, words[0]), hn::BitCast(d, words[2])};
      const WordsV signs[2] = {grid_rows::RowSigns(words[1]), grid_rows::RowSigns(words[3])};
      iq2::UnpackGroups(kIq2XxsBytes, points, {}, signs, j, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq2::Format<Traits>;

}  // namespace iq2_xxs
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq2_xxs::Functions, "IQ2_XXS", /*ggml_type=*/16, /*block_size=*/256, /*block_bytes=*/66,
                       /*needs_imatrix=*/true)
#endif  // HWY_ONCE
