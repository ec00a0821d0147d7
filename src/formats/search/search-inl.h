// The searches of search.h for as many groups as a vector has lanes: lane = group. Loops go over the weights of a group
// in the reference's order, so every lane rounds as the reference does. Branches become masks. Weight i of group `lane`
// is x[i * N + lane]. Codes are bytes, four per word: weight 4 * m + b of group `lane` is byte b of words[m * N +
// lane]. Weights must be finite. Products may overflow; comparisons with NaN are then false, as in the reference.
#if defined(LOWBIT_FORMATS_SEARCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_SEARCH_INL_H_
#undef LOWBIT_FORMATS_SEARCH_INL_H_
#else
#define LOWBIT_FORMATS_SEARCH_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/search/search.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that a batch of super-blocks stays in the L1 cache.
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

// The same as a float for |v| < 2^22. The clamp works on the biased number as an integer: positive floats have the
// order of their bits, and integer minimum and maximum do not compete with the products for an execution unit.
// kFromBelow: false if v is known to be above the lower bound.
template <bool kFromBelow = true, class DF, class V = hn::Vec<DF>>
HWY_INLINE V NearestFloat(DF df, V v, int low, int high) {
  const hn::RebindToSigned<DF> di;
  const V bias = hn::Set(df, kRoundingBias);
  const auto most = hn::BitCast(di, hn::Set(df, kRoundingBias + static_cast<float>(high)));
  auto bits = hn::Min(hn::BitCast(di, hn::Add(v, bias)), most);
  if constexpr (kFromBelow) {
    bits = hn::Max(bits, hn::BitCast(di, hn::Set(df, kRoundingBias + static_cast<float>(low))));
  }
  return hn::Sub(hn::BitCast(df, bits), bias);
}

// Whether a * b is in the range of NearestFloat in every lane.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE bool InRange(DF df, V a, V b) {
  return hn::AllTrue(df, hn::Lt(hn::Abs(hn::Mul(a, b)), hn::Set(df, 4194304.0f)));
}

// Packs four codes in [0, 255] per lane.
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

