// Q8_K: 256 weights in 292 bytes, 9.125 bits per weight.
//
//   byte 0-3      d         float32
//   byte 4-259    q[256]    int8
//   byte 260-291  sum[16]   int16: q[16 * j] + ... + q[16 * j + 15]
//
//   w[i] = d * q[i]
//
// ggml's format for activations in products with super-block formats. Importances are not used. Source:
// ggml-common.h (block_q8_K), quantize_row_q8_K_ref, dequantize_row_q8_K.

// Fit and packing: Codec::EncodeBlock in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/k/q8_k.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/block-inl.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q8_k {

struct Codec {
  static constexpr size_t kCodesAt = 4, kSumsAt = 260;
  static constexpr size_t kBlock = 256, kBlockBytes = 292, kGroup = 256;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

  // The weight of largest magnitude (the first of equals) gets the code -127.
  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* block) {
    const float largest = MaxMagnitude<kBlock>(x);
    const float extreme =
        HWY_LIKELY(hwy::ScalarIsFinite(largest)) ? FirstWithMagnitude(x, largest) : reference::Extreme(kBlock, x);
    if (extreme == 0.0f) {
      hwy::ZeroBytes(block, kBlockBytes);
      return;
    }
    const hn::CappedTag<float, 16> df;
    const hn::RebindToSigned<decltype(df)> di32;
    const hn::Repartition<uint8_t, decltype(df)> d8;
    const size_t N = hn::Lanes(df);
    const float multiplier = -127.0f / extreme, d = 1.0f / multiplier;
    hwy::CopyBytes<4>(&d, block);
    const auto code = [&](size_t i) HWY_ATTR {
      const auto level = NearestLevel(df, hn::Mul(hn::Set(df, multiplier), hn::LoadU(df, x + i)));
      // For values above 127 the low byte is used.
      return hn::ShiftRight<24>(hn::ShiftLeft<24>(hn::Min(level, hn::Set(di32, 127))));
    };
    for (size_t i = 0; i < kBlock; i += 4 * N) {
      const auto bytes = JoinBytes(di32, code(i), code(i + N), code(i + 2 * N), code(i + 3 * N));
      hn::StoreU(hn::BitCast(d8, bytes), d8, block + kCodesAt + i);
    }
    for (size_t j = 0; j < kBlock / 16; ++j) {
      // Codes plus 128 are unsigned bytes, which are summed eight at a time.
      const hn::FixedTag<uint8_t, 16> d16;
      const auto codes = hn::Xor(hn::LoadU(d16, block + kCodesAt + 16 * j), hn::Set(d16, 128));
      const auto sum = hn::ReduceSum(hn::FixedTag<uint64_t, 2>(), hn::SumsOf8(codes));
      const int16_t centred = static_cast<int16_t>(static_cast<int>(sum) - 16 * 128);
      hwy::CopyBytes<2>(&centred, block + kSumsAt + 2 * j);
    }
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    WordsV words[4];
    LoadWords(rows, 0, words);
    for (size_t g = 0; g < kBlock / 32; ++g) sink.Scale(hn::BitCast(PanelFloats(), words[0]), g);
    HWY_UNROLL(16)
    for (size_t k = 0; k < kBlock / 16; ++k) {
      LoadWords(rows, kCodesAt + 16 * k, words);
      for (size_t i = 0; i < 4; ++i) sink.Levels(words[i], 4 * k + i);
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> d;
    for (size_t i = 0; i < kBlock; i += hn::Lanes(d)) hn::Store(hn::LoadU(d, block + kCodesAt + i), d, u.code + i);
    float scale;
    hwy::CopyBytes<4>(block, &scale);
    const hn::CappedTag<float, 8> df;
    for (size_t j = 0; j < 8; j += hn::Lanes(df)) hn::Store(hn::Set(df, scale), df, u.scale + j);
  }
};

using Functions = BlockFormat<Codec>;

}  // namespace q8_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q8_k::Functions, "Q8_K", /*ggml_type=*/15, /*block_size=*/256, /*block_bytes=*/292,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
