// reference::FitAffine for many groups, one per lane, as in search-inl.h. Used by Q2_K, Q4_K, Q5_K, and by Q4_1 and
// Q5_1 with importances.
//
// Each multiplier depends on the result of the previous one, and each sum on the previous weight. A single vector of
// groups would mostly wait. Two vectors are fitted in turn: while one divides and compares, the other sums. This is
// 1.15 to 1.3 times as fast.
#if defined(LOWBIT_FORMATS_AFFINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_AFFINE_INL_H_
#undef LOWBIT_FORMATS_AFFINE_INL_H_
#else
#define LOWBIT_FORMATS_AFFINE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// Number of vectors of groups that FitAffine fits at once.
constexpr size_t kFitWays = 2;

// State of one vector. Call Start, then Try and Judge for each multiplier, then Finish.
template <size_t kNum, bool kAbsolute>
class AffineSearch {
 public:
  using DF = SearchTag;
  using V = hn::Vec<DF>;
  using M = hn::Mask<DF>;

  // Constructors that the compiler writes itself cannot use the SIMD target's instructions: on ARM, vectors in them fail.
  HWY_INLINE AffineSearch() {}

  HWY_INLINE void Start(const float* x, const float* w) {
    const DF df;
    const size_t N = hn::Lanes(df);
    x_ = x;
    w_ = w;
    V low = hn::Load(df, x), high = low, sum_w = hn::Load(df, w), sum_x = hn::Mul(sum_w, low);
    for (size_t i = N; i < kNum * N; i += N) {
      const V xi = hn::Load(df, x + i), wi = hn::Load(df, w + i);
      low = hn::IfThenElse(hn::Lt(xi, low), xi, low);
      high = hn::Max(high, xi);
      sum_w = hn::Add(sum_w, wi);
      sum_x = hn::Add(sum_x, hn::Mul(wi, xi));
    }
    low_ = low;
    high_ = high;
    sum_w_ = sum_w;
    sum_x_ = sum_x;
    base_ = hn::IfThenElse(hn::Gt(low, hn::Zero(df)), hn::Zero(df), low);
    flat_ = hn::Eq(base_, high);
    flat_minimum_ = hn::Neg(base_);
  }

  // Computes the levels for a multiplier, and the scale and base that fit them best. kFirst: the multiplier fixes the
  // scale.
  template <bool kFirst>
  HWY_INLINE void Try(int top, float factor) {
    const DF df;
    const V one = hn::Set(df, 1.0f);
    const V range = hn::IfThenElse(flat_, one, hn::Sub(high_, base_));
    multiplier_ = hn::Div(hn::Set(df, factor), range);
    V sum_l, sum_l2, sum_xl;
    if (InRange(df, multiplier_, hn::Sub(low_, base_)) && InRange(df, multiplier_, hn::Sub(high_, base_))) {
      Levels<false>(top, sum_l, sum_l2, sum_xl);
    } else {
      Levels<true>(top, sum_l, sum_l2, sum_xl);
    }
    if constexpr (kFirst) {
      this_scale_ = hn::Div(one, multiplier_);
      this_base_ = base_;
      return;
    }
    determinant_ = hn::Sub(hn::Mul(sum_w_, sum_l2), hn::Mul(sum_l, sum_l));
    this_scale_ = hn::Div(hn::Sub(hn::Mul(sum_w_, sum_xl), hn::Mul(sum_x_, sum_l)), determinant_);
    this_base_ = hn::Div(hn::Sub(hn::Mul(sum_l2, sum_x_), hn::Mul(sum_l, sum_xl)), determinant_);
    const auto positive = hn::Gt(this_base_, hn::Zero(df));
    if (!hn::AllFalse(df, positive)) {
      this_base_ = hn::IfThenZeroElse(positive, this_base_);
      this_scale_ = hn::IfThenElse(positive, hn::Div(sum_xl, sum_l2), this_scale_);
    }
  }

  // Keeps the result of Try in lanes where its error is the smallest so far.
  template <bool kFirst>
  HWY_INLINE void Judge() {
    const DF df;
    const V error = Error();
    const M better =
        kFirst ? hn::Eq(hn::Zero(df), hn::Zero(df)) : hn::And(hn::Gt(determinant_, hn::Zero(df)), hn::Lt(error, best_));
    best_ = kFirst ? error : hn::IfThenElse(better, error, best_);
    scale_ = kFirst ? this_scale_ : hn::IfThenElse(better, this_scale_, scale_);
    best_multiplier_ = kFirst ? multiplier_ : hn::IfThenElse(better, multiplier_, best_multiplier_);
    best_from_ = kFirst ? base_ : hn::IfThenElse(better, base_, best_from_);
    base_ = hn::IfThenElse(better, this_base_, base_);
  }

