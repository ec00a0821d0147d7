// IQ3_S: 256 weights in 110 bytes, 3.4375 bits per weight. Eight groups of 32. Four weights are a grid point and
// four signs.
//
//   byte 0-1      d           float16
//   byte 2-65     low[64]     byte k: bits 0-7 of the grid point of weights 4k to 4k + 3
//   byte 66-73    high[8]     byte k / 8, bit k % 8: bit 8 of grid point k
//   byte 74-105   signs[32]   byte i / 8, bit i % 8: 1 where weight i is negative
//   byte 106-109  scales[4]   byte j: scale 2j in bits 0-3, scale 2j + 1 in bits 4-7
//
//   w[i] = d * (2 * scale[i / 32] + 1) * sign[i] * (2 * level[i] + 1),
//   level[i] = coordinate i % 4 of the grid point point[i / 4]
//
// The grid has 512 points (iq3_grids.cc). After a group of zeros, the reference writes the low bits and the signs of all
// later groups one group too early, but not their high bits and scales. This encoder does the same.
//
// Source: ggml-common.h (block_iq3_s, iq3s_grid), quantize_row_iq3_s_impl, dequantize_row_iq3_s.

// Fit: iq/iq3-inl.h; scalar reference: iq/iq3.cc.
// Packing: Traits::Pack in this file.
// Product: Layout in this file, Codec in iq/iq3_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq3_s.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq3-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq3_s {

constexpr size_t kLowAt = 2, kHighAt = 66, kSignsAt = 74, kScalesAt = 106;

struct Traits {
  static constexpr size_t kBlockBytes = 110;
  static constexpr Iq3Search kSearch = {/*steps=*/9, /*negligible=*/0.0f, /*even_signs=*/false, /*refit_all=*/true,
                                        /*factor=*/1.033f};

  static const Grid& GetGrid() { return Iq3SGrid(); }

  static HWY_INLINE void Pack(const Iq3Block& from, uint8_t* block) {
    memset(block, 0, kBlockBytes);
    StoreHalf(from.d, block);
    uint8_t* low = block + kLowAt;
    uint8_t* signs = block + kSignsAt;
    for (size_t j = 0; j < kIq3Groups; ++j) {
      block[kScalesAt + j / 2] |= static_cast<uint8_t>(from.scales[j] << (4 * (j % 2)));
      if (from.zero[j]) continue;
      for (size_t k = 0; k < kIq3Quads; ++k) {
        const uint32_t point = from.points[kIq3Quads * j + k];
        *low++ = static_cast<uint8_t>(point);
        block[kHighAt + j] |= static_cast<uint8_t>(point >> 8 << k);
      }
      for (size_t k = 0; k < 4; ++k) *signs++ = from.signs[4 * j + k];
    }
  }
};

struct Layout {
  static constexpr size_t kBlockBytes = Traits::kBlockBytes;

  static HWY_INLINE uint32_t Value(const uint8_t* block, size_t j, size_t k) {
    const uint32_t high = static_cast<uint32_t>(block[kHighAt + j]) << (8 - k) & 256;
    return kIq3SValues[block[kLowAt + kIq3Quads * j + k] | high];
  }

  static HWY_INLINE void UnpackScales(const uint8_t* block, float* scales) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Rebind<uint32_t, decltype(df)> du32;
    uint32_t bits;
    memcpy(&bits, block + kScalesAt, 4);
    const auto d = BroadcastHalf(df, block);
    for (size_t j = 0; j < kIq3Groups; j += hn::Lanes(df)) {
      const auto shift = hn::ShiftLeft<2>(hn::Iota(du32, static_cast<uint32_t>(j)));
      const auto code = hn::And(hn::Shr(hn::Set(du32, bits), shift), hn::Set(du32, 15));
      const auto odd = hn::BitCast(di32, hn::Add(hn::Add(code, code), hn::Set(du32, 1)));
      hn::Store(hn::Mul(d, hn::ConvertTo(df, odd)), df, scales + j);
    }
  }

  static HWY_INLINE void UnpackSigns(const uint8_t* block, uint32_t* signs) {
    memcpy(signs, block + kSignsAt, 4 * kIq3Groups);
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    WordsV upper[4], points[4], signs[4];
    LoadWords(rows, kScalesAt - 12, upper);
    StoreOddScales<4>(LoadHalfOfRows(rows, 0), upper[3], kIq3Groups, 0, sink);
    LoadWords(rows, kHighAt, upper);  // two words
    HWY_UNROLL(8)
    for (size_t j = 0; j < kIq3Groups; ++j) {
      if (j % 4 == 0) LoadWords(rows, kSignsAt + 4 * j, signs);
      if (j % 2 == 0) LoadWords(rows, kLowAt + kIq3Quads * j, points);
      grid_rows::HighBits<512> high;
      for (size_t i = 0; i < 2; ++i) high[i][0] = QuadBits(upper[j / 4], j % 4 * 2 + i);
      iq3::UnpackGroup(kIq3SBytes, kIq3SLevels, points + j % 2 * 2, high, signs[j % 4], j, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq3::Format<Traits, Layout>;

}  // namespace iq3_s
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq3_s::Functions, "IQ3_S", /*ggml_type=*/21, /*block_size=*/256, /*block_bytes=*/110,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
