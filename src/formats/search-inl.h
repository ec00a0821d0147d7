// The searches of search.h for as many groups as a vector has lanes: lane = group, and the loops go over the weights of
// a group in the reference's order, so every lane rounds as the reference does. Branches become masks. Weight i of
// group `lane` is x[i * N + lane]; codes leave as bytes, four to a word: weight 4 * m + b of group `lane` is byte b of
// words[m * N + lane]. Weights are finite; products may overflow, and then comparisons with NaN are false here as
// there.
#if defined(LOWBIT_FORMATS_SEARCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_SEARCH_INL_H_
#undef LOWBIT_FORMATS_SEARCH_INL_H_
#else
#define LOWBIT_FORMATS_SEARCH_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/search.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16, so that a batch of super-blocks stays in the first cache.
using SearchTag = hn::CappedTag<float, 16>;
constexpr size_t kMaxGroups = HWY_MAX_LANES_D(SearchTag);

// reference::NearestInt, for any v.
template <class DF, class V = hn::Vec<DF>, class DI = hn::RebindToSigned<DF>>
HWY_INLINE hn::Vec<DI> NearestLevel(DF df, V v) {
  const DI di;
  const auto bits = hn::BitCast(di, hn::Add(v, hn::Set(df, kRoundingBias)));
  return hn::Sub(hn::And(bits, hn::Set(di, kMantissaMask)), hn::Set(di, kMantissaBias));
}

template <class DF, class V = hn::Vec<DF>, class DI = hn::RebindToSigned<DF>>
HWY_INLINE hn::Vec<DI> NearestCode(DF df, V v, int low, int high) {
  const DI di;
  return hn::Max(hn::Set(di, low), hn::Min(hn::Set(di, high), NearestLevel(df, v)));
}

// The same as a float for |v| < 2^22, in two instructions less: the clamp works on the biased number.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V NearestFloat(DF df, V v, int low, int high) {
  const V bias = hn::Set(df, kRoundingBias);
  v = hn::Min(hn::Add(v, bias), hn::Set(df, kRoundingBias + static_cast<float>(high)));
  v = hn::Max(v, hn::Set(df, kRoundingBias + static_cast<float>(low)));
  return hn::Sub(v, bias);
}

// The same for v that needs no lower bound. Positive floats are ordered as integers, whose minimum does not compete
// with the products for their unit.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V NearestAtMost(DF df, V v, int high) {
  const hn::RebindToSigned<DF> di;
  const V bias = hn::Set(df, kRoundingBias);
  const auto most = hn::BitCast(di, hn::Set(df, kRoundingBias + static_cast<float>(high)));
  return hn::Sub(hn::BitCast(df, hn::Min(hn::BitCast(di, hn::Add(v, bias)), most)), bias);
}

// Whether NearestFloat may take a * b in every lane.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE bool InRange(DF df, V a, V b) {
  return hn::AllTrue(df, hn::Lt(hn::Abs(hn::Mul(a, b)), hn::Set(df, 4194304.0f)));
}

// Four codes in [0, 255] a lane.
template <class DI, class VI = hn::Vec<DI>>
HWY_INLINE void StoreCodes(DI di, VI c0, VI c1, VI c2, VI c3, uint32_t* words) {
  const hn::RebindToUnsigned<DI> du;
  const VI low = hn::Or(c0, hn::ShiftLeft<8>(c1)), high = hn::Or(c2, hn::ShiftLeft<8>(c3));
  hn::Store(hn::BitCast(du, hn::Or(low, hn::ShiftLeft<16>(high))), du, words);
  (void)di;
}

// codes = nearest((x - base) * multiplier) clamped to [low, high], minus low; 0 in the lanes of `zero`.
template <size_t kNum, class DF, class V = hn::Vec<DF>, class M = hn::Mask<DF>>
HWY_INLINE void StoreScaledCodes(DF df, const float* x, V base, V multiplier, M zero, int low, int high,
                                 uint32_t* words) {
  const hn::RebindToSigned<DF> di;
  const auto bias = hn::Set(di, low);
  const auto clear = hn::RebindMask(di, zero);
  const size_t N = hn::Lanes(df);
  for (size_t i = 0; i < kNum; i += 4) {
    hn::Vec<decltype(di)> c0, c1, c2, c3;
    const float* from = x + i * N;
    c0 = hn::Sub(NearestCode(df, hn::Mul(multiplier, hn::Sub(hn::Load(df, from), base)), low, high), bias);
    c1 = hn::Sub(NearestCode(df, hn::Mul(multiplier, hn::Sub(hn::Load(df, from + N), base)), low, high), bias);
    c2 = hn::Sub(NearestCode(df, hn::Mul(multiplier, hn::Sub(hn::Load(df, from + 2 * N), base)), low, high), bias);
    c3 = hn::Sub(NearestCode(df, hn::Mul(multiplier, hn::Sub(hn::Load(df, from + 3 * N), base)), low, high), bias);
    c0 = hn::IfThenZeroElse(clear, c0);
    c1 = hn::IfThenZeroElse(clear, c1);
    c2 = hn::IfThenZeroElse(clear, c2);
    c3 = hn::IfThenZeroElse(clear, c3);
    StoreCodes(di, c0, c1, c2, c3, words + i / 4 * N);
  }
}