  HWY_INLINE void Finish(int top, float* scale, float* minimum, uint32_t* words) const {
    const DF df;
    hn::Store(hn::IfThenZeroElse(flat_, scale_), df, scale);
    hn::Store(hn::IfThenElse(flat_, flat_minimum_, hn::Neg(base_)), df, minimum);
    StoreScaledCodes<kNum>(df, x_, best_from_, best_multiplier_, flat_, 0, top, words);
  }

 private:
  // The levels for a multiplier, and the sums of the normal equations. kAnyInput: scaled weights may exceed the range
  // of NearestFloat.
  template <bool kAnyInput>
  HWY_INLINE void Levels(int top, V& sum_l, V& sum_l2, V& sum_xl) {
    const DF df;
    const size_t N = hn::Lanes(df);
    const V multiplier = multiplier_, base = base_;
    V l1 = hn::Zero(df), l2 = hn::Zero(df), xl = hn::Zero(df);
    HWY_UNROLL(4)
    for (size_t i = 0; i < kNum * N; i += N) {
      const V xi = hn::Load(df, x_ + i);
      const V scaled = hn::Mul(multiplier, hn::Sub(xi, base));
      V level;
      if constexpr (kAnyInput) {
        level = hn::ConvertTo(df, NearestCode(df, scaled, 0, top));
      } else {
        level = NearestFloat(df, scaled, 0, top);
      }
      const V wl = hn::Mul(hn::Load(df, w_ + i), level);
      hn::Store(level, df, levels_ + i);
      l1 = hn::Add(l1, wl);
      l2 = hn::Add(l2, hn::Mul(wl, level));
      xl = hn::Add(xl, hn::Mul(wl, xi));
    }
    sum_l = l1;
    sum_l2 = l2;
    sum_xl = xl;
  }

  // sum w * |scale * level + base - x|, or the sum of w times the square.
  HWY_INLINE V Error() const {
    const DF df;
    const size_t N = hn::Lanes(df);
    const V scale = this_scale_, base = this_base_;
    V error = hn::Zero(df);
    HWY_UNROLL(4)
    for (size_t i = 0; i < kNum * N; i += N) {
      const V value = hn::Add(hn::Mul(scale, hn::Load(df, levels_ + i)), base);
      const V difference = hn::Sub(value, hn::Load(df, x_ + i));
      const V size = kAbsolute ? hn::Abs(difference) : hn::Mul(difference, difference);
      error = hn::Add(error, hn::Mul(hn::Load(df, w_ + i), size));
    }
    return error;
  }

  const float* x_;
  const float* w_;
  M flat_;
  V low_, high_, sum_w_, sum_x_, flat_minimum_;
  V base_, multiplier_, determinant_, this_scale_, this_base_;
  V best_, scale_, best_multiplier_, best_from_;
  HWY_ALIGN float levels_[kNum * kMaxGroups];
};

// Group v * N + lane of kFitWays * N: its weights are x[v * kNum * N + i * N + lane], its scale is scales[v * N +
// lane], and its words start at words[v * kNum / 4 * N]. Cost: 22 * (grid.last + 1) instructions per weight.
template <size_t kNum, bool kAbsolute>
HWY_NOINLINE void FitAffine(int top, AffineGrid grid, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w,
                            float* HWY_RESTRICT scales, float* HWY_RESTRICT minima, uint32_t* HWY_RESTRICT words) {
  const size_t N = hn::Lanes(SearchTag());
  AffineSearch<kNum, kAbsolute> a, b;
  a.Start(x, w);
  b.Start(x + kNum * N, w + kNum * N);
  a.template Try<true>(top, static_cast<float>(top));
  b.template Try<true>(top, static_cast<float>(top));
  a.template Judge<true>();
  b.template Judge<true>();
  for (int t = 0; t <= grid.last; ++t) {
    const float factor = grid.first + grid.step * static_cast<float>(t) + top;
    a.template Try<false>(top, factor);
    b.template Try<false>(top, factor);
    a.template Judge<false>();
    b.template Judge<false>();
  }
  a.Finish(top, scales, minima, words);
  b.Finish(top, scales + N, minima + N, words + kNum / 4 * N);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_AFFINE_INL_H_
