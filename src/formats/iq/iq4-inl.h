// Shared by IQ4_NL and IQ4_XS: sixteen levels, denser near zero; the search for the scale of a group of 32 weights;
// nibbles.
//
//   nibbles[16]  byte j: code j in bits 0-3, code j + 16 in bits 4-7;  w[i] = scale * kLevels[code[i]]
//
// The search tries 16 scales and needs the nearest level of every scaled weight for each. The reference bisects. Here a
// rounded multiple of the weight selects a bucket. Buckets are so narrow that each has one or two of the borders
// between levels. Tables by bucket (register permutes) have these borders and the adjacent levels. Instructions per
// weight and scale with 16 lanes: 1 product, 2 for the bucket, 3 look-ups, 1 comparison and selection, 5 for the two
// sums. The reference's bisection alone takes six branches that are hard to predict.
//
// Sources: ggml-common.h (kvalues_iq4nl), best_index_int8, quantize_row_iq4_nl_impl, dequantize_row_iq4_nl.
#if defined(LOWBIT_FORMATS_IQ4_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ4_INL_H_
#undef LOWBIT_FORMATS_IQ4_INL_H_
#else
#define LOWBIT_FORMATS_IQ4_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <cmath>

#include "hwy/highway.h"
#include "src/formats/decode-inl.h"
#include "src/formats/format-inl.h"
#include "src/formats/kquant-inl.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq4 {

constexpr size_t kGroupSize = 32;
constexpr size_t kNumLevels = 16, kNumCuts = kNumLevels - 1;
HWY_ALIGN constexpr int8_t kLevels[kNumLevels] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                  1,    13,   25,  38,  53,  69,  89,  113};
constexpr int kTries = 7;  // multipliers to try above and below the one that gives the largest weight the lowest level

// From here on level c + 1 is at least as near as level c. Near a cut the differences of a weight and its two
// neighbours are exact in the reference, so comparing with the cut gives the same decision.
constexpr float Cut(size_t c) { return 0.5f * static_cast<float>(kLevels[c] + kLevels[c + 1]); }

// ------------------------------------------------------------------------------------------------- scalar reference

// NaN, which results from products that overflow, gets the last code.
HWY_INLINE uint8_t ReferenceCode(float x) {
  uint8_t code = 0;
  while (code < kNumCuts && !(x < Cut(code))) ++code;
  return code;
}

// Minimises sum w * (x - scale * level)^2. Returns 0 if all weights are negligible.
inline float ReferenceScale(const float* x, const float* w) {
  const float extreme = reference::Extreme(kGroupSize, x);
  if (std::fabs(extreme) < kNegligible) return 0.0f;
  float scale = 0.0f, best = 0.0f;
  for (int t = -kTries - 1; t <= kTries; ++t) {
    const bool first = t < -kTries;
    const float multiplier = first ? 1.0f / (-extreme / kLevels[0]) : static_cast<float>(t + kLevels[0]) / extreme;
    float sum_xl = 0.0f, sum_l2 = 0.0f;
    for (size_t i = 0; i < kGroupSize; ++i) {
      const float level = kLevels[ReferenceCode(multiplier * x[i])];
      sum_xl += w[i] * level * x[i];
      sum_l2 += w[i] * level * level;
    }
    if (first ? !(sum_l2 > 0.0f) : !(sum_l2 > 0.0f && sum_xl * sum_xl > best * sum_l2)) continue;
    scale = sum_xl / sum_l2;
    best = scale * sum_xl;
  }
  return scale;
}

// ------------------------------------------------------------------------------------------------------ vector code

// For buckets b = nearest(x / width) + kBuckets / 2: the cuts in bucket b, in order, padded with numbers larger than
// any weight; and the values for weights before the first cut, between cuts and after the last.
template <size_t kBuckets, size_t kCuts>
struct BucketTables {
  float cut[kCuts][kBuckets];
  float level[kCuts + 1][kBuckets];
  float code[kCuts + 1][kBuckets];
};

