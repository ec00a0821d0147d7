// Shared by Q8_0 and Q8_1. A block is 32 weights:
//
//   d      float16
//   s      float16, Q8_1 only: d * (q[0] + ... + q[31])
//   q[32]  int8
//
//   w[i] = d * q[i]
//
// Source: ggml-common.h (block_q8_0, block_q8_1), quantize_row_q8_0_ref, quantize_row_q8_1_ref.
#if defined(LOWBIT_FORMATS_BLOCK8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_BLOCK8_INL_H_
#undef LOWBIT_FORMATS_BLOCK8_INL_H_
#else
#define LOWBIT_FORMATS_BLOCK8_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

template <bool kHasSum>
struct Block8 {
  static constexpr size_t kCodesAt = kHasSum ? 4 : 2;
  static constexpr size_t kBlock = 32, kBlockBytes = kCodesAt + kBlock, kGroup = 32;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* out) {
    const Rounded rounded = RoundBlock<kBlock>(x, 127.0f, 0, out + kCodesAt);
    StoreHalf(rounded.d, out);
    if constexpr (kHasSum) StoreHalf(static_cast<float>(rounded.sum) * rounded.d, out + 2);
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    HWY_UNROLL(8)
    for (size_t b = 0; b < Panel::kMaxK / kBlock; ++b, rows.Skip(kBlockBytes)) {
      if (HWY_UNLIKELY(b >= num_blocks)) break;
      sink.Scale(LoadHalfOfRows(rows, 0), b);
      HWY_UNROLL(8)
      for (size_t k = 0; k < 2; ++k) {
        WordsV words[4];
        LoadWords(rows, kCodesAt + 16 * k, words);
        for (size_t i = 0; i < 4; ++i) sink.Levels(words[i], 8 * b + 4 * k + i);
      }
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> du8;
    LoadHalves(blocks, kBlockBytes, num_blocks, u.scale);
    for (size_t b = 0; b < num_blocks; ++b) {
      for (size_t i = 0; i < kBlock; i += hn::Lanes(du8)) {
        hn::Store(hn::LoadU(du8, blocks + b * kBlockBytes + kCodesAt + i), du8, u.code + b * kBlock + i);
      }
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_BLOCK8_INL_H_
