// IQ3_XXS: 256 weights in 98 bytes, 3.0625 bits per weight. Eight groups of 32. Four weights are a grid point and
// four signs.
//
//   byte 0-1    d           float16
//   byte 2-65   points[64]  byte k: the grid point of weights 4k to 4k + 3
//   byte 66-97  groups[8]   uint32 each. Bits 7m to 7m + 6, m in [0, 4): signs of weights 8m to 8m + 6 of the group,
//                           1 for minus; the sign of weight 8m + 7 makes their number even. Bits 28-31: scale
//
//   w[i] = d * (scale[i / 32] + 0.5) / 2 * sign[i] * value[level[i]],
//   level[i] = coordinate i % 4 of the grid point points[i / 4]; value = 4 12 20 28 36 44 52 62
//
// The grid has 256 points (iq3_grids.cc). Source: ggml-common.h (block_iq3_xxs, iq3xxs_grid),
// quantize_row_iq3_xxs_impl, dequantize_row_iq3_xxs.

// Fit: iq/iq3-inl.h; scalar reference: iq/iq3.cc.
// Packing: Traits::Pack in this file.
// Product: Layout in this file, Codec in iq/iq3_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq3_xxs.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq3-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq3_xxs {

constexpr size_t kPointsAt = 2, kGroupsAt = 66;

struct Traits {
  static constexpr size_t kBlockBytes = 98;
  static constexpr Iq3Search kSearch = {/*steps=*/15, /*negligible=*/1e-8f, /*even_signs=*/true, /*refit_all=*/false,
                                        /*factor=*/1.0125f};

  static const Grid& GetGrid() { return Iq3XxsGrid(); }

  static HWY_INLINE void Pack(const Iq3Block& from, uint8_t* block) {
    StoreHalf(from.d, block);
    for (size_t k = 0; k < 64; ++k) block[kPointsAt + k] = static_cast<uint8_t>(from.points[k]);
    for (size_t j = 0; j < kIq3Groups; ++j) {
      uint32_t bits = static_cast<uint32_t>(from.scales[j]) << 28;
      for (size_t m = 0; m < 4; ++m) bits |= static_cast<uint32_t>(from.signs[4 * j + m]) << (7 * m);
      for (size_t i = 0; i < 4; ++i) block[kGroupsAt + 4 * j + i] = static_cast<uint8_t>(bits >> (8 * i));
    }
  }
};

struct Layout {
  static constexpr size_t kBlockBytes = Traits::kBlockBytes;

  static HWY_INLINE uint32_t Value(const uint8_t* block, size_t j, size_t k) {
    return kIq3XxsValues[block[kPointsAt + kIq3Quads * j + k]];
  }

  static HWY_INLINE void UnpackScales(const uint8_t* block, float* scales) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Rebind<uint32_t, decltype(df)> du32;
    const auto d = BroadcastHalf(df, block);
    for (size_t j = 0; j < kIq3Groups; j += hn::Lanes(df)) {
      const auto bits = hn::LoadU(du32, reinterpret_cast<const uint32_t*>(block + kGroupsAt) + j);
      const auto code = hn::ConvertTo(df, hn::BitCast(di32, hn::ShiftRight<28>(bits)));
      const auto half = hn::Set(df, 0.5f);
      hn::Store(hn::Mul(hn::Mul(d, hn::Add(half, code)), half), df, scales + j);
    }
  }

  static HWY_INLINE void UnpackSigns(const uint8_t* block, uint32_t* signs) {
    const hn::CappedTag<uint32_t, 8> d;
    for (size_t j = 0; j < kIq3Groups; j += hn::Lanes(d)) {
      const auto words = hn::LoadU(d, reinterpret_cast<const uint32_t*>(block + kGroupsAt) + j);
      hn::Store(SpreadSigns(d, words), d, signs + j);
    }
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    // The scale of code c is d * (c + 0.5) / 2.
    const FloatsV scale = hn::Mul(LoadHalfOfRows(rows, 0), hn::Set(PanelFloats(), 0.25f));
    WordsV points[4], groups[4];
    HWY_UNROLL(8)
    for (size_t j = 0; j < kIq3Groups; ++j) {
      if (j % 4 == 0) LoadWords(rows, kGroupsAt + 4 * j, groups);
      if (j % 2 == 0) LoadWords(rows, kPointsAt + kIq3Quads * j, points);
      StoreOddScales<4>(scale, hn::ShiftRight<28>(groups[j % 4]), 1, j, sink);
      const WordsV signs = grid_rows::RowSigns(groups[j % 4]);
      iq3::UnpackGroup(kIq3XxsBytes, kIq3XxsLevels, points + j % 2 * 2, {}, signs, j, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq3::Format<Traits, Layout>;

}  // namespace iq3_xxs
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq3_xxs::Functions, "IQ3_XXS", /*ggml_type=*/18, /*block_size=*/256, /*block_bytes=*/98,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
