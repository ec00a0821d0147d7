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

// exp(x) for x <= 0, with a relative error below 5e-13. Below -50 it is exp(-50), about 2e-22.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfNegative(D dd, V x) {
  const hn::RebindToSigned<D> di;
  x = hn::Max(x, hn::Set(dd, -50.0));
  // The low bits of the sum are the integer nearest to x / log(2): the exponent of the result.
  const V shift = hn::Set(dd, 0x1.8p52);
  const V exponent = hn::MulAdd(x, hn::Set(dd, 1.4426950408889634), shift);
  const V r = hn::NegMulAdd(hn::Sub(exponent, shift), hn::Set(dd, 0.6931471805599453), x);
  // The Taylor series: r^11 / 11! < 3e-13 for r < 0.347.
  V sum = hn::Set(dd, 1.0 / 3628800);
  for (double coefficient :
       {1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0})
    sum = hn::MulAdd(sum, r, hn::Set(dd, coefficient));
  return hn::BitCast(dd, hn::Add(hn::BitCast(di, sum), hn::ShiftLeft<52>(hn::BitCast(di, exponent))));
}

double SumExp(const float* logits, size_t num, float max, float temperature) {
  const DF df;
  const hn::Repartition<double, DF> dd;
  using VD = hn::Vec<decltype(dd)>;
  const VD top = hn::Set(dd, max), inverse = hn::Set(dd, 1.0 / temperature);
  VD sum0 = hn::Zero(dd), sum1 = hn::Zero(dd);
  const auto add = [&](VF v) HWY_ATTR {
    v = Finite(v);
    sum0 = hn::Add(sum0, ExpOfNegative(dd, hn::Mul(hn::Sub(hn::PromoteLowerTo(dd, v), top), inverse)));
    sum1 = hn::Add(sum1, ExpOfNegative(dd, hn::Mul(hn::Sub(hn::PromoteUpperTo(dd, v), top), inverse)));
  };
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num; i += N) add(hn::LoadU(df, logits + i));
  if (i < num) add(hn::LoadNOr(hn::Inf(df), df, logits + i, num - i));
  return hn::ReduceSum(dd, hn::Add(sum0, sum1));
}

size_t FindAtLeast(const float* logits, size_t num, float threshold, int32_t* ids) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const VF least = hn::Set(df, std::max(threshold, std::numeric_limits<float>::lowest())), infinity = hn::Inf(df);
  size_t found = 0;
  const auto find = [&](VF v, size_t first) HWY_ATTR {
    const auto is_found = hn::And(hn::Ge(v, least), hn::Lt(v, infinity));
    if (HWY_LIKELY(hn::AllFalse(df, is_found))) return;
    const auto lanes = hn::Iota(di, static_cast<int32_t>(first));
    found += hn::CompressStore(lanes, hn::RebindMask(di, is_found), di, ids + found);
  };
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num; i += N) find(hn::LoadU(df, logits + i), i);
  if (i < num) find(hn::LoadNOr(infinity, df, logits + i, num - i), i);
  return found;
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(BlockMaxima);
HWY_EXPORT(SumExp);
HWY_EXPORT(FindAtLeast);

void BlockMaxima(const float* logits, size_t num, float* out) { HWY_DYNAMIC_DISPATCH(BlockMaxima)(logits, num, out); }

double SumExp(const float* logits, size_t num, float max, float temperature) {
  return HWY_DYNAMIC_DISPATCH(SumExp)(logits, num, max, temperature);
}

size_t FindAtLeast(const float* logits, size_t num, float threshold, int32_t* ids) {
  return HWY_DYNAMIC_DISPATCH(FindAtLeast)(logits, num, threshold, ids);
}

}  // namespace lowbit
#endif  // HWY_ONCE
