// reference::FitByDescent for many groups, one per lane, as in search-inl.h. Used by Q3_K without importances.
#if defined(LOWBIT_FORMATS_DESCENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_DESCENT_INL_H_
#undef LOWBIT_FORMATS_DESCENT_INL_H_
#else
#define LOWBIT_FORMATS_DESCENT_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// State of FitByDescent by weight and lane: the levels, and the contribution of each to the two sums.
template <size_t kNum>
struct Descent {
  HWY_ALIGN float level[kNum * kMaxGroups];
  HWY_ALIGN float xl[kNum * kMaxGroups];
  HWY_ALIGN float l2[kNum * kMaxGroups];
};

// The first part of a step of reference::FitByDescent, for all weights at once. Bit i of a lane is 0 only if weight i
// certainly keeps its level with the current sums. This is so if rest_xl is not positive (as in all groups with a
// positive extreme), if x * rest_l2 / rest_xl is clearly within half a step of the level, or if it is beyond an end and
// the level is at that end. Products decide this, with a margin of a thousandth of a step. The margin exceeds all
// rounding errors unless rest_xl is close to the denormals. NaN and infinity set the bit.
template <size_t kNum, class DF, class V = hn::Vec<DF>, class DI = hn::RebindToSigned<DF>>
HWY_INLINE hn::Vec<DI> Unsettled(DF df, int half, const float* HWY_RESTRICT x, const Descent<kNum>& state, V sum_xl,
                                 V sum_l2) {
  const DI di;
  const size_t N = hn::Lanes(df);
  const V margin = hn::Set(df, 0.499f), least = hn::Set(df, 1e-30f);
  const V lowest = hn::Set(df, static_cast<float>(-half)), highest = hn::Set(df, static_cast<float>(half - 1));
  auto bits = hn::Zero(di);
  HWY_UNROLL(4)
  for (size_t i = 0; i < kNum; ++i) {
    const V level = hn::Load(df, state.level + i * N);
    const V rest_xl = hn::Sub(sum_xl, hn::Load(df, state.xl + i * N));
    const V rest_l2 = hn::Sub(sum_l2, hn::Load(df, state.l2 + i * N));
    const V off = hn::Sub(hn::Mul(hn::Load(df, x + i * N), rest_l2), hn::Mul(level, rest_xl));
    const V step = hn::Mul(margin, rest_xl);
    const auto not_above = hn::Or(hn::Lt(off, step), hn::Eq(level, highest));
    const auto not_below = hn::Or(hn::Lt(hn::Neg(step), off), hn::Eq(level, lowest));
    const auto near = hn::And(hn::And(not_above, not_below), hn::Gt(rest_xl, least));
    const auto settled = hn::Or(near, hn::Le(rest_xl, hn::Zero(df)));
    bits = hn::Or(bits, hn::IfThenZeroElse(hn::RebindMask(di, settled), hn::Set(di, 1 << i)));
  }
  return bits;
}

