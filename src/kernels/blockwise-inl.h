// Finds the scale, zero point and codes of as many blocks as a vector has lanes: weight i of the block in `lane` is
// x[i * N + lane]. Every lane's operations have the same order on every target, and nothing is fused.
#if defined(LOWBIT_KERNELS_BLOCKWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_KERNELS_BLOCKWISE_INL_H_
#undef LOWBIT_KERNELS_BLOCKWISE_INL_H_
#else
#define LOWBIT_KERNELS_BLOCKWISE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/search/search-inl.h"
#include "src/kernels/blockwise.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kMostBlock = 256;

// One block in each lane.
struct BlockTile {
  using DF = SearchTag;
  using V = hn::Vec<DF>;

  HWY_ALIGN float x[kMostBlock * kMaxGroups];     // the weights
  HWY_ALIGN float unit[kMostBlock * kMaxGroups];  // the same times a power of two: the largest is in [1, 4)
  HWY_ALIGN float w[kMostBlock * kMaxGroups];     // importances; only if weighted
  HWY_ALIGN float wx[kMostBlock * kMaxGroups];    // importance * unit; only if weighted
  HWY_ALIGN float codes[kMostBlock * kMaxGroups];
  HWY_ALIGN float trial[kMostBlock * kMaxGroups];
  HWY_ALIGN float factor[kMaxGroups];  // the power of two
  HWY_ALIGN float scale[kMaxGroups];
  HWY_ALIGN float zero_point[kMaxGroups];
  size_t num;  // weights in the block
  bool weighted;
};

// Rounds to integer, ties to even, for |v| < 2^22.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V NearestEven(DF df, V v) {
  const V bias = hn::Set(df, kRoundingBias);
  return hn::Sub(hn::Add(v, bias), bias);
}

// Rounds to integer, ties up, for v in [0, 2^22).
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V NearestUp(DF df, V v) {
  const V whole = hn::Trunc(v);
  return hn::Add(whole, hn::IfThenElseZero(hn::Ge(hn::Sub(v, whole), hn::Set(df, 0.5f)), hn::Set(df, 1.0f)));
}

template <class V>
HWY_INLINE V Clamped(V v, V low, V high) {
  return hn::Max(low, hn::Min(high, v));
}

// 1 / v, or 0 where that is not finite.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V FiniteInverse(DF df, V v) {
  const V inverse = hn::Div(hn::Set(df, 1.0f), v);
  return hn::IfThenElseZero(hn::IsFinite(inverse), inverse);
}

// The scale as the file has it.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V StoredScale(DF df, const BlockwiseSpec& spec, V scale) {
  if (!spec.half_scales) return scale;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const V most = hn::Set(df, 65504.0f);
  return hn::PromoteTo(df, hn::DemoteTo(dh, Clamped(scale, hn::Neg(most), most)));
}

template <class V>
struct Range {
  V low, high;
};

template <class DF, class V = hn::Vec<DF>>
HWY_INLINE Range<V> RangeOf(DF df, const float* x, size_t num) {
  const size_t N = hn::Lanes(df);
  Range<V> range = {hn::Load(df, x), hn::Load(df, x)};
  for (size_t i = 1; i < num; ++i) {
    const V xi = hn::Load(df, x + i * N);
    range.low = hn::Min(range.low, xi);
    range.high = hn::Max(range.high, xi);
  }
  return range;
}

template <class V>
HWY_INLINE V LargerMagnitude(Range<V> range) {
  return hn::IfThenElse(hn::Gt(hn::Abs(range.high), hn::Abs(range.low)), range.high, range.low);
}

// Sets `unit` and `factor`. `magnitudes`: the bits of the largest magnitude in each lane.
template <class VU>
HWY_INLINE void Normalize(BlockTile& tile, VU magnitudes) {
  const SearchTag df;
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const auto exponent = hn::ShiftRight<23>(magnitudes);
  const auto inverse = hn::Sub(hn::Set(du, 254), hn::Min(exponent, hn::Set(du, 253)));
  const auto factor = hn::BitCast(df, hn::ShiftLeft<23>(inverse));
  hn::Store(factor, df, tile.factor);
  for (size_t i = 0; i < tile.num; ++i) {
    const auto unit = hn::Mul(hn::Load(df, tile.x + i * N), factor);
    hn::Store(unit, df, tile.unit + i * N);
    if (tile.weighted) hn::Store(hn::Mul(unit, hn::Load(df, tile.w + i * N)), df, tile.wx + i * N);
  }
}

