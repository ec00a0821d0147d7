#include "src/kernels/logits.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/logits.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
using DD = hn::Repartition<double, DF>;
using VD = hn::Vec<DD>;

// Other values become -infinity.
HWY_INLINE VF Finite(VF v) {
  const VF infinity = hn::Inf(DF());
  return hn::IfThenElse(hn::Lt(hn::Abs(v), infinity), v, hn::Neg(infinity));
}

void BlockMaxima(const float* logits, size_t num, float* out) {
  const DF df;
  const size_t N = hn::Lanes(df);
  for (; num >= kLogitBlock; num -= kLogitBlock, logits += kLogitBlock) {
    VF most = Finite(hn::LoadU(df, logits));
    for (size_t i = N; i < kLogitBlock; i += N) most = hn::Max(most, Finite(hn::LoadU(df, logits + i)));
    *out++ = hn::ReduceMax(df, most);
  }
  if (num == 0) return;
  VF most = hn::Neg(hn::Inf(df));
  for (size_t i = 0; i < num; i += N) {
    const VF v = hn::LoadNOr(hn::Neg(hn::Inf(df)), df, logits + i, num - i);
    most = hn::Max(most, Finite(v));
  }
  *out = hn::ReduceMax(df, most);
}

// Weights below exp(-50), about 2e-22, count as that.
constexpr double kLeastExponent = -50;

// exp(x) for x <= 0, with a relative error below 5e-13.
HWY_INLINE VD ExpOfNegative(VD x) {
  const DD dd;
  const hn::RebindToSigned<DD> di;
  x = hn::Max(x, hn::Set(dd, kLeastExponent));
  // The low bits of the sum are the integer nearest to x / log(2): the exponent of the result.
  const VD shift = hn::Set(dd, 0x1.8p52);
  const VD exponent = hn::MulAdd(x, hn::Set(dd, 1.4426950408889634), shift);
  const VD r = hn::NegMulAdd(hn::Sub(exponent, shift), hn::Set(dd, 0.6931471805599453), x);
  // The Taylor series: r^11 / 11! < 3e-13 for r < 0.347.
  VD sum = hn::Set(dd, 1.0 / 3628800);
  for (double coefficient :
       {1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
    sum = hn::MulAdd(sum, r, hn::Set(dd, coefficient));
  return hn::BitCast(dd, hn::Add(hn::BitCast(di, sum), hn::ShiftLeft<52>(hn::BitCast(di, exponent))));
}

// The weights of logits in double.
HWY_INLINE VD Weights(VD v, WeightScale scale) {
  const DD dd;
  const VD distance = hn::Sub(v, hn::Set(dd, scale.max));
  return ExpOfNegative(hn::Mul(distance, hn::Set(dd, 1.0 / scale.temperature)));
}

// The buckets of finite logits and -infinity, as floats without a fraction.
HWY_INLINE VF Buckets(VF v, WeightScale scale) {
  constexpr double kLast = kWeightBuckets - 1, kMost = std::numeric_limits<float>::max();
  const DF df;
  const auto per_logit = static_cast<float>(std::min(kLast / (-kLeastExponent * scale.temperature), kMost));
  const VF bucket = hn::Mul(hn::Sub(hn::Set(df, scale.max), v), hn::Set(df, per_logit));
  return hn::Floor(hn::Min(bucket, hn::Set(df, static_cast<float>(kLast))));
}

double SumWeights(const float* logits, size_t num, WeightScale scale) {
  const DF df;
  const DD dd;
  VD lower = hn::Zero(dd), upper = hn::Zero(dd);
  const auto add = [&](VF v) HWY_ATTR {
    v = Finite(v);
    lower = hn::Add(lower, Weights(hn::PromoteLowerTo(dd, v), scale));
    upper = hn::Add(upper, Weights(hn::PromoteUpperTo(dd, v), scale));
  };
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num; i += N) add(hn::LoadU(df, logits + i));
  if (i < num) add(hn::LoadNOr(hn::Inf(df), df, logits + i, num - i));
  return hn::ReduceSum(dd, hn::Add(lower, upper));
}

void WeighBuckets(const float* logits, size_t num, WeightScale scale, double* mass) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const DD dd;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN int32_t bucket[16] = {};
  HWY_ALIGN double weight[16] = {};
  std::fill_n(mass, kWeightBuckets, 0.0);
  const auto add = [&](VF v, size_t lanes) HWY_ATTR {
    v = Finite(v);
    hn::Store(hn::ConvertTo(di, Buckets(v, scale)), di, bucket);
    hn::Store(Weights(hn::PromoteLowerTo(dd, v), scale), dd, weight);
    hn::Store(Weights(hn::PromoteUpperTo(dd, v), scale), dd, weight + N / 2);
    for (size_t i = 0; i < lanes; ++i) mass[bucket[i]] += weight[i];
  };
  size_t i = 0;
  for (; i + N <= num; i += N) add(hn::LoadU(df, logits + i), N);
  if (i < num) add(hn::LoadN(df, logits + i, num - i), num - i);
}

