// Shared by MXFP4 and NVFP4: weights in four bits (E2M1: sign, two bits of exponent, one of mantissa). The reference
// stores twice the value, which is an integer, and half the scale.
//
// Source: ggml-common.h (kvalues_fp4), best_index_mxfp4.
#if defined(LOWBIT_FORMATS_FP4_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_FP4_INL_H_
#undef LOWBIT_FORMATS_FP4_INL_H_
#else
#define LOWBIT_FORMATS_FP4_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <cmath>

#include "hwy/highway.h"
#include "src/formats/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace fp4 {

HWY_ALIGN constexpr int8_t kLevels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Scalar reference: the code of the nearest level, the first of equals.
inline uint8_t ReferenceCode(float x, float scale) {
  uint8_t best = 0;
  float least = std::fabs(kLevels[0] * scale - x);
  for (uint8_t code = 1; code < 16; ++code) {
    const float error = std::fabs(kLevels[code] * scale - x);
    if (error < least) {
      least = error;
      best = code;
    }
  }
  return best;
}

// The codes of kNum weights; scales[i / kGroup] belongs to weight i. The middle of two levels goes to the level nearer
// to zero, which is the first. This is the reference's choice unless a weight is many times the largest level, where
// the reference's differences lose the levels. Near the middle of two levels these differences are exact, and so is
// scale * middle, because a scale has 4 bits. Cost: 18 / 8 or 18 / 16 instructions per weight, plus the products.
template <size_t kNum, size_t kGroup>
HWY_INLINE void Codes(const float* x, const float* scales, uint8_t* codes) {
  const hn::CappedTag<float, HWY_MIN(kNum / 4, size_t{16})> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const hn::Repartition<int8_t, decltype(df)> di8;
  const size_t N = hn::Lanes(df);
  const auto code = [&](size_t i) HWY_ATTR {
    const auto xi = hn::LoadU(df, x + i), magnitude = hn::Abs(xi), scale = hn::Set(df, scales[i / kGroup]);
    auto steps = hn::Zero(di32);  // minus the number of middles below the weight
    for (const float middle : {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f}) {
      const auto beyond = hn::Gt(magnitude, hn::Mul(scale, hn::Set(df, middle)));
      steps = hn::Add(steps, hn::VecFromMask(di32, hn::RebindMask(di32, beyond)));
    }
    const auto negative = hn::And(hn::BitCast(di32, xi), steps);  // only its top bit is used
    return hn::Sub(hn::And(hn::ShiftRight<31>(negative), hn::Set(di32, 8)), steps);
  };
  for (size_t i = 0; i < kNum; i += 4 * N) {
    const auto bytes = JoinBytes(di32, code(i), code(i + N), code(i + 2 * N), code(i + 3 * N));
    hn::StoreU(bytes, di8, reinterpret_cast<int8_t*>(codes + i));
  }
}

// Levels of the codes in the low four bits, as signed bytes.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Levels(D d, V codes) {
  const auto table = hn::LoadDup128(d, reinterpret_cast<const uint8_t*>(kLevels));
  return hn::TableLookupBytes(table, codes);
}

}  // namespace fp4
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_FP4_INL_H_