// sum w * (unit - scale * (code - zero_point))^2, with the scale times `factor`.
template <bool kWeighted, class V>
HWY_INLINE V SquaredError(const BlockTile& tile, const float* codes, V unit_scale, V zero_point) {
  const SearchTag df;
  const size_t N = hn::Lanes(df);
  V error = hn::Zero(df);
  for (size_t i = 0; i < tile.num; ++i) {
    const V level = hn::Sub(hn::Load(df, codes + i * N), zero_point);
    const V difference = hn::Sub(hn::Load(df, tile.unit + i * N), hn::Mul(unit_scale, level));
    V square = hn::Mul(difference, difference);
    if constexpr (kWeighted) square = hn::Mul(square, hn::Load(df, tile.w + i * N));
    error = hn::Add(error, square);
  }
  return error;
}

// Method kRound: onnxruntime's operations in their order, on the weights as they are.
inline void RoundBlocks(BlockTile& tile, const BlockwiseSpec& spec) {
  const SearchTag df;
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const float half = static_cast<float>(1 << (spec.bits - 1));
  const V zero = hn::Zero(df), top = hn::Set(df, 2 * half - 1);
  Range<V> range = RangeOf(df, tile.x, tile.num);
  V scale, zero_point;
  if (spec.symmetric) {
    scale = hn::Div(LargerMagnitude(range), hn::Set(df, -half));
    zero_point = hn::Set(df, half);
  } else {
    range = {hn::Min(range.low, zero), hn::Max(range.high, zero)};
    scale = hn::Div(hn::Sub(range.high, range.low), top);
    const V halves = hn::Sub(hn::Div(range.high, top), hn::Div(range.low, top));
    scale = hn::IfThenElse(hn::IsFinite(scale), scale, halves);
  }
  const V inverse = FiniteInverse(df, StoredScale(df, spec, scale));
  scale = hn::IfThenElse(hn::Eq(inverse, zero), hn::Mul(scale, zero), scale);  // its inverse is infinite: a signed zero
  if (!spec.symmetric) {
    const V exact = hn::Sub(zero, hn::Div(range.low, scale));
    zero_point = NearestUp(df, Clamped(exact, zero, top));
    zero_point = hn::IfThenZeroElse(hn::Eq(scale, zero), zero_point);
  }
  for (size_t i = 0; i < tile.num; ++i) {
    const V code = hn::Add(hn::Mul(hn::Load(df, tile.x + i * N), inverse), zero_point);
    hn::Store(NearestUp(df, Clamped(code, zero, top)), df, tile.codes + i * N);
  }
  hn::Store(StoredScale(df, spec, scale), df, tile.scale);
  hn::Store(zero_point, df, tile.zero_point);
}

// A multiplier and the levels that it may give: codes minus the zero point.
template <class V>
struct Candidate {
  HWY_INLINE Candidate() {}  // see AffineSearch (src/formats/search/affine-inl.h)
  HWY_INLINE Candidate(V multiplier, V low, V high) : multiplier(multiplier), low(low), high(high) {}

  V multiplier, low, high;
};

// For kTries candidates: sum w * x * level and sum w * level^2. They share the loads.
template <size_t kTries, bool kWeighted, class V>
HWY_INLINE void LevelSums(const BlockTile& tile, const Candidate<V>* tries, V* sum_xl, V* sum_l2) {
  const SearchTag df;
  const size_t N = hn::Lanes(df);
  const V bias = hn::Set(df, kRoundingBias);
  V xl[kTries], l2[kTries];
  for (size_t k = 0; k < kTries; ++k) xl[k] = l2[k] = hn::Zero(df);
  for (size_t i = 0; i < tile.num; ++i) {
    const V x = hn::Load(df, tile.unit + i * N);
    const V wx = kWeighted ? hn::Load(df, tile.wx + i * N) : x;
    const V w = kWeighted ? hn::Load(df, tile.w + i * N) : x;
    for (size_t k = 0; k < kTries; ++k) {
      const V v = Clamped(hn::Mul(x, tries[k].multiplier), tries[k].low, tries[k].high);
      const V level = hn::Sub(hn::Add(v, bias), bias);
      xl[k] = hn::Add(xl[k], hn::Mul(wx, level));
      l2[k] = hn::Add(l2[k], kWeighted ? hn::Mul(hn::Mul(w, level), level) : hn::Mul(level, level));
    }
  }
  for (size_t k = 0; k < kTries; ++k) {
    sum_xl[k] = xl[k];
    sum_l2[k] = l2[k];
  }
}

// The best candidate so far. The squared error of the best scale for given levels is sum w * x^2 - merit, with the merit
// sum_xl^2 / sum_l2.
template <class V>
struct BestLevels {
  V merit, scale, low, high;

  HWY_INLINE void Judge(const Candidate<V>& tried, V sum_xl, V sum_l2) {
    const V quotient = hn::Div(sum_xl, sum_l2);
    const V found = hn::Mul(quotient, sum_xl);
    const auto better = hn::Gt(found, merit);  // false for 0 / 0
    merit = hn::IfThenElse(better, found, merit);
    scale = hn::IfThenElse(better, quotient, scale);
    low = hn::IfThenElse(better, tried.low, low);
    high = hn::IfThenElse(better, tried.high, high);
  }
};

