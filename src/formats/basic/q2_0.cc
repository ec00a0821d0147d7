// Q2_0: 64 weights in 18 bytes, 2.25 bits per weight.
//
//   byte 0-1   d          float16: the largest magnitude
//   byte 2-17  codes[16]  byte j: codes 4 * j to 4 * j + 3 in bits 0-1, 2-3, 4-5 and 6-7
//
//   w[i] = d * (code[i] - 1)
//
// The encoder rounds to -d, 0 or d: code 3 is not used. Importances are not used. Source: ggml-common.h (block_q2_0),
// quantize_row_q2_0_ref, dequantize_row_q2_0.

// Fit: Codec::EncodeBlock in this file, MaxMagnitude in block-inl.h.
// Packing: Codec::EncodeBlock.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q2_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q2_0 {

// The four codes in bits 0-7 of each word as bytes; the other bits must be zero. The two upper codes move to the upper
// half of the word, then each odd code to its byte.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SpreadCodes(D d, V word) {
  word = hn::Or(word, hn::ShiftLeft<12>(word));
  return hn::And(hn::Or(word, hn::ShiftLeft<6>(word)), hn::Set(d, 0x03030303));
}

struct Codec {
  static constexpr size_t kCodesAt = 2;
  static constexpr size_t kBlock = 64, kBlockBytes = 18, kGroup = 64;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = 1, kTop = 3;

  // Scalar reference of the codes, for NaN and infinity. Returns d.
  static HWY_NOINLINE float ReferenceCodes(const float* x, uint8_t* codes) {
    float d = 0.0f;
    for (size_t i = 0; i < kBlock; ++i) {
      if (std::fabs(x[i]) > d) d = std::fabs(x[i]);
    }
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    for (size_t i = 0; i < kBlock; ++i) {
      const float level = std::round(x[i] * inverse);
      // On x86, infinity and NaN convert to the smallest integer.
      codes[i] =
          static_cast<uint8_t>(std::fabs(level) < 128.0f ? HWY_MAX(-1, HWY_MIN(2, static_cast<int>(level))) + 1 : 0);
    }
    return d;
  }

  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* block) {
    HWY_ALIGN uint8_t codes[kBlock];
    float d = MaxMagnitude<kBlock>(x);
    const float inverse = Inverse(d);
    if (HWY_UNLIKELY(!hwy::ScalarIsFinite(d) || (d != 0.0f && inverse == 0.0f))) {
      d = ReferenceCodes(x, codes);
    } else {
      RoundToBytes<kBlock>(x, inverse, kBias, codes);
    }
    StoreHalf(d, block);
    const hn::CappedTag<uint8_t, 32> d8;
    const hn::RebindToSigned<decltype(d8)> di8;
    const hn::RepartitionToWide<decltype(di8)> di16;
    const hn::RepartitionToWide<decltype(di16)> di32;
    const hn::Rebind<uint8_t, decltype(di32)> dbyte;
    // 1, 4, 1, 4, ... and 1, 16, 1, 16, ...
    const auto in_pair = hn::BitCast(di8, hn::Set(di16, 0x0401));
    const auto of_pairs = hn::BitCast(di16, hn::Set(di32, 0x00100001));
    for (size_t i = 0; i < kBlock; i += hn::Lanes(d8)) {
      const auto pairs = hn::SatWidenMulPairwiseAdd(di16, hn::Load(d8, codes + i), in_pair);
      const auto quads = hn::WidenMulPairwiseAdd(di32, pairs, of_pairs);
      hn::StoreU(hn::DemoteTo(dbyte, quads), dbyte, block + kCodesAt + i / 4);
    }
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    HWY_UNROLL(4)
    for (size_t b = 0; b < Panel::kMaxK / kBlock; ++b, rows.Skip(kBlockBytes)) {
      if (HWY_UNLIKELY(b >= num_blocks)) break;
      const FloatsV scale = LoadHalfOfRows(rows, 0);
      sink.Scale(scale, 2 * b);
      sink.Scale(scale, 2 * b + 1);
      WordsV words[4];
      LoadWords(rows, kCodesAt, words);
      HWY_UNROLL(16)
      for (size_t j = 0; j < 16; ++j) {
        WordsV& word = words[j / 4];
        sink.Quad(SpreadCodes(PanelWords(), hn::And(word, hn::Set(PanelWords(), 0xFF))), 16 * b + j);
        word = hn::ShiftRight<8>(word);
      }
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    const hn::CappedTag<uint32_t, 8> d32;
    const hn::Rebind<uint8_t, decltype(d32)> dbyte;
    const hn::Repartition<uint8_t, decltype(d32)> d8;
    UnpackScales<Codec>(blocks, num_blocks, u);
    for (size_t b = 0; b < num_blocks; ++b, blocks += kBlockBytes) {
      for (size_t j = 0; j < kBlock / 4; j += hn::Lanes(d32)) {
        const auto word = hn::PromoteTo(d32, hn::LoadU(dbyte, blocks + kCodesAt + j));
        hn::Store(hn::BitCast(d8, SpreadCodes(d32, word)), d8, u.code + kBlock * b + 4 * j);
      }
    }
  }
};

using Functions = BlockFormat<Codec>;

}  // namespace q2_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q2_0::Functions, "Q2_0", /*ggml_type=*/42, /*block_size=*/64, /*block_bytes=*/18,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