// The rounds of reference::FitByDescent. `bits` are the unsettled weights at the start. Few weights change their level:
// with normally distributed weights about 2 % in the first round, fewer later. So each lane takes its own next
// unsettled weight and makes the reference's step there; then all weights are tested again. A lane ends after a round
// without a change, or after five rounds. Cost: about three passes with 12 instructions per weight, and per pass one
// step of 35 instructions with a division and two gathers.
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE void Descend(DF df, int half, const float* HWY_RESTRICT x, hn::Vec<hn::RebindToSigned<DF>> bits,
                        Descent<kNum>& state, V& sum_xl, V& sum_l2) {
  const hn::RebindToSigned<DF> di;
  using VI = hn::Vec<decltype(di)>;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  VI ahead = hn::Set(di, -1);  // the weights that remain in this round
  VI round = hn::Zero(di);
  auto changed = hn::Lt(zero, zero);  // in this round
  for (;;) {
    VI next = hn::And(bits, ahead);
    const auto over = hn::And(hn::Eq(next, hn::Zero(di)), hn::Lt(round, hn::Set(di, 4)));
    const auto again = hn::And(over, hn::RebindMask(di, changed));
    next = hn::IfThenElse(again, bits, next);
    round = hn::Sub(round, hn::VecFromMask(di, again));
    changed = hn::AndNot(hn::RebindMask(df, again), changed);
    const auto steps = hn::Ne(next, hn::Zero(di));
    if (hn::AllFalse(di, steps)) return;

    const VI lowest = hn::And(next, hn::Neg(next));
    ahead = hn::IfThenElse(steps, hn::Neg(hn::Add(lowest, lowest)), hn::Zero(di));
    // The exponent of a power of two is its index.
    const VI exponent = hn::ShiftRight<23>(hn::BitCast(di, hn::ConvertTo(df, lowest)));
    const VI index = hn::IfThenElseZero(steps, hn::Sub(exponent, hn::Set(di, 127)));
    const VI at = hn::Add(hn::Mul(index, hn::Set(di, static_cast<int32_t>(N))), hn::Iota(di, 0));
    const V xi = hn::GatherIndex(df, x, at), level = hn::GatherIndex(df, state.level, at);
    const V wi = hn::Mul(xi, xi), wx = hn::Mul(wi, xi);
    const V rest_xl = hn::Sub(sum_xl, hn::Mul(wx, level));
    const V rest_l2 = hn::Sub(sum_l2, hn::Mul(hn::Mul(wi, level), level));
    const V other = hn::ConvertTo(df, NearestCode(df, hn::Div(hn::Mul(xi, rest_l2), rest_xl), -half, half - 1));
    const V other_xl = hn::Mul(wx, other), other_l2 = hn::Mul(hn::Mul(wi, other), other);
    const V xl = hn::Add(rest_xl, other_xl), l2 = hn::Add(rest_l2, other_l2);
    const auto valid = hn::And(hn::And(hn::Gt(rest_xl, zero), hn::Ne(other, level)), hn::Gt(l2, zero));
    const auto merit = hn::Gt(Merit(xl, sum_l2), Merit(sum_xl, l2));
    const auto better = hn::And(hn::And(hn::RebindMask(df, steps), valid), merit);
    if (hn::AllFalse(df, better)) continue;
    sum_xl = hn::IfThenElse(better, xl, sum_xl);
    sum_l2 = hn::IfThenElse(better, l2, sum_l2);
    changed = hn::Or(changed, better);
    const VI where = hn::IfThenElse(hn::RebindMask(di, better), index, hn::Set(di, -1));
    for (size_t i = 0; i < kNum; ++i) {
      const auto here = hn::RebindMask(df, hn::Eq(where, hn::Set(di, static_cast<int32_t>(i))));
      hn::Store(hn::IfThenElse(here, other, hn::Load(df, state.level + i * N)), df, state.level + i * N);
      hn::Store(hn::IfThenElse(here, other_xl, hn::Load(df, state.xl + i * N)), df, state.xl + i * N);
      hn::Store(hn::IfThenElse(here, other_l2, hn::Load(df, state.l2 + i * N)), df, state.l2 + i * N);
    }
    bits = Unsettled<kNum>(df, half, x, state, sum_xl, sum_l2);
  }
}

