// IQ2_XS: 256 weights in 74 bytes, 2.3125 bits per weight. Sixteen groups of 16.
//
//   byte 0-1    d           float16
//   byte 2-65   points[32]  two bytes for eight weights, little-endian: bits 0-8: grid index; bits 9-15: the signs
//                           of the first seven, 1 for minus
//   byte 66-73  scales[8]   byte j: scale 2j in bits 0-3, scale 2j + 1 in bits 4-7
//
//   w[i] = d * (scale[i / 16] + 0.5) / 4 * value(level[i]) * sign[i]
//
// value(0, 1, 2) = 8, 25, 43. Levels are the coordinates of the grid point (iq2_grids.cc). The eighth sign makes the
// number of minus signs even. Encoding requires importances.
//
// Source: ggml-common.h (block_iq2_xs, iq2xs_grid, ksigns_iq2xs), quantize_row_iq2_xs_impl, dequantize_row_iq2_xs.

// Fit: iq/iq2-inl.h, with the grid search of iq/grid-inl.h; scalar reference: iq/iq2.cc.
// Packing: Traits::Pack in this file.
// Product: Traits::Unpack in this file, Codec in iq/iq2_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq2_xs.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq2-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq2_xs {

constexpr size_t kPointsAt = 2, kScalesAt = 66;

struct Traits {
  static constexpr size_t kBlockBytes = 74;
  static constexpr Iq2Search kSearch = {16, 9, kNegligible, true, false, 1.0f};

  static const Grid& GetGrid() { return Iq2XsGrid(); }

  static HWY_INLINE void Pack(const Iq2Block& from, uint8_t* block) {
    StoreHalf(from.d, block);
    uint16_t words[32];
    for (size_t k = 0; k < 32; ++k) words[k] = static_cast<uint16_t>(from.points[k] | from.signs[k] << 9);
    memcpy(block + kPointsAt, words, sizeof(words));
    iq2::PackScales(from.scales, block + kScalesAt);
  }

  static HWY_INLINE void Unpack(const uint8_t* block, Iq2Block& to) {
    const hn::CappedTag<uint16_t, 16> du;
    const hn::Rebind<uint8_t, decltype(du)> du8;
    to.d = LoadHalf(block);
    for (size_t k = 0; k < 32; k += hn::Lanes(du)) {
      const auto word = hn::LoadU(du, reinterpret_cast<const uint16_t*>(block + kPointsAt) + k);
      hn::StoreU(hn::And(word, hn::Set(du, 511)), du, to.points + k);
      hn::StoreU(hn::TruncateTo(du8, CompleteSigns(du, hn::ShiftRight<9>(word))), du8, to.signs + k);
    }
    iq2::UnpackScales(block + kScalesAt, to.scales);
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    const PanelBytes d;
    const PanelWords d32;
    const hn::Repartition<uint16_t, PanelBytes> d16;
    const FloatsV scale = iq2::ScaleOfRows(rows);
    WordsV words[4];
    LoadWords(rows, kScalesAt - 8, words);
    StoreOddScales<4>(scale, words[2], 8, 0, sink);
    StoreOddScales<4>(scale, words[3], 8, 8, sink);
    // Bytes of points 0, 2, 1, 3 come in order.
    alignas(16) static constexpr uint8_t kOrder[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    const auto order = hn::LoadDup128(d, kOrder);
    HWY_UNROLL(8)
    for (size_t j = 0; j < 8; j += 2) {
      LoadWords(rows, kPointsAt + 8 * j, words);
      hn::Vec<PanelBytes> points[2];
      grid_rows::HighBits<512> high;
      WordsV signs[2];
      HWY_UNROLL(2)
      for (size_t i = 0; i < 2; ++i) {
        const auto first = hn::BitCast(d16, words[2 * i]), second = hn::BitCast(d16, words[2 * i + 1]);
        const auto low = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<8>(second)), hn::BitCast(d, first));
        const auto upper = hn::OddEven(hn::BitCast(d, second), hn::BitCast(d, hn::ShiftRight<8>(first)));
        points[i] = hn::TableLookupBytes(low, order);
        const auto bytes = hn::TableLookupBytes(upper, order);
        high[i][0] = hn::TestBit(bytes, hn::Set(d, 1));
        const WordsV seven = hn::And(hn::ShiftRight<1>(hn::BitCast(d32, bytes)), hn::Set(d32, 0x7f7f7f7f));
        signs[i] = CompleteSigns(d32, seven);
      }
      iq2::UnpackGroups(kIq2XsBytes, points, high, signs, j, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq2::Format<Traits>;

}  // namespace iq2_xs
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq2_xs::Functions, "IQ2_XS", /*ggml_type=*/17, /*block_size=*/256, /*block_bytes=*/74,
                       /*needs_imatrix=*/true)
#endif  // HWY_ONCE
