// TQ2_0: 256 weights in 66 bytes, 2.0625 bits per weight: -d, 0 or d.
//
//   byte 0-63   codes[64]  byte 32 * h + k, h in [0, 2), k in [0, 32): code 128 * h + 32 * p + k in bits 2p, 2p + 1
//   byte 64-65  d          float16: the largest magnitude
//
//   w[i] = d * (code[i] - 1)
//
// Importances are not used. Source: ggml-common.h (block_tq2_0), quantize_row_tq2_0_ref, dequantize_row_tq2_0.

// Fit: RoundBlock in block-inl.h.
// Packing: Codec::EncodeBlock in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/ternary/tq2_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/block-inl.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace tq2_0 {

struct Codec {
  static constexpr size_t kDAt = 64;
  static constexpr size_t kBlock = 256, kBlockBytes = 66, kGroup = 256;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = 1, kTop = 2;

  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* block) {
    HWY_ALIGN uint8_t codes[kBlock];
    StoreHalf(RoundBlock<kBlock>(x, 1.0f, kBias, codes).d, block + kDAt);
    PackTwoBits(codes, block);
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    UnpackTwoBitRows(rows, 0, [&](WordsV codes, size_t quad) HWY_ATTR { sink.Quad(codes, quad); });
    const FloatsV scale = LoadHalfOfRows(rows, kDAt);
    for (size_t g = 0; g < kBlock / 32; ++g) sink.Scale(scale, g);
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t num_blocks, Unpacked& u) {
    UnpackScales<Codec>(block + kDAt, num_blocks, u);
    UnpackTwoBits(block, u.code);
  }
};

using Functions = BlockFormat<Codec>;

}  // namespace tq2_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(tq2_0::Functions, "TQ2_0", /*ggml_type=*/35, /*block_size=*/256, /*block_bytes=*/66,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
