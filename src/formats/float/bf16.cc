// BF16: a weight in 2 bytes, 16 bits per weight.
//
//   byte 0-1   w   bfloat16, little-endian: the upper half of a float32
//
// Rounds to nearest even. A NaN keeps the upper half of its bits and becomes a quiet NaN. Importances are not used.
// Source: ggml_compute_fp32_to_bf16.

// Fit: none, each weight is rounded alone.
// Packing: this file.
// Product: of floats, src/kernels/matmul.cc.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/float/bf16.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace bf16 {

const TwoByteFloats df;
const hn::Rebind<hwy::bfloat16_t, decltype(df)> dh;
const hn::RebindToUnsigned<decltype(df)> du32;
const hn::RebindToUnsigned<decltype(dh)> du16;
const TwoByteCodes du8;
using VF = hn::Vec<decltype(df)>;
using VU8 = hn::Vec<decltype(du8)>;

// bfloat16 as bytes; `out` need not be aligned. Computed with integers, because AVX-512's conversion instruction
// flushes denormals.
HWY_INLINE VU8 Halves(VF x) {
  const auto bits = hn::BitCast(du32, x);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du32, 0x7FFF))));
  const auto is_nan = hn::RebindMask(du32, hn::IsNaN(x));
  const auto quiet = hn::Or(upper, hn::Set(du32, 0x40));
  return hn::BitCast(du8, hn::TruncateTo(du16, hn::IfThenElse(is_nan, quiet, rounded)));
}

void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
  EncodeTwoBytes(weights, num_rows * K, out, [](VF x) HWY_ATTR { return Halves(x); });
}

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  DecodeTwoBytes(blocks, num_blocks, out, [](VU8 codes) HWY_ATTR { return hn::PromoteTo(df, hn::BitCast(dh, codes)); });
}

}  // namespace bf16
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FLOAT_FORMAT(bf16, "BF16", /*ggml_type=*/30, /*block_size=*/1, /*block_bytes=*/2,
                             /*needs_imatrix=*/false)
#endif  // HWY_ONCE