// reference::FitByDescent if kDescend. Otherwise only groups that the descent would not change are complete; the other
// groups are the lanes of the returned mask: a fifth of all with normally distributed weights, so gathering them pays
// off. Cost: 25 instructions per weight, plus Descend.
template <size_t kNum, bool kDescend, class DF, class V = hn::Vec<DF>>
HWY_NOINLINE hn::Mask<DF> FitByDescent(DF df, int half, const float* HWY_RESTRICT x, V& scale_out, uint32_t* words) {
  const hn::RebindToSigned<DF> di;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  const V extreme = Extreme<kNum>(df, x);
  const auto negligible = hn::Lt(hn::Abs(extreme), hn::Set(df, kNegligible));
  const V divisor = hn::IfThenElse(negligible, hn::Set(df, 1.0f), extreme);
  const V multiplier = hn::Div(hn::Set(df, static_cast<float>(-half)), divisor);
  Descent<kNum> state;
  V sum_xl = zero, sum_l2 = zero;
  for (size_t i = 0; i < kNum * N; i += N) {
    const V xi = hn::Load(df, x + i), wi = hn::Mul(xi, xi);
    const V level = NearestFloat(df, hn::Mul(multiplier, xi), -half, half - 1);
    const V xl = hn::Mul(hn::Mul(wi, xi), level), l2 = hn::Mul(hn::Mul(wi, level), level);
    sum_xl = hn::Add(sum_xl, xl);
    sum_l2 = hn::Add(sum_l2, l2);
    hn::Store(level, df, state.level + i);
    hn::Store(xl, df, state.xl + i);
    hn::Store(l2, df, state.l2 + i);
  }
  auto bits = Unsettled<kNum>(df, half, x, state, sum_xl, sum_l2);
  if constexpr (kDescend) Descend<kNum>(df, half, x, bits, state, sum_xl, sum_l2);
  const auto sums = hn::IfThenElseZero(hn::Gt(sum_l2, zero), hn::Div(sum_xl, sum_l2));
  scale_out = hn::IfThenZeroElse(negligible, sums);
  const V bias = hn::Set(df, static_cast<float>(half));
  for (size_t i = 0; i < kNum; i += 4) {
    const float* from = state.level + i * N;
    const V c0 = hn::IfThenZeroElse(negligible, hn::Add(hn::Load(df, from), bias));
    const V c1 = hn::IfThenZeroElse(negligible, hn::Add(hn::Load(df, from + N), bias));
    const V c2 = hn::IfThenZeroElse(negligible, hn::Add(hn::Load(df, from + 2 * N), bias));
    const V c3 = hn::IfThenZeroElse(negligible, hn::Add(hn::Load(df, from + 3 * N), bias));
    StoreCodes(di, hn::ConvertTo(di, c0), hn::ConvertTo(di, c1), hn::ConvertTo(di, c2), hn::ConvertTo(di, c3),
               words + i / 4 * N);
  }
  return hn::AndNot(negligible, hn::RebindMask(df, hn::Ne(bits, hn::Zero(di))));
}

// reference::FitByDescent for kGroups groups of each lane: group j of lane r is x[(j * kNum + i) * N + r], its scale is
// scales[j * N + r]. Groups that need a descent are gathered from all lanes and done together.
template <size_t kGroups, size_t kNum, class DF>
HWY_INLINE void FitGroupsByDescent(DF df, int half, const float* HWY_RESTRICT x, float* HWY_RESTRICT scales,
                                   uint32_t* HWY_RESTRICT words) {
  const hn::RebindToSigned<DF> di;
  using V = hn::Vec<DF>;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN int32_t group[(kGroups + 1) * kMaxGroups], lane[(kGroups + 1) * kMaxGroups];
  size_t num = 0;
  for (size_t j = 0; j < kGroups; ++j) {
    const size_t at = j * kNum * N;
    V scale;
    const auto more = FitByDescent<kNum, false>(df, half, x + at, scale, words + at / 4);
    hn::Store(scale, df, scales + j * N);
    hn::StoreU(hn::Set(di, static_cast<int32_t>(j)), di, group + num);
    num += hn::CompressStore(hn::Iota(di, 0), hn::RebindMask(di, more), di, lane + num);
  }
  HWY_ALIGN float gathered[kNum * kMaxGroups];
  HWY_ALIGN float found[kMaxGroups];
  HWY_ALIGN uint32_t codes[kNum / 4 * kMaxGroups];
  for (size_t first = 0; first < num; first += N) {
    const size_t count = HWY_MIN(N, num - first);
    const auto j = hn::LoadN(di, group + first, count), r = hn::LoadN(di, lane + first, count);
    const auto at = hn::Add(hn::Mul(j, hn::Set(di, static_cast<int32_t>(kNum * N))), r);
    for (size_t i = 0; i < kNum; ++i) hn::Store(hn::GatherIndex(df, x + i * N, at), df, gathered + i * N);
    V scale;
    FitByDescent<kNum, true>(df, half, gathered, scale, codes);
    hn::Store(scale, df, found);
    for (size_t k = 0; k < count; ++k) {
      const size_t to = static_cast<size_t>(group[first + k]), row = static_cast<size_t>(lane[first + k]);
      scales[to * N + row] = found[k];
      for (size_t m = 0; m < kNum / 4; ++m) words[(to * kNum / 4 + m) * N + row] = codes[m * N + k];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_DESCENT_INL_H_