// reference::Extreme.
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE V Extreme(DF df, const float* x) {
  const size_t N = hn::Lanes(df);
  V extreme = hn::Zero(df), magnitude = hn::Zero(df);
  for (size_t i = 0; i < kNum; ++i) {
    const V xi = hn::Load(df, x + i * N);
    const auto greater = hn::Gt(hn::Abs(xi), magnitude);
    magnitude = hn::IfThenElse(greater, hn::Abs(xi), magnitude);
    extreme = hn::IfThenElse(greater, xi, extreme);
  }
  return extreme;
}

// reference::FitSymmetric. kAnyInput: x may be anything (scales of groups that overflowed), not only finite.
// Cost a weight: 19 times a dozen instructions.
template <size_t kNum, bool kAnyInput, class DF, class V = hn::Vec<DF>>
HWY_NOINLINE void FitSymmetric(DF df, int half, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, V& scale_out,
                               uint32_t* words) {
  const hn::RebindToSigned<DF> di;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  const V extreme = Extreme<kNum>(df, x);
  const auto negligible = hn::Lt(hn::Abs(extreme), hn::Set(df, kNegligible));
  const V divisor = hn::IfThenElse(negligible, hn::Set(df, 1.0f), extreme);
  HWY_ALIGN float wx[kNum * kMaxGroups];
  for (size_t i = 0; i < kNum * N; i += N) hn::Store(hn::Mul(hn::Load(df, w + i), hn::Load(df, x + i)), df, wx + i);

  V scale = zero, best = zero, best_multiplier = zero;
  for (int t = -10; t <= 9; ++t) {
    if (t == 0) continue;
    const bool plain = t == -10;
    const float factor = plain ? static_cast<float>(-half) : -(half + 0.1f * t);
    const V multiplier = hn::Div(hn::Set(df, factor), divisor);
    V sum_xl = zero, sum_l2 = zero;
    HWY_UNROLL(4)
    for (size_t i = 0; i < kNum * N; i += N) {
      const V scaled = hn::Mul(multiplier, hn::Load(df, x + i));
      V level;
      if constexpr (kAnyInput) {
        level = hn::ConvertTo(df, NearestCode(df, scaled, -half, half - 1));
      } else if (t < 5) {
        level = NearestAtMost(df, scaled, half - 1);  // |scaled| < half + 0.45
      } else {
        level = NearestFloat(df, scaled, -half, half - 1);
      }
      sum_xl = hn::Add(sum_xl, hn::Mul(hn::Load(df, wx + i), level));
      sum_l2 = hn::Add(sum_l2, hn::Mul(hn::Mul(hn::Load(df, w + i), level), level));
    }
    auto better = hn::And(hn::Gt(sum_l2, zero), hn::Gt(hn::Mul(sum_xl, sum_xl), hn::Mul(best, sum_l2)));
    V this_scale = hn::Div(sum_xl, sum_l2);
    if (plain) {
      better = hn::Eq(zero, zero);
      this_scale = hn::IfThenZeroElse(hn::Eq(sum_l2, zero), this_scale);  // NaN is not zero
    }
    scale = hn::IfThenElse(better, this_scale, scale);
    best = hn::IfThenElse(better, hn::Mul(this_scale, sum_xl), best);
    best_multiplier = hn::IfThenElse(better, multiplier, best_multiplier);
  }
  scale_out = hn::IfThenZeroElse(negligible, scale);
  StoreScaledCodes<kNum>(df, x, zero, best_multiplier, negligible, -half, half - 1, words);
  (void)di;
}

// sum_xl * sum_xl * other_l2: the two sides that decide whether a changed level is better.
template <class V>
HWY_INLINE V Merit(V sum_xl, V other_l2) {
  return hn::Mul(hn::Mul(sum_xl, sum_xl), other_l2);
}