// Writes the ids of the logits for which `is_wanted` is true.
template <class IsWanted>
HWY_INLINE size_t Find(const float* logits, size_t num, int32_t* ids, IsWanted is_wanted) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  size_t found = 0;
  const auto find = [&](VF v, size_t first) HWY_ATTR {
    const auto wanted = is_wanted(v);
    if (HWY_LIKELY(hn::AllFalse(df, wanted))) return;
    const auto lanes = hn::Iota(di, static_cast<int32_t>(first));
    found += hn::CompressStore(lanes, hn::RebindMask(di, wanted), di, ids + found);
  };
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num; i += N) find(hn::LoadU(df, logits + i), i);
  if (i < num) find(hn::LoadNOr(hn::Inf(df), df, logits + i, num - i), i);
  return found;
}

size_t FindInBucket(const float* logits, size_t num, WeightScale scale, size_t bucket, int32_t* ids) {
  const VF wanted = hn::Set(DF(), static_cast<float>(bucket));
  return Find(logits, num, ids, [&](VF v) HWY_ATTR { return hn::Eq(Buckets(Finite(v), scale), wanted); });
}

size_t FindAtLeast(const float* logits, size_t num, float threshold, int32_t* ids) {
  const DF df;
  const VF least = hn::Set(df, std::max(threshold, std::numeric_limits<float>::lowest())), infinity = hn::Inf(df);
  return Find(logits, num, ids, [&](VF v) HWY_ATTR { return hn::And(hn::Ge(v, least), hn::Lt(v, infinity)); });
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(BlockMaxima);
HWY_EXPORT(SumWeights);
HWY_EXPORT(WeighBuckets);
HWY_EXPORT(FindInBucket);
HWY_EXPORT(FindAtLeast);

void BlockMaxima(const float* logits, size_t num, float* out) { HWY_DYNAMIC_DISPATCH(BlockMaxima)(logits, num, out); }

double SumWeights(const float* logits, size_t num, WeightScale scale) {
  return HWY_DYNAMIC_DISPATCH(SumWeights)(logits, num, scale);
}

void WeighBuckets(const float* logits, size_t num, WeightScale scale, double* mass) {
  HWY_DYNAMIC_DISPATCH(WeighBuckets)(logits, num, scale, mass);
}

size_t FindInBucket(const float* logits, size_t num, WeightScale scale, size_t bucket, int32_t* ids) {
  return HWY_DYNAMIC_DISPATCH(FindInBucket)(logits, num, scale, bucket, ids);
}

size_t FindAtLeast(const float* logits, size_t num, float threshold, int32_t* ids) {
  return HWY_DYNAMIC_DISPATCH(FindAtLeast)(logits, num, threshold, ids);
}

}  // namespace lowbit
#endif  // HWY_ONCE