constexpr size_t kTriesAtOnce = 4;

template <bool kWeighted, class V>
HWY_INLINE void TryAll(const BlockTile& tile, const Candidate<V>* tries, BestLevels<V>& best) {
  V sum_xl[kTriesAtOnce], sum_l2[kTriesAtOnce];
  LevelSums<kTriesAtOnce, kWeighted>(tile, tries, sum_xl, sum_l2);
  for (size_t k = 0; k < kTriesAtOnce; ++k) best.Judge(tries[k], sum_xl[k], sum_l2[k]);
}

// Method kSearch. Tries multipliers around the one that maps the range to the levels: from 0.9 levels fewer to some
// levels more, where the ends are cut. Without a zero point, both signs; with one, three zero points. Then fits scale
// and levels to each other. Keeps the result of kRound in lanes where it is no worse.
// Cost: 9 instructions for each try.
template <bool kWeighted>
HWY_NOINLINE void SearchBlocks(BlockTile& tile, const BlockwiseSpec& spec) {
  const SearchTag df;
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const float half = static_cast<float>(1 << (spec.bits - 1)), highest = 2 * half - 1;
  const V zero = hn::Zero(df), top = hn::Set(df, highest);
  const float first = -0.9f, last = spec.bits == 8 ? 1.5f : 3.0f;
  constexpr int kSteps = 8;  // more steps make the error smaller by less than 3e-4 of it
  const float step = (last - first) / (kSteps - 1);

  RoundBlocks(tile, spec);
  Range<V> range = RangeOf(df, tile.unit, tile.num);
  BestLevels<V> best = {zero, zero, zero, zero};
  if (spec.symmetric) {
    const V extreme = LargerMagnitude(range);
    const V inverse = FiniteInverse(df, extreme);
    const V low = hn::Set(df, -half), high = hn::Set(df, half - 1);
    for (int t = 0; t < kSteps; t += 2) {
      Candidate<V> tries[kTriesAtOnce];
      for (int k = 0; k < 2; ++k) {
        const float by = first + step * static_cast<float>(t + k);
        const V multiplier = hn::Mul(hn::Set(df, half + by * 0.5f), inverse);
        tries[2 * k] = {hn::Neg(multiplier), low, high};
        tries[2 * k + 1] = {multiplier, low, high};
      }
      TryAll<kWeighted>(tile, tries, best);
    }
  } else {
    range = {hn::Min(range.low, zero), hn::Max(range.high, zero)};
    const V inverse = FiniteInverse(df, hn::Sub(range.high, range.low));
    Candidate<V> tries[kTriesAtOnce];
    size_t waiting = 0;
    for (int t = 0; t < kSteps; ++t) {
      const float by = first + step * static_cast<float>(t);
      const V multiplier = hn::Mul(hn::Set(df, highest + by), inverse);
      const V exact = hn::Sub(hn::Neg(hn::Mul(range.low, multiplier)), hn::Set(df, by * 0.5f));
      for (int shift = -1; shift <= 1; ++shift) {
        const V rounded = NearestEven(df, hn::Add(exact, hn::Set(df, static_cast<float>(shift))));
        const V zero_point = Clamped(rounded, zero, top);
        tries[waiting++] = {multiplier, hn::Neg(zero_point), hn::Sub(top, zero_point)};
        if (waiting == kTriesAtOnce) {
          TryAll<kWeighted>(tile, tries, best);
          waiting = 0;
        }
      }
    }
    static_assert(kSteps * 3 % kTriesAtOnce == 0);
  }
  for (int round = 0; round < 3; ++round) {
    const Candidate<V> fitted = {FiniteInverse(df, best.scale), best.low, best.high};
    V sum_xl, sum_l2;
    LevelSums<1, kWeighted>(tile, &fitted, &sum_xl, &sum_l2);
    best.Judge(fitted, sum_xl, sum_l2);
  }

  // The codes for the scale as it is stored, and their error.
  const V factor = hn::Load(df, tile.factor);
  const V scale = StoredScale(df, spec, hn::Div(best.scale, factor));
  const V unit_scale = hn::Mul(scale, factor);
  const V multiplier = FiniteInverse(df, unit_scale), zero_point = hn::Neg(best.low);
  for (size_t i = 0; i < tile.num; ++i) {
    const V v = Clamped(hn::Mul(hn::Load(df, tile.unit + i * N), multiplier), best.low, best.high);
    hn::Store(hn::Add(NearestEven(df, v), zero_point), df, tile.trial + i * N);
  }
  const V found = SquaredError<kWeighted>(tile, tile.trial, unit_scale, zero_point);
  const V plain_scale = hn::Load(df, tile.scale), plain_zero = hn::Load(df, tile.zero_point);
  const V plain = SquaredError<kWeighted>(tile, tile.codes, hn::Mul(plain_scale, factor), plain_zero);
  const auto better = hn::And(hn::Lt(found, plain), hn::IsFinite(scale));
  hn::Store(hn::IfThenElse(better, scale, plain_scale), df, tile.scale);
  hn::Store(hn::IfThenElse(better, zero_point, plain_zero), df, tile.zero_point);
  for (size_t i = 0; i < tile.num; ++i) {
    const V plain_code = hn::Load(df, tile.codes + i * N);
    hn::Store(hn::IfThenElse(better, hn::Load(df, tile.trial + i * N), plain_code), df, tile.codes + i * N);
  }
}