// The last part of reference::FitPositive: improves one code at a time. codes[i * N + lane] are wrapped to [0, 255].
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE V DescendPositive(DF df, int top, const float* x, const float* w, int32_t* codes, V sum_xl, V sum_l2) {
  const hn::RebindToSigned<DF> di;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  // A lane without a change stays as it is from then on, so going on for the others does no harm.
  for (int round = 0; round < 5; ++round) {
    auto changed = hn::Lt(zero, zero);
    for (size_t i = 0; i < kNum * N; i += N) {
      const V xi = hn::Load(df, x + i), wi = hn::Load(df, w + i), wx = hn::Mul(wi, xi);
      const auto code = hn::Load(di, codes + i);
      const V level = hn::ConvertTo(df, code);
      const V rest_xl = hn::Sub(sum_xl, hn::Mul(wx, level));
      const V rest_l2 = hn::Sub(sum_l2, hn::Mul(hn::Mul(wi, level), level));
      const auto trial = hn::Min(hn::Set(di, top), NearestLevel(df, hn::Div(hn::Mul(xi, rest_l2), rest_xl)));
      const V other = hn::ConvertTo(df, trial);
      const V xl = hn::Add(rest_xl, hn::Mul(wx, other));
      const V l2 = hn::Add(rest_l2, hn::Mul(hn::Mul(wi, other), other));
      const auto differs = hn::RebindMask(df, hn::Ne(trial, code));
      const auto valid = hn::And(hn::And(hn::Gt(rest_xl, zero), hn::Gt(rest_l2, zero)), differs);
      const auto better = hn::And(valid, hn::Gt(Merit(xl, sum_l2), Merit(sum_xl, l2)));
      sum_xl = hn::IfThenElse(better, xl, sum_xl);
      sum_l2 = hn::IfThenElse(better, l2, sum_l2);
      const auto wrapped = hn::And(trial, hn::Set(di, 255));
      hn::Store(hn::IfThenElse(hn::RebindMask(di, better), wrapped, code), di, codes + i);
      changed = hn::Or(changed, better);
    }
    if (hn::AllFalse(df, changed)) break;
  }
  return hn::IfThenElseZero(hn::Gt(sum_l2, zero), hn::Div(sum_xl, sum_l2));
}

// reference::FitPositive, for the scales of super-blocks: code i of super-block `lane` is codes[i * N + lane].
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_NOINLINE void FitPositive(DF df, int top, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, V& scale_out,
                              int32_t* HWY_RESTRICT codes) {
  const hn::RebindToSigned<DF> di;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df), one = hn::Set(df, 1.0f);
  V high = zero;
  for (size_t i = 0; i < kNum * N; i += N) {
    const V xi = hn::Load(df, x + i);
    high = hn::IfThenElse(hn::Gt(high, xi), high, xi);
  }
  const auto negligible = hn::Lt(high, hn::Set(df, kNegligible));
  high = hn::IfThenElse(negligible, one, high);

  V best = zero, best_multiplier = zero;
  for (int t = -5; t <= 4; ++t) {
    if (t == 0) continue;
    const bool plain = t == -5;
    const float factor = plain ? static_cast<float>(top) : 0.1f * static_cast<float>(t) + static_cast<float>(top);
    const V multiplier = hn::Div(hn::Set(df, factor), high);
    const V scale = hn::Div(one, multiplier);
    V error = zero;
    for (size_t i = 0; i < kNum * N; i += N) {
      const V xi = hn::Load(df, x + i);
      auto level = NearestLevel(df, hn::Mul(multiplier, xi));
      level = plain ? hn::And(level, hn::Set(di, 255)) : hn::Min(level, hn::Set(di, top));
      const V difference = hn::Sub(xi, hn::Mul(scale, hn::ConvertTo(df, level)));
      error = hn::Add(error, hn::Mul(hn::Mul(hn::Load(df, w + i), difference), difference));
    }
    const auto better = plain ? hn::Eq(zero, zero) : hn::Lt(error, best);
    best = hn::IfThenElse(better, error, best);
    best_multiplier = hn::IfThenElse(better, multiplier, best_multiplier);
  }

  V sum_xl = zero, sum_l2 = zero;
  for (size_t i = 0; i < kNum * N; i += N) {
    const V xi = hn::Load(df, x + i), wi = hn::Load(df, w + i);
    const auto code = hn::Min(NearestLevel(df, hn::Mul(best_multiplier, xi)), hn::Set(di, top));
    const V level = hn::ConvertTo(df, code);
    sum_xl = hn::Add(sum_xl, hn::Mul(hn::Mul(wi, xi), level));
    sum_l2 = hn::Add(sum_l2, hn::Mul(hn::Mul(wi, level), level));
    hn::Store(hn::And(code, hn::Set(di, 255)), di, codes + i);
  }
  const V scale = DescendPositive<kNum>(df, top, x, w, codes, sum_xl, sum_l2);
  scale_out = hn::IfThenZeroElse(negligible, scale);
  const auto clear = hn::RebindMask(di, negligible);
  for (size_t i = 0; i < kNum * N; i += N) hn::Store(hn::IfThenZeroElse(clear, hn::Load(di, codes + i)), di, codes + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_SEARCH_INL_H_
