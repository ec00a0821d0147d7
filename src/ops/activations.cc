#include "src/ops/activations.h"

#include "src/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/activations.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void QuantizeGroups(const float* HWY_RESTRICT x, size_t num_groups, int8_t* HWY_RESTRICT q, float* HWY_RESTRICT scale,
                    float* HWY_RESTRICT scale16, float* HWY_RESTRICT sum16, float* HWY_RESTRICT sum32) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const size_t N = hn::Lanes(df);
  constexpr size_t kGroup = Activations::kGroup;
  for (size_t g = 0; g < num_groups; ++g, x += kGroup, q += kGroup) {
    // Magnitudes are compared as integers, where NaN is the largest: the scale of its group, and so the product, is
    // NaN.
    auto max = hn::Zero(di32);
    for (size_t i = 0; i < kGroup; i += N) {
      max = hn::Max(max, hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + i))));
    }
    float d = hwy::BitCastScalar<float>(hn::ReduceMax(di32, max)) / 127.0f;
    // Below the smallest normal number the inverse would overflow; such a group counts as zeros.
    if (d < 1.17549435e-38f) d = 0.0f;
    const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    float halves[2];
    for (size_t half = 0; half < 2; ++half) {
      auto sum = hn::Zero(di32);
      for (size_t i = half * kGroup / 2; i < (half + 1) * kGroup / 2; i += N) {
        const auto codes = hn::NearestInt(hn::Mul(hn::LoadU(df, x + i), hn::Set(df, inverse)));
        sum = hn::Add(sum, codes);
        hn::StoreU(hn::DemoteTo(di8, codes), di8, q + i);
      }
      halves[half] = static_cast<float>(hn::ReduceSum(di32, sum));
    }
    scale[g] = scale16[2 * g] = scale16[2 * g + 1] = d;
    sum16[2 * g] = d * halves[0];
    sum16[2 * g + 1] = d * halves[1];
    sum32[g] = d * (halves[0] + halves[1]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(QuantizeGroups);

Activations ActivationBuffer::Quantize(const float* x, size_t num_tokens, size_t K, size_t num_threads) {
  const size_t groups = K / Activations::kGroup;
  if (q_.size() < num_tokens * K) {
    q_.resize(num_tokens * K);
    scale_.resize(num_tokens * groups);
    scale16_.resize(num_tokens * groups * 2);
    sum16_.resize(num_tokens * groups * 2);
    sum32_.resize(num_tokens * groups);
  }
  ParallelFor(num_tokens, num_tokens < 8 ? 1 : num_threads, [&](size_t t) {
    HWY_DYNAMIC_DISPATCH(QuantizeGroups)
    (x + t * K, groups, q_.data() + t * K, scale_.data() + t * groups, scale16_.data() + t * groups * 2,
     sum16_.data() + t * groups * 2, sum32_.data() + t * groups);
  });
  return {num_tokens, K, q_.data(), scale_.data(), scale16_.data(), sum16_.data(), sum32_.data()};
}

}  // namespace lowbit
#endif  // HWY_ONCE