template <size_t kBuckets, size_t kCuts>
constexpr BucketTables<kBuckets, kCuts> MakeTables(double width) {
  BucketTables<kBuckets, kCuts> tables = {};
  size_t first = 0;
  for (size_t b = 0; b < kBuckets; ++b) {
    const double end = (static_cast<double>(b) - kBuckets / 2 + 0.5) * width;
    size_t last = first;
    while (last < kNumCuts && (b + 1 == kBuckets || Cut(last) < end)) ++last;
    for (size_t c = 0; c <= kCuts; ++c) {
      const size_t code = HWY_MIN(first + c, last);
      tables.level[c][b] = kLevels[code];
      tables.code[c][b] = static_cast<float>(code);
      if (c < kCuts) tables.cut[c][b] = first + c < last ? Cut(first + c) : 3e38f;
    }
    first = last;
  }
  return tables;
}

// With 16 lanes, two registers are a table of 32 buckets, which covers the range of the search. With 8 lanes the table
// is one register, and the outer buckets are unbounded.
template <size_t kLanes>
struct Buckets;
template <>
struct Buckets<16> {
  static constexpr double kWidth = 11.75;
  static constexpr size_t kNum = 32, kCuts = 1;
  static constexpr bool kClamp = false;
};
template <>
struct Buckets<8> {
  static constexpr double kWidth = 25.7;
  static constexpr size_t kNum = 8, kCuts = 2;
  static constexpr bool kClamp = true;
};

// Rounding can put a weight into the bucket next to its own. Its code is the same there, unless a cut is closer to the
// end of a bucket than the rounding error.
template <class Config>
constexpr bool CutsFit() {
  for (size_t b = 0; b + 1 < Config::kNum; ++b) {
    const double end = (static_cast<double>(b) - Config::kNum / 2 + 0.5) * Config::kWidth;
    size_t inside = 0;
    for (size_t c = 0; c < kNumCuts; ++c) {
      const double distance = Cut(c) - end;
      if (distance < 0.5 && distance > -0.5) return false;
      inside += (b == 0 || distance > -Config::kWidth) && distance < 0;
    }
    if (inside > Config::kCuts) return false;
  }
  return true;
}
static_assert(CutsFit<Buckets<16>>() && CutsFit<Buckets<8>>(), "a bucket holds too many cuts, or one near its end");

template <class Config>
constexpr BucketTables<Config::kNum, Config::kCuts> kTables = MakeTables<Config::kNum, Config::kCuts>(Config::kWidth);

template <class DF, class Indices>
HWY_INLINE hn::Vec<DF> Lookup(DF df, const float* table, Indices indices) {
  if constexpr (HWY_MAX_LANES_D(DF) == 16) {
    return hn::TwoTablesLookupLanes(df, hn::LoadU(df, table), hn::LoadU(df, table + 16), indices);
  } else {
    return hn::TableLookupLanes(hn::LoadU(df, table), indices);
  }
}