// Method kHqq: half-quadratic quantization. Minimises sum |x - q|^p with p = 11/16, so that outliers count less than in
// the squared error. Alternates between the differences, shrunk, and the scale and zero point that fit the weights
// without them. Differences are in steps of the scale. The power is made of square roots, which every target rounds
// alike. Starts with the result of kRound, and keeps it in lanes where nothing better is found.
HWY_NOINLINE inline void HqqBlocks(BlockTile& tile, const BlockwiseSpec& spec) {
  const SearchTag df;
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df), top = hn::Set(df, static_cast<float>((1 << spec.bits) - 1));
  const V count = hn::Set(df, static_cast<float>(tile.num)), least = hn::Set(df, 1e-8f);
  constexpr int kRounds = 20;
  RoundBlocks(tile, spec);
  const V factor = hn::Load(df, tile.factor);
  V scale = hn::Load(df, tile.scale), zero_point = hn::Load(df, tile.zero_point);
  V best_scale = scale, best_zero_point = zero_point, best = hn::Set(df, hwy::HighestValue<float>());
  float beta = 10.0f;
  for (int round = 0; round <= kRounds; ++round) {
    const V unit_scale = hn::Mul(scale, factor), multiplier = FiniteInverse(df, unit_scale);
    const V strength = hn::Set(df, 1.0f / beta);
    const V low = hn::Neg(zero_point), high = hn::Sub(top, zero_point);
    V sum_xl = zero, sum_l2 = zero, shift = zero, error = zero;
    for (size_t i = 0; i < tile.num; ++i) {
      const V x = hn::Mul(hn::Load(df, tile.unit + i * N), multiplier);
      const V level = NearestEven(df, Clamped(x, low, high));
      const V difference = hn::Sub(x, level), size = hn::Abs(difference);
      const V root = hn::Sqrt(hn::Sqrt(hn::Add(size, least)));
      const V power = hn::Mul(root, hn::Sqrt(hn::Sqrt(root)));  // size^(1 - p)
      const V shrunk = hn::CopySign(hn::Max(zero, hn::Sub(size, hn::Div(strength, power))), difference);
      const V rest = hn::Sub(x, shrunk);
      sum_xl = hn::Add(sum_xl, hn::Mul(rest, level));
      sum_l2 = hn::Add(sum_l2, hn::Mul(level, level));
      shift = hn::Add(shift, hn::Sub(level, rest));
      error = hn::Add(error, hn::Div(size, power));
    }
    // In steps of the scale; the p-th power of the scale makes it an error of weights.
    const V root = hn::Sqrt(hn::Sqrt(unit_scale));
    error = hn::Div(hn::Mul(error, unit_scale), hn::Mul(root, hn::Sqrt(hn::Sqrt(root))));
    const auto better = hn::Lt(error, best);
    best = hn::IfThenElse(better, error, best);
    best_scale = hn::IfThenElse(better, scale, best_scale);
    best_zero_point = hn::IfThenElse(better, zero_point, best_zero_point);
    const V fitted = StoredScale(df, spec, hn::Mul(scale, hn::Div(sum_xl, sum_l2)));
    scale = hn::IfThenElse(hn::Gt(fitted, zero), fitted, scale);
    zero_point = Clamped(NearestEven(df, hn::Add(zero_point, hn::Div(shift, count))), zero, top);
    beta *= 1.01f;
  }
  const V multiplier = FiniteInverse(df, hn::Mul(best_scale, factor));
  for (size_t i = 0; i < tile.num; ++i) {
    const V x = hn::Mul(hn::Load(df, tile.unit + i * N), multiplier);
    const V level = NearestEven(df, Clamped(x, hn::Neg(best_zero_point), hn::Sub(top, best_zero_point)));
    hn::Store(hn::Add(level, best_zero_point), df, tile.codes + i * N);
  }
  hn::Store(best_scale, df, tile.scale);
  hn::Store(best_zero_point, df, tile.zero_point);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_KERNELS_BLOCKWISE_INL_H_
