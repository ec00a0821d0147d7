// Q4_K: 256 weights in 144 bytes, 4.5 bits per weight. Eight groups of 32.
//
//   byte 0-1     d           float16
//   byte 2-3     dmin        float16
//   byte 4-15    scales      eight scales and eight minima of 6 bits (affine_k-inl.h)
//   byte 16-143  codes[128]  byte 32 * p + k: weight 64 * p + k in bits 0-3, weight 64 * p + 32 + k in bits 4-7
//
//   w[i] = d * scale[i / 32] * code[i] - dmin * minimum[i / 32]
//
// Source: ggml-common.h (block_q4_K), quantize_row_q4_K_ref, quantize_row_q4_K_impl, dequantize_row_q4_K.

// Fit: affine_k::Encoder in k/affine_k-inl.h, with FitAffine in search/affine-inl.h for groups and FitPositive in
//   search/search-inl.h for scales; scalar reference: search/search.h.
// Packing: codes in this file (Traits::Pack), scales in k/affine_k-inl.h (SixBitScales).
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/k/q4_k.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/k/affine_k-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q4_k {

constexpr size_t kCodesAt = 16;

struct Traits : affine_k::SixBitScales {
  static constexpr size_t kBlockBytes = 144, kGroupSize = 32;
  static constexpr int kTop = 15;
  static constexpr AffineGrid kGrid = {-1.0f, 0.1f, 20};
  static constexpr bool kAbsolute = false, kClampPlain = true, kClampWeighted = false;
  static constexpr float kVarianceFactor = 2.0f;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) {
    const hn::CappedTag<uint8_t, 32> d;
    for (size_t p = 0; p < 4; ++p) {
      for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
        const auto low = hn::LoadU(d, codes + 64 * p + k), high = hn::LoadU(d, codes + 64 * p + 32 + k);
        hn::StoreU(hn::Or(low, hn::ShiftLeft<4>(high)), d, block + kCodesAt + 32 * p + k);
      }
    }
  }
};

struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Traits::kBlockBytes, kGroup = Traits::kGroupSize;
  static constexpr bool kSigned = false, kHasMinima = true;
  static constexpr int kBias = 0, kTop = Traits::kTop;

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    const auto four = hn::Set(PanelWords(), 0x0F0F0F0F);
    affine_k::UnpackRowHeaders(rows, sink);
    HWY_UNROLL(8)
    for (size_t k = 0; k < 8; ++k) {
      WordsV words[4];
      LoadWords(rows, kCodesAt + 16 * k, words);
      const size_t quad = k / 2 * 16 + k % 2 * 4;
      HWY_UNROLL(8)
      for (size_t i = 0; i < 4; ++i) {
        sink.Quad(hn::And(words[i], four), quad + i);
        sink.Quad(hn::And(hn::ShiftRight<4>(words[i]), four), quad + 8 + i);
      }
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> d;
    affine_k::UnpackHeader<Traits>(block, u.scale, u.minimum);
    const auto low = hn::Set(d, 15);
    for (size_t p = 0; p < 4; ++p) {
      for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
        const auto both = hn::LoadU(d, block + kCodesAt + 32 * p + k);
        hn::Store(hn::And(both, low), d, u.code + 64 * p + k);
        hn::Store(hn::ShiftRight<4>(both), d, u.code + 64 * p + 32 + k);
      }
    }
  }
};

using Functions = SuperBlockFormat<affine_k::Encoder<Traits>, Codec>;

}  // namespace q4_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q4_k::Functions, "Q4_K", /*ggml_type=*/12, /*block_size=*/256, /*block_bytes=*/144,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