// The level nearest to x, or its code, as a float. kAnyInput: x may be any float, otherwise |x| <= 135.
template <bool kCode, bool kAnyInput, class DF, class V = hn::Vec<DF>>
HWY_INLINE V Nearest(DF df, V x) {
  constexpr size_t N = HWY_MAX_LANES_D(DF);
  if constexpr (N == 16 || N == 8) {
    using Config = Buckets<N>;
    const hn::RebindToSigned<DF> di;
    const auto& tables = kTables<Config>;
    const auto& values = kCode ? tables.code : tables.level;
    constexpr float kZero = kRoundingBias + Config::kNum / 2;  // the low bits of x / width + kZero are the bucket
    constexpr float kFirst = kRoundingBias, kLast = kFirst + Config::kNum - 1;
    // Either bucket is right for a weight near their border, so this sum may be fused.
    V bucket = hn::MulAdd(x, hn::Set(df, static_cast<float>(1.0 / Config::kWidth)), hn::Set(df, kZero));
    if constexpr (kAnyInput) {
      bucket = hn::IfThenElse(hn::Lt(bucket, hn::Set(df, kLast)), bucket, hn::Set(df, kLast));  // NaN is last
      bucket = hn::Max(bucket, hn::Set(df, kFirst));
    } else if constexpr (Config::kClamp) {
      bucket = hn::Max(hn::Min(bucket, hn::Set(df, kLast)), hn::Set(df, kFirst));
    }
    const auto indices = hn::IndicesFromVec(df, hn::And(hn::BitCast(di, bucket), hn::Set(di, int{Config::kNum} - 1)));
    V value = Lookup(df, values[Config::kCuts], indices);
    for (size_t c = Config::kCuts; c-- > 0;) {
      const auto before = hn::Lt(x, Lookup(df, tables.cut[c], indices));
      value = hn::IfThenElse(before, Lookup(df, values[c], indices), value);
    }
    return value;
  } else {
    // From the last level down, one step for each cut above the weight.
    V value = hn::Set(df, static_cast<float>(kCode ? int{kNumCuts} : kLevels[kNumCuts]));
    for (size_t c = 0; c < kNumCuts; ++c) {
      const V step = hn::Set(df, static_cast<float>(kCode ? 1 : kLevels[c + 1] - kLevels[c]));
      value = hn::Sub(value, hn::IfThenElseZero(hn::Lt(x, hn::Set(df, Cut(c))), step));
    }
    return value;
  }
}

// ReferenceScale for as many groups as there are lanes, in the layout of search-inl.h.
template <class DF, class V = hn::Vec<DF>>
HWY_NOINLINE V FitScale(DF df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w) {
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df), one = hn::Set(df, 1.0f);
  const V extreme = Extreme<kGroupSize>(df, x);
  const auto negligible = hn::Lt(hn::Abs(extreme), hn::Set(df, kNegligible));
  const V divisor = hn::IfThenElse(negligible, one, extreme);
  V scale = zero, best = zero;
  for (int t = -kTries - 1; t <= kTries; ++t) {
    const bool first = t < -kTries;
    const V level0 = hn::Set(df, static_cast<float>(kLevels[0]));
    const V multiplier = first ? hn::Div(one, hn::Div(hn::Neg(divisor), level0))
                               : hn::Div(hn::Set(df, static_cast<float>(t + kLevels[0])), divisor);
    V sum_xl = zero, sum_l2 = zero;
    HWY_UNROLL(4)
    for (size_t i = 0; i < kGroupSize * N; i += N) {
      const V xi = hn::Load(df, x + i);
      const V level = Nearest<false, false>(df, hn::Mul(multiplier, xi));
      const V wl = hn::Mul(hn::Load(df, w + i), level);
      sum_xl = hn::Add(sum_xl, hn::Mul(wl, xi));
      sum_l2 = hn::Add(sum_l2, hn::Mul(wl, level));
    }
    auto better = hn::Gt(sum_l2, zero);
    if (!first) better = hn::And(better, hn::Gt(hn::Mul(sum_xl, sum_xl), hn::Mul(best, sum_l2)));
    const V this_scale = hn::Div(sum_xl, sum_l2);
    scale = hn::IfThenElse(better, this_scale, scale);
    best = hn::IfThenElse(better, hn::Mul(this_scale, sum_xl), best);
  }
  return hn::IfThenZeroElse(negligible, scale);
}

// The weight of an error: importance * sqrt(variance + x^2); without importances x^2.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void WeighErrors(DF df, const float* HWY_RESTRICT x, const float* const* columns, size_t first, V variance,
                            float* HWY_RESTRICT w) {
  if (columns) return WeighByImportance<kGroupSize>(df, x, columns, first, variance, w);
  for (size_t i = 0; i < kGroupSize * hn::Lanes(df); i += hn::Lanes(df)) {
    const V xi = hn::Load(df, x + i);
    hn::Store(hn::Mul(xi, xi), df, w + i);
  }
}

