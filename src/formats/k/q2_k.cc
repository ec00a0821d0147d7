// Q2_K: 256 weights in 84 bytes, 2.625 bits per weight. Sixteen groups of 16.
//
//   byte 0-15   scales     byte j: scale j in bits 0-3, minimum j in bits 4-7
//   byte 16-79  codes[64]  byte 32 * h + k, h in [0, 2), k in [0, 32): weight 128 * h + 32 * p + k in bits 2p, 2p + 1
//   byte 80-81  d          float16
//   byte 82-83  dmin       float16
//
//   w[i] = d * scale[i / 16] * code[i] - dmin * minimum[i / 16]
//
// Source: ggml-common.h (block_q2_K), quantize_row_q2_K_ref, quantize_row_q2_K_impl, dequantize_row_q2_K.

// Fit: affine_k::Encoder in k/affine_k-inl.h, with FitAffine in search/affine-inl.h for groups and FitPositive in
//   search/search-inl.h for scales; scalar reference: search/search.h.
// Packing: codes in this file (Traits::Pack), scales in this file (Traits::PackScales).
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/k/q2_k.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/k/affine_k-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q2_k {

constexpr size_t kCodesAt = 16;

struct Traits {
  static constexpr size_t kBlockBytes = 84, kGroupSize = 16, kDAt = 80;
  static constexpr int kTop = 3, kScaleTop = 15;
  static constexpr AffineGrid kGrid = {-0.5f, 0.1f, 15};
  static constexpr bool kAbsolute = true, kClampPlain = false, kClampWeighted = false;
  static constexpr float kVarianceFactor = 1.0f;

  static HWY_INLINE void PackScales(const uint8_t* scales, const uint8_t* minima, uint8_t* block) {
    for (size_t j = 0; j < 16; ++j) block[j] = static_cast<uint8_t>(scales[j] | minima[j] << 4);
  }

  static HWY_INLINE void UnpackScales(const uint8_t* block, uint8_t* out) {
    const hn::FixedTag<uint8_t, 16> d;
    const auto both = hn::LoadU(d, block);
    hn::StoreU(hn::And(both, hn::Set(d, 15)), d, out);
    hn::StoreU(hn::ShiftRight<4>(both), d, out + 16);
  }

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) { PackTwoBits(codes, block + kCodesAt); }
};

struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Traits::kBlockBytes, kGroup = Traits::kGroupSize;
  static constexpr bool kSigned = false, kHasMinima = true;
  static constexpr int kBias = 0, kTop = Traits::kTop;

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    const auto four = hn::Set(PanelWords(), 0x0F0F0F0F);
    WordsV words[4];
    LoadWords(rows, 0, words);
    UnpackTwoBitRows(rows, kCodesAt, [&](WordsV codes, size_t quad) HWY_ATTR { sink.Quad(codes, quad); });
    const FloatsV scale = LoadHalfOfRows(rows, Traits::kDAt), minimum = LoadHalfOfRows(rows, Traits::kDAt + 2);
    HWY_UNROLL(8)
    for (size_t i = 0; i < 4; ++i) {
      StoreScales(scale, hn::And(words[i], four), 4 * i, sink);
      StoreMinima(minimum, hn::And(hn::ShiftRight<4>(words[i]), four), 4 * i, sink);
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    affine_k::UnpackHeader<Traits>(block, u.scale, u.minimum);
    UnpackTwoBits(block + kCodesAt, u.code);
  }
};

using Functions = SuperBlockFormat<affine_k::Encoder<Traits>, Codec>;

}  // namespace q2_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q2_k::Functions, "Q2_K", /*ggml_type=*/10, /*block_size=*/256, /*block_bytes=*/84,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
