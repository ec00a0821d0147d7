// F16: a weight in 2 bytes, 16 bits a weight.
//
//   byte 0-1   w   float16, little-endian
//
// Rounds to nearest even; beyond 65504 (65520 and up) to infinity, below 2^-14 to denormals. A NaN is stored as 0x7E00
// and its sign. Importances are not used. Source: ggml_fp32_to_fp16_row.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/f16.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace f16 {

const hn::ScalableTag<float> df;
const hn::Rebind<hwy::float16_t, decltype(df)> dh;
const hn::RebindToUnsigned<decltype(dh)> du16;
const hn::Repartition<uint8_t, decltype(dh)> du8;
using VF = hn::Vec<decltype(df)>;

// Half precision as bytes: `out` need not be even.
HWY_INLINE hn::Vec<decltype(du8)> Halves(VF x) {
  const auto bits = hn::BitCast(du16, hn::DemoteTo(dh, x));
  const auto magnitude = hn::And(bits, hn::Set(du16, 0x7FFF));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du16, 0x7C00));
  const auto nan = hn::Or(hn::And(bits, hn::Set(du16, 0x8000)), hn::Set(du16, 0x7E00));
  return hn::BitCast(du8, hn::IfThenElse(is_nan, nan, bits));
}

void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
  const size_t n = num_rows * K, N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= n; i += N) hn::StoreU(Halves(hn::LoadU(df, weights + i)), du8, out + 2 * i);
  if (i != n) hn::StoreN(Halves(hn::LoadN(df, weights + i, n - i)), du8, out + 2 * i, 2 * (n - i));
}

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  const size_t n = num_blocks, N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= n; i += N)
    hn::StoreU(PromoteHalves(df, hn::BitCast(dh, hn::LoadU(du8, blocks + 2 * i))), df, out + i);
  if (i == n) return;
  const auto rest = hn::BitCast(dh, hn::LoadN(du8, blocks + 2 * i, 2 * (n - i)));
  hn::StoreN(PromoteHalves(df, rest), df, out + i, n - i);
}

}  // namespace f16
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FLOAT_FORMAT(f16, "F16", /*ggml_type=*/1, /*block_size=*/1, /*block_bytes=*/2, /*needs_imatrix=*/false)
#endif  // HWY_ONCE