// 1 / x, but 0 for x = 0. NaN remains NaN.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V InverseOrZero(DF df, V x) {
  return hn::IfThenZeroElse(hn::Eq(x, hn::Zero(df)), hn::Div(hn::Set(df, 1.0f), x));
}

// The final codes of a group.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void StoreNearest(DF df, const float* HWY_RESTRICT x, V multiplier, uint32_t* HWY_RESTRICT words) {
  const hn::RebindToSigned<DF> di;
  const size_t N = hn::Lanes(df);
  const auto code = [&](size_t i) HWY_ATTR {
    return hn::ConvertTo(di, Nearest<true, true>(df, hn::Mul(multiplier, hn::Load(df, x + i * N))));
  };
  for (size_t i = 0; i < kGroupSize; i += 4)
    StoreCodes(di, code(i), code(i + 1), code(i + 2), code(i + 3), words + i / 4 * N);
}

HWY_INLINE void PackNibbles(const uint8_t* codes, uint8_t* nibbles) {
  const hn::FixedTag<uint8_t, 16> du8;
  hn::StoreU(hn::Or(hn::LoadU(du8, codes), hn::ShiftLeft<4>(hn::LoadU(du8, codes + 16))), du8, nibbles);
}

// The 32 levels of a group as int8.
HWY_INLINE void UnpackLevels(const uint8_t* nibbles, uint8_t* levels) {
  const hn::FixedTag<uint8_t, 16> du8;
  const auto table = hn::BitCast(du8, hn::Load(hn::RebindToSigned<decltype(du8)>(), kLevels));
  const auto codes = hn::LoadU(du8, nibbles);
  const auto low = hn::TableLookupBytes(table, hn::And(codes, hn::Set(du8, 15)));
  const auto high = hn::TableLookupBytes(table, hn::ShiftRight<4>(codes));
  StorePair(low, high, levels);
}

HWY_INLINE void DecodeGroup(const uint8_t* nibbles, float scale, float* HWY_RESTRICT out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  if constexpr (HWY_MAX_LANES_D(decltype(df)) == 16) {
    // The sixteen products fit one register; codes select among them.
    const auto products = hn::Mul(hn::Set(df, scale), hn::ConvertTo(df, hn::PromoteTo(di32, hn::Load(di8, kLevels))));
    const auto codes = hn::PromoteTo(di32, hn::LoadU(hn::Rebind<uint8_t, decltype(df)>(), nibbles));
    const auto low = hn::IndicesFromVec(df, hn::And(codes, hn::Set(di32, 15)));
    hn::StoreU(hn::TableLookupLanes(products, low), df, out);
    hn::StoreU(hn::TableLookupLanes(products, hn::IndicesFromVec(df, hn::ShiftRight<4>(codes))), df, out + 16);
  } else if constexpr (HWY_TARGET == HWY_SSE2) {
    // SSE2 has no byte shuffle with variable indices. Scalar code is three times as fast here.
    float products[kNumLevels];
    for (size_t c = 0; c < kNumLevels; ++c) products[c] = scale * static_cast<float>(kLevels[c]);
    for (size_t k = 0; k < kGroupSize / 2; ++k) {
      out[k] = products[nibbles[k] & 15];
      out[k + kGroupSize / 2] = products[nibbles[k] >> 4];
    }
  } else {
    HWY_ALIGN uint8_t levels[kGroupSize];
    UnpackLevels(nibbles, levels);
    for (size_t i = 0; i < kGroupSize; i += hn::Lanes(df)) {
      const auto level = hn::PromoteTo(di32, hn::Load(di8, reinterpret_cast<const int8_t*>(levels) + i));
      hn::StoreU(hn::Mul(hn::Set(df, scale), hn::ConvertTo(df, level)), df, out + i);
    }
  }
}

}  // namespace iq4
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ4_INL_H_
