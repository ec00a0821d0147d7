// F16: a weight in 2 bytes, 16 bits per weight.
//
//   byte 0-1   w   float16, little-endian
//
// Rounds to nearest even. 65520 and above round to infinity, values below 2^-14 to denormals. A NaN is stored as 0x7E00
// plus its sign. Importances are not used. Source: ggml_fp32_to_fp16_row.

// Fit: none, each weight is rounded alone.
// Packing: this file.
// Product: of floats, src/kernels/matmul.cc.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/float/f16.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace f16 {

const TwoByteFloats df;
const hn::Rebind<hwy::float16_t, decltype(df)> dh;
const hn::RebindToUnsigned<decltype(dh)> du16;
const TwoByteCodes du8;
using VF = hn::Vec<decltype(df)>;
using VU8 = hn::Vec<decltype(du8)>;

// float16 as bytes; `out` need not be aligned.
HWY_INLINE VU8 Halves(VF x) {
  const auto bits = hn::BitCast(du16, hn::DemoteTo(dh, x));
  const auto magnitude = hn::And(bits, hn::Set(du16, 0x7FFF));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du16, 0x7C00));
  const auto nan = hn::Or(hn::And(bits, hn::Set(du16, 0x8000)), hn::Set(du16, 0x7E00));
  return hn::BitCast(du8, hn::IfThenElse(is_nan, nan, bits));
}

void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
  EncodeTwoBytes(weights, num_rows * K, out, [](VF x) HWY_ATTR { return Halves(x); });
}

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  DecodeTwoBytes(blocks, num_blocks, out, [](VU8 codes) HWY_ATTR { return PromoteHalves(df, hn::BitCast(dh, codes)); });
}

}  // namespace f16
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FLOAT_FORMAT(f16, "F16", /*ggml_type=*/1, /*block_size=*/1, /*block_bytes=*/2, /*needs_imatrix=*/false)
#endif  // HWY_ONCE