// The codes of FitSymmetric: levels in [-half, half) plus half, 0 in the lanes of `zero`. Scaled weights must be below
// 2^22.
template <size_t kNum, class DF, class V = hn::Vec<DF>, class M = hn::Mask<DF>>
HWY_INLINE void StoreLevels(DF df, const float* x, V multiplier, M zero, int half, uint32_t* words) {
  const hn::RebindToUnsigned<DF> du;
  const size_t N = hn::Lanes(df);
  const V bias = hn::Set(df, kRoundingBias);
  const auto least = hn::BitCast(du, hn::Set(df, kRoundingBias - static_cast<float>(half)));
  const auto most = hn::BitCast(du, hn::Set(df, kRoundingBias + static_cast<float>(half - 1)));
  const auto code = [&](const float* from) HWY_ATTR {
    const auto bits = hn::BitCast(du, hn::Add(hn::Mul(multiplier, hn::Load(df, from)), bias));
    return hn::Sub(hn::Max(least, hn::Min(bits, most)), least);
  };
  for (size_t i = 0; i < kNum; i += 4) {
    const float* from = x + i * N;
    const auto low = hn::Or(code(from), hn::ShiftLeft<8>(code(from + N)));
    const auto high = hn::Or(code(from + 2 * N), hn::ShiftLeft<8>(code(from + 3 * N)));
    const auto word = hn::Or(low, hn::ShiftLeft<16>(high));
    hn::Store(hn::IfThenZeroElse(hn::RebindMask(du, zero), word), du, words + i / 4 * N);
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

// sum w * x * level and sum w * level^2 for kTries multipliers at once, which share the loads. Bound: the clamping that
// the scaled weights need.
enum class Bound { kAbove, kBoth, kAnyInput };

template <size_t kNum, size_t kTries, Bound kBound, class DF, class V = hn::Vec<DF>>
HWY_INLINE void SymmetricSums(DF df, int half, const V* multipliers, const float* HWY_RESTRICT x,
                              const float* HWY_RESTRICT w, const float* HWY_RESTRICT wx, V* sum_xl, V* sum_l2) {
  const size_t N = hn::Lanes(df);
  V xl[kTries], l2[kTries];
  for (size_t k = 0; k < kTries; ++k) xl[k] = l2[k] = hn::Zero(df);
  HWY_UNROLL(4)
  for (size_t i = 0; i < kNum * N; i += N) {
    const V xi = hn::Load(df, x + i), wi = hn::Load(df, w + i), wxi = hn::Load(df, wx + i);
    for (size_t k = 0; k < kTries; ++k) {
      const V scaled = hn::Mul(multipliers[k], xi);
      V level;
      if constexpr (kBound == Bound::kAnyInput) {
        level = hn::ConvertTo(df, NearestCode(df, scaled, -half, half - 1));
      } else {
        level = NearestFloat<kBound == Bound::kBoth>(df, scaled, -half, half - 1);
      }
      xl[k] = hn::Add(xl[k], hn::Mul(wxi, level));
      l2[k] = hn::Add(l2[k], hn::Mul(hn::Mul(wi, level), level));
    }
  }
  for (size_t k = 0; k < kTries; ++k) {
    sum_xl[k] = xl[k];
    sum_l2[k] = l2[k];
  }
}

// The best multiplier of FitSymmetric so far.
template <class V>
struct SymmetricBest {
  V scale, merit, multiplier;

  template <class DF>
  HWY_INLINE void Judge(DF df, bool first, V sum_xl, V sum_l2, V with) {
    const V zero = hn::Zero(df);
    auto better = hn::And(hn::Gt(sum_l2, zero), hn::Gt(hn::Mul(sum_xl, sum_xl), hn::Mul(merit, sum_l2)));
    V its_scale = hn::Div(sum_xl, sum_l2);
    if (first) {
      better = hn::Eq(zero, zero);
      its_scale = hn::IfThenZeroElse(hn::Eq(sum_l2, zero), its_scale);  // NaN is not zero
    }
    scale = hn::IfThenElse(better, its_scale, scale);
    merit = hn::IfThenElse(better, hn::Mul(its_scale, sum_xl), merit);
    multiplier = hn::IfThenElse(better, with, multiplier);
  }
};

// reference::FitSymmetric. kAnyInput: x may be any float (scales of groups that overflowed), not only finite. Cost: 19
// times 9 instructions per weight.
template <size_t kNum, bool kAnyInput, class DF, class V = hn::Vec<DF>>
HWY_NOINLINE void FitSymmetric(DF df, int half, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, V& scale_out,
                               uint32_t* words) {
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  const V extreme = Extreme<kNum>(df, x);
  const auto negligible = hn::Lt(hn::Abs(extreme), hn::Set(df, kNegligible));
  const V divisor = hn::IfThenElse(negligible, hn::Set(df, 1.0f), extreme);
  HWY_ALIGN float wx[kNum * kMaxGroups];
  for (size_t i = 0; i < kNum * N; i += N) hn::Store(hn::Mul(hn::Load(df, w + i), hn::Load(df, x + i)), df, wx + i);

  // Try 0 is -half, tries 1 to 9 are -(half - 0.9) to -(half - 0.1), tries 10 to 18 -(half + 0.1) to -(half + 0.9).
  const auto factor = [&](int i) HWY_ATTR {
    return i == 0 ? static_cast<float>(-half) : -(half + 0.1f * (i < 10 ? i - 10 : i - 9));
  };
  // Up to try 13, scaled weights are below half + 0.45 in magnitude, so they round to -half or more.
  constexpr Bound kFew = kAnyInput ? Bound::kAnyInput : Bound::kAbove, kRest = kAnyInput ? kFew : Bound::kBoth;
  SymmetricBest<V> best = {zero, zero, zero};
  V multipliers[2], sum_xl[2], sum_l2[2];
  for (int i = 0; i < 19; i += 2) {
    const size_t tries = i < 18 ? 2 : 1;
    for (size_t k = 0; k < tries; ++k) multipliers[k] = hn::Div(hn::Set(df, factor(i + static_cast<int>(k))), divisor);
    if (i < 14) {
      SymmetricSums<kNum, 2, kFew>(df, half, multipliers, x, w, wx, sum_xl, sum_l2);
    } else if (i < 18) {
      SymmetricSums<kNum, 2, kRest>(df, half, multipliers, x, w, wx, sum_xl, sum_l2);
    } else {
      SymmetricSums<kNum, 1, kRest>(df, half, multipliers, x, w, wx, sum_xl, sum_l2);
    }
    for (size_t k = 0; k < tries; ++k) best.Judge(df, i + k == 0, sum_xl[k], sum_l2[k], multipliers[k]);
  }
  scale_out = hn::IfThenZeroElse(negligible, best.scale);
  if constexpr (kAnyInput) {
    StoreScaledCodes<kNum>(df, x, zero, best.multiplier, negligible, -half, half - 1, words);
  } else {
    StoreLevels<kNum>(df, x, best.multiplier, negligible, half, words);
  }
}

// sum_xl * sum_xl * other_l2: the two sides of the comparison that decides whether a changed level is better.
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
  // A lane without a change does not change in later rounds, so further rounds for other lanes do no harm.
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

// reference::FitPositive for the scales of super-blocks: code i of super-block `lane` is codes[i * N + lane].
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
