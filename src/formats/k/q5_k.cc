// Q5_K: 256 weights in 176 bytes, 5.5 bits per weight. Eight groups of 32.
//
//   byte 0-1     d         float16
//   byte 2-3     dmin      float16
//   byte 4-15    scales    eight scales and eight minima of 6 bits (affine_k-inl.h)
//   byte 16-47   high[32]  byte k, bit g: bit 4 of the code of weight 32 * g + k
//   byte 48-175  low[128]  byte 32 * p + k: bits 0-3 of the code of weight 64 * p + k in bits 0-3, of weight
//                          64 * p + 32 + k in bits 4-7
//
//   w[i] = d * scale[i / 32] * code[i] - dmin * minimum[i / 32]
//
// Source: ggml-common.h (block_q5_K), quantize_row_q5_K_ref, quantize_row_q5_K_impl, dequantize_row_q5_K.

// Fit: affine_k::Encoder in k/affine_k-inl.h, with FitAffine in search/affine-inl.h for groups and FitPositive in
//   search/search-inl.h for scales; scalar reference: search/search.h.
// Packing: codes in this file (Traits::Pack), scales in k/affine_k-inl.h (SixBitScales).
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/k/q5_k.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/k/affine_k-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q5_k {

constexpr size_t kHighAt = 16, kLowAt = 48;

struct Traits : affine_k::SixBitScales {
  static constexpr size_t kBlockBytes = 176, kGroupSize = 32;
  static constexpr int kTop = 31;
  static constexpr AffineGrid kGrid = {-0.5f, 0.1f, 15};
  static constexpr bool kAbsolute = false, kClampPlain = true, kClampWeighted = true;
  static constexpr float kVarianceFactor = 2.0f;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) {
    const hn::CappedTag<uint8_t, 32> d;
    const auto nibble = hn::Set(d, 15);
    for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
      auto high = hn::Zero(d);
      for (size_t p = 4; p-- > 0;) {
        const auto a = hn::LoadU(d, codes + 64 * p + k), b = hn::LoadU(d, codes + 64 * p + 32 + k);
        hn::StoreU(hn::Or(hn::And(a, nibble), hn::ShiftLeft<4>(b)), d, block + kLowAt + 32 * p + k);
        const auto bits = hn::Or(hn::ShiftRight<4>(a), hn::ShiftLeft<1>(hn::ShiftRight<4>(b)));
        high = hn::Or(hn::ShiftLeft<2>(high), bits);
      }
      hn::StoreU(high, d, block + kHighAt + k);
    }
  }
};

struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Traits::kBlockBytes, kGroup = Traits::kGroupSize;
  static constexpr bool kSigned = false, kHasMinima = true;
  static constexpr int kBias = 0, kTop = Traits::kTop;

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    const auto four = hn::Set(PanelWords(), 0x0F0F0F0F), fifth = hn::Set(PanelWords(), 0x10101010);
    affine_k::UnpackRowHeaders(rows, sink);
    HWY_UNROLL(8)
    for (size_t half = 0; half < 2; ++half) {
      WordsV high[4], low[4];
      LoadWords(rows, kHighAt + 16 * half, high);
      HWY_UNROLL(8)
      for (size_t p = 0; p < 4; ++p) {
        LoadWords(rows, kLowAt + 32 * p + 16 * half, low);
        HWY_UNROLL(8)
        for (size_t i = 0; i < 4; ++i) {
          const size_t quad = 16 * p + 4 * half + i;
          const auto a = hn::And(hn::ShiftLeft<4>(high[i]), fifth), b = hn::And(hn::ShiftLeft<3>(high[i]), fifth);
          sink.Quad(hn::Or(hn::And(low[i], four), a), quad);
          sink.Quad(hn::Or(hn::And(hn::ShiftRight<4>(low[i]), four), b), quad + 8);
          high[i] = hn::ShiftRight<2>(high[i]);
        }
      }
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> d;
    affine_k::UnpackHeader<Traits>(block, u.scale, u.minimum);
    const auto nibble = hn::Set(d, 15), fifth = hn::Set(d, 16);
    for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
      auto high = hn::LoadU(d, block + kHighAt + k);
      for (size_t p = 0; p < 4; ++p) {
        const auto both = hn::LoadU(d, block + kLowAt + 32 * p + k);
        const auto a = hn::Or(hn::And(both, nibble), hn::And(hn::ShiftLeft<4>(high), fifth));
        const auto b = hn::Or(hn::ShiftRight<4>(both), hn::And(hn::ShiftLeft<3>(high), fifth));
        hn::Store(a, d, u.code + 64 * p + k);
        hn::Store(b, d, u.code + 64 * p + 32 + k);
        high = hn::ShiftRight<2>(high);
      }
    }
  }
};

using Functions = SuperBlockFormat<affine_k::Encoder<Traits>, Codec>;

}  // namespace q5_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q5_k::Functions, "Q5_K", /*ggml_type=*/13, /*block_size=*/256, /*block_bytes=*/176,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
