// Encoding of IQ3_XXS and IQ3_S: Iq3Reference of iq3.h, one group of 32 weights after another. A format provides
//
//   struct Traits {
//     static constexpr size_t kBlockBytes;
//     static constexpr Iq3Search kSearch;
//     static const Grid& GetGrid();
//     static void Pack(const Iq3Block& from, uint8_t* block);
//   };
//
// The lanes are the 31 or 19 multipliers that are tried for a group, so each lane's sums have the reference's order.
// All lanes round the same four weights, so few different points occur: about four in 31 lanes. For a point off the
// grid, the errors of a candidate are summed in all lanes at once and used in the lanes with that point. They come from
// a table of 32 vectors: four coordinates times eight levels.
//
// Instructions for four weights and one vector of multipliers: 96 for the table, 44 for rounding, 7 per candidate (8 to
// 12 candidates for all points together), 36 for the sums.
#if defined(LOWBIT_FORMATS_IQ3_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ3_INL_H_
#undef LOWBIT_FORMATS_IQ3_INL_H_
#else
#define LOWBIT_FORMATS_IQ3_INL_H_
#endif

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include <array>

#include "hwy/highway.h"
#include "src/formats/iq/iq3.h"
#include "src/formats/iq/iq3_decode-inl.h"
#include "src/formats/kquant-inl.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq3 {

using TryTag = hn::CappedTag<float, 16>;  // multipliers
using Tag = hn::CappedTag<float, 8>;      // quads, and the last eight or fewer multipliers
template <class DF>
using Codes = hn::Vec<hn::RebindToUnsigned<DF>>;

// A vector of multipliers, and their reciprocals.
template <class DF>
struct Multipliers {
  hn::Vec<DF> multiplier;
  hn::Vec<DF> scale;
  bool normal;  // cost tables neither overflow nor lose precision
};

// One coordinate of each of four weights.
template <class DF>
struct Quad {
  HWY_INLINE Quad() {}  // see AffineSearch (src/formats/search/affine-inl.h)

  hn::Vec<DF> x[kIq3Dims];
  hn::Vec<DF> root_w[kIq3Dims];
};

struct Group {
  HWY_ALIGN float x[kIq3Group];  // magnitudes; negative for flipped signs
  HWY_ALIGN float w[kIq3Group];
  HWY_ALIGN float wx[kIq3Group];
  HWY_ALIGN float root_w[kIq3Group];
  uint32_t signs;
  float largest;    // of x
  float magnitude;  // of |x|
  bool finite;      // all of w
  uint32_t codes[kIq3Quads];
  uint32_t off_grid;  // bit k: the point of quad k was replaced
};

// Rounds four weights: reference::NearestCode of (multiplier * x - 1) / 2. Returns the code of the point, and the
// largest distance of a weight from its level before clamping to [0, 7]. Halving is exact, so it may be fused with the
// next step.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE Codes<DF> RoundQuad(DF df, const Quad<DF>& quad, V multiplier, V& farthest) {
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  const V half = hn::Set(df, 0.5f), one = hn::Set(df, 1.0f), bias = hn::Set(df, kRoundingBias);
  V away = hn::Zero(df);
  Codes<DF> code = hn::Zero(du);
  for (size_t i = kIq3Dims; i-- > 0;) {
    const V twice = hn::Sub(hn::Mul(multiplier, quad.x[i]), one);
    const V biased = hn::MulAdd(twice, half, bias);
    away = hn::Max(away, hn::Abs(hn::MulSub(twice, half, hn::Sub(biased, bias))));
    const auto integer =
        hn::Sub(hn::And(hn::BitCast(di, biased), hn::Set(di, kMantissaMask)), hn::Set(di, kMantissaBias));
    const auto level = hn::Max(hn::Zero(di), hn::Min(hn::Set(di, int{kIq3Levels} - 1), integer));
    code = hn::Or(hn::ShiftLeft<3>(code), hn::BitCast(du, level));
  }
  farthest = away;
  return code;
}

// Stores the error of coordinate i at level l in vector i * 8 + l of the table.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void StoreCosts(DF df, const Quad<DF>& quad, V scale, float* HWY_RESTRICT costs) {
  const size_t N = hn::Lanes(df);
  HWY_UNROLL(8)
  for (size_t l = 0; l < kIq3Levels; ++l) {
    const V value = hn::Mul(scale, hn::Set(df, static_cast<float>(2 * l + 1)));
    for (size_t i = 0; i < kIq3Dims; ++i) {
      const V difference = hn::Sub(value, quad.x[i]);
      const V cost = hn::Mul(hn::Mul(quad.root_w[i], difference), difference);
      hn::Store(cost, df, costs + (i * kIq3Levels + l) * N);
    }
  }
}

// The lanes in which the short list of Grid::Candidates has the nearest point. This holds if the weights are farther
// from the middle between two levels than the rounding error, which is below 1e-6 of a level for finite normal numbers.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE uint64_t ShortListLanes(DF df, bool normal, V farthest) {
  return normal ? hn::BitsFromMask(df, hn::Lt(farthest, hn::Set(df, 0.49999f))) : 0;
}

// The cheapest candidate in each lane, the first of equals; the first of the list if none costs less than FLT_MAX.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE Codes<DF> Cheapest(DF df, const uint16_t* HWY_RESTRICT candidates, size_t num,
                              const float* HWY_RESTRICT costs) {
  const hn::RebindToUnsigned<DF> du;
  const size_t stride = hn::Lanes(df);
  V best = hn::Set(df, FLT_MAX);
  Codes<DF> point = hn::Set(du, candidates[0]);
  // Lists are padded with their last point, so four at a time are safe.
  static_assert(Grid::kPad % 4 == 0, "reads four candidates at a time");
  for (size_t j = 0; j < num; j += 4) {
    for (size_t c = j; c < j + 4; ++c) {
      const size_t code = candidates[c];
      V cost = hn::Load(df, costs + (code & 7) * stride);
      cost = hn::Add(cost, hn::Load(df, costs + (8 + (code >> 3 & 7)) * stride));
      cost = hn::Add(cost, hn::Load(df, costs + (16 + (code >> 6 & 7)) * stride));
      cost = hn::Add(cost, hn::Load(df, costs + (24 + (code >> 9)) * stride));
      const auto less = hn::Lt(cost, best);
      best = hn::IfThenElse(less, cost, best);
      point = hn::IfThenElse(hn::RebindMask(du, less), hn::Set(du, static_cast<uint32_t>(code)), point);
    }
  }
  return point;
}

// The grid points to which m rounds each lane's quad. code_of_lane gets the nearest point; if that is off the grid, the
// cheapest candidate replaces it.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE Codes<DF> NearestPoints(DF df, const Grid& grid, const Quad<DF>& quad, const Multipliers<DF>& m,
                                   uint32_t* HWY_RESTRICT code_of_lane) {
  const hn::RebindToUnsigned<DF> du;
  HWY_ALIGN float costs[kIq3Dims * kIq3Levels * HWY_MAX_LANES_D(DF)];
  V farthest;
  const Codes<DF> codes = RoundQuad(df, quad, m.multiplier, farthest);
  hn::StoreU(codes, du, code_of_lane);
  const uint64_t short_lists = ShortListLanes(df, m.normal, farthest);
  Codes<DF> points = codes;
  bool have_costs = false;
  for (uint64_t left = (uint64_t{1} << hn::Lanes(df)) - 1; left != 0;) {
    const uint32_t code = code_of_lane[hwy::Num0BitsBelowLS1Bit_Nonzero64(left)];
    const auto same = hn::Eq(codes, hn::Set(du, code));
    const uint64_t lanes = hn::BitsFromMask(du, same);
    left &= ~lanes;
    if (grid.Contains(code)) continue;
    if (!have_costs) StoreCosts(df, quad, m.scale, costs);
    have_costs = true;
    size_t num;
    const uint16_t* candidates =
        (lanes & ~short_lists) == 0 ? grid.Candidates(code, &num) : grid.AllCandidates(code, &num);
    points = hn::IfThenElse(same, Cheapest(df, candidates, num, costs), points);
  }
  return points;
}

// The results for a vector of multipliers: rounded[k * stride + lane] and points[k * stride + lane] for quad k, and the
// sums of w * x * q and w * q * q over the group.
template <class DF, class V = hn::Vec<DF>>
HWY_NOINLINE void TryVector(DF df, const Grid& grid, const Group& group, const Multipliers<DF>& m, size_t stride,
                            uint32_t* HWY_RESTRICT rounded, uint32_t* HWY_RESTRICT points, float* HWY_RESTRICT sum_xq,
                            float* HWY_RESTRICT sum_q2) {
  const hn::RebindToUnsigned<DF> du;
  const hn::RebindToSigned<DF> di;
  V xq = hn::Zero(df), q2 = hn::Zero(df);
  for (size_t k = 0; k < kIq3Quads; ++k) {
    Quad<DF> quad;
    for (size_t i = 0; i < kIq3Dims; ++i) {
      quad.x[i] = hn::Set(df, group.x[kIq3Dims * k + i]);
      quad.root_w[i] = hn::Set(df, group.root_w[kIq3Dims * k + i]);
    }
    Codes<DF> point = NearestPoints(df, grid, quad, m, rounded + k * stride);
    hn::StoreU(point, du, points + k * stride);
    point = hn::Add(point, point);
    for (size_t i = kIq3Dims * k; i < kIq3Dims * (k + 1); ++i, point = hn::ShiftRight<3>(point)) {
      const auto odd = hn::Or(hn::And(point, hn::Set(du, 14)), hn::Set(du, 1));
      const V q = hn::ConvertTo(df, hn::BitCast(di, odd));
      xq = hn::Add(xq, hn::Mul(hn::Set(df, group.wx[i]), q));
      q2 = hn::Add(q2, hn::Mul(hn::Mul(hn::Set(df, group.w[i]), q), q));
    }
  }
  hn::Store(xq, df, sum_xq);
  hn::Store(q2, df, sum_q2);
}

// 15 + i / 5 for i in [-steps, steps]; the rest repeats the last.
template <int kSteps, size_t kNum>
constexpr std::array<float, kNum> Numerators() {
  std::array<float, kNum> numerators = {};
  for (int i = 0; i < static_cast<int>(kNum); ++i) {
    numerators[i] = 15.0f + static_cast<float>(HWY_MIN(i, 2 * kSteps) - kSteps) * 0.2f;
  }
  return numerators;
}

// Returns the scale of the best multiplier; its points are in the group.
template <class Traits>
HWY_INLINE float TryMultipliers(const Grid& grid, Group& group) {
  const TryTag df;
  constexpr int kSteps = Traits::kSearch.steps;
  constexpr size_t kNum = 2 * kSteps + 1, kStride = (kNum + 7) / 8 * 8;
  HWY_ALIGN uint32_t rounded[kIq3Quads * kStride], points[kIq3Quads * kStride];
  HWY_ALIGN float sum_xq[kStride], sum_q2[kStride];
  static constexpr std::array<float, kStride> kNumerators = Numerators<kSteps, kStride>();
  const bool normal =
      group.finite && group.largest > 1e-28f && group.largest < 1e37f && group.magnitude < group.largest * 1e4f;
  const auto try_vector = [&](auto d, size_t t) HWY_ATTR {
    const auto multiplier = hn::Div(hn::LoadU(d, kNumerators.data() + t), hn::Set(d, group.largest));
    const Multipliers<decltype(d)> m = {multiplier, hn::Div(hn::Set(d, 1.0f), multiplier), normal};
    TryVector(d, grid, group, m, kStride, rounded + t, points + t, sum_xq + t, sum_q2 + t);
  };
  const size_t N = hn::Lanes(df);
  size_t t = 0;
  for (; t + N <= kStride; t += N) try_vector(df, t);
  if constexpr (kStride % HWY_MAX_LANES_D(TryTag) != 0) try_vector(Tag(), t);
  float best = 0.0f, scale = group.largest / 15.0f;
  size_t best_at = kNum;
  for (t = 0; t < kNum; ++t) {
    if (!(sum_q2[t] > 0.0f && sum_xq[t] * sum_xq[t] > best * sum_q2[t])) continue;
    scale = sum_xq[t] / sum_q2[t];
    best = scale * sum_xq[t];
    best_at = t;
  }
  group.off_grid = 0;
  for (size_t k = 0; k < kIq3Quads; ++k) {
    group.codes[k] = best_at == kNum ? 0 : points[k * kStride + best_at];
    const bool moved = best_at == kNum ? Traits::kSearch.refit_all : group.codes[k] != rounded[k * kStride + best_at];
    group.off_grid |= static_cast<uint32_t>(moved) << k;
  }
  return scale;
}

// Rounds again with the fitted scale, one quad per lane: all points, or only those that were off the grid.
template <class Traits>
HWY_INLINE float Refit(Tag df, const Grid& grid, Group& group, float scale) {
  const hn::RebindToUnsigned<Tag> du;
  if (group.off_grid == 0 || !(scale > 0.0f)) return scale;
  const bool normal = group.finite && scale > 1e-30f && scale < 1e36f && group.magnitude < scale * 1e5f;
  const Multipliers<Tag> m = {hn::Set(df, 1.0f / scale), hn::Set(df, scale), normal};
  const uint32_t chosen = Traits::kSearch.refit_all ? 255 : group.off_grid;
  HWY_ALIGN uint32_t rounded[kIq3Quads], points[kIq3Quads];
  for (size_t k = 0; k < kIq3Quads; k += hn::Lanes(df)) {
    Quad<Tag> quad;
    const float* x = group.x + kIq3Dims * k;
    const float* root_w = group.root_w + kIq3Dims * k;
    hn::LoadInterleaved4(df, x, quad.x[0], quad.x[1], quad.x[2], quad.x[3]);
    hn::LoadInterleaved4(df, root_w, quad.root_w[0], quad.root_w[1], quad.root_w[2], quad.root_w[3]);
    hn::Store(NearestPoints(df, grid, quad, m, rounded + k), du, points + k);
  }
  for (size_t k = 0; k < kIq3Quads; ++k) {
    if (chosen >> k & 1) group.codes[k] = points[k];
  }
  float sum_xq = 0.0f, sum_q2 = 0.0f;
  for (size_t i = 0; i < kIq3Group; ++i) {
    const float q = static_cast<float>(2 * (group.codes[i / kIq3Dims] >> (3 * (i % kIq3Dims)) & 7) + 1);
    sum_xq += group.wx[i] * q;
    sum_q2 += group.w[i] * q * q;
  }
  return sum_q2 > 0.0f ? sum_xq / sum_q2 : scale;
}

// Fills in a group except its codes.
template <bool kEvenSigns>
HWY_INLINE void Prepare(Tag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT importance, float variance,
                        Group& group) {
  using V = hn::Vec<Tag>;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float costs[kIq3Group];
  auto finite = hn::Eq(hn::Zero(df), hn::Zero(df));
  group.signs = 0;
  for (size_t i = 0; i < kIq3Group; i += N) {
    const V xi = hn::LoadU(df, x + i), x2 = hn::Mul(xi, xi);
    const V root = hn::Sqrt(hn::Add(hn::Set(df, variance), x2));
    const V w = importance ? hn::Mul(hn::LoadU(df, importance + i), root) : x2;
    finite = hn::And(finite, hn::IsFinite(w));
    hn::Store(hn::Abs(xi), df, group.x + i);
    hn::Store(w, df, group.w + i);
    hn::Store(hn::Sqrt(w), df, group.root_w + i);
    if (kEvenSigns) hn::Store(hn::Mul(hn::Mul(w, xi), xi), df, costs + i);
    const uint64_t negative = hn::BitsFromMask(df, hn::Lt(xi, hn::Zero(df)));
    group.signs |= static_cast<uint32_t>(negative << i);
  }
  group.finite = hn::AllTrue(df, finite);
  for (size_t i = 0; kEvenSigns && i < kIq3Group; i += 8) {
    if ((hwy::PopCount(group.signs >> i & 255) & 1) == 0) continue;
    size_t cheapest = i;
    for (size_t j = i + 1; j < i + 8; ++j) cheapest = costs[j] < costs[cheapest] ? j : cheapest;
    group.x[cheapest] = -group.x[cheapest];
    group.signs ^= 1u << cheapest;
  }
  V largest = hn::Load(df, group.x), magnitude = hn::Zero(df);
  for (size_t i = 0; i < kIq3Group; i += N) {
    const V xi = hn::Load(df, group.x + i);
    largest = hn::Max(largest, xi);
    magnitude = hn::Max(magnitude, hn::Abs(xi));
    hn::Store(hn::Mul(hn::Load(df, group.w + i), xi), df, group.wx + i);
  }
  group.largest = hn::ReduceMax(df, largest);
  group.magnitude = hn::ReduceMax(df, magnitude);
}

// Iq3Reference for finite weights.
template <class Traits>
HWY_NOINLINE void FitBlock(const Grid& grid, const float* x, const float* importance, float sum_x2, Iq3Block& block) {
  constexpr Iq3Search kSearch = Traits::kSearch;
  const Tag df;
  float scales[kIq3Groups];
  block = {};
  for (size_t j = 0; j < kIq3Groups; ++j) {
    Group group;
    const size_t at = j * kIq3Group;
    Prepare<kSearch.even_signs>(df, x + at, importance ? importance + at : nullptr, 2 * sum_x2 / kSuper, group);
    scales[j] = 0.0f;
    block.zero[j] = group.largest == 0.0f || group.largest < kSearch.negligible;
    if (block.zero[j]) continue;
    const float scale = Refit<Traits>(df, grid, group, TryMultipliers<Traits>(grid, group));
    if (scale < 0.0f) group.signs = ~group.signs;
    scales[j] = scale < 0.0f ? -scale : scale;
    for (size_t k = 0; k < 4; ++k) {
      block.signs[4 * j + k] = static_cast<uint8_t>(group.signs >> (8 * k) & (kSearch.even_signs ? 127 : 255));
    }
    for (size_t k = 0; k < kIq3Quads; ++k) {
      block.points[kIq3Quads * j + k] = static_cast<uint16_t>(grid.Index(group.codes[k]));
    }
  }
  Iq3StoreScales(kSearch, scales, &block);
}

// Sums of squares of num super-blocks, each from the first weight to the last. Eight at a time keep the adder busy.
HWY_INLINE void SumsOfSquares(const float* HWY_RESTRICT x, size_t num, float* HWY_RESTRICT out) {
  for (size_t b = 0; b < 8; ++b) out[b] = 0.0f;
  if (num == 8) {
    for (size_t i = 0; i < kSuper; ++i) {
      for (size_t b = 0; b < 8; ++b) out[b] += x[b * kSuper + i] * x[b * kSuper + i];
    }
  } else {
    for (size_t i = 0; i < num * kSuper; ++i) out[i / kSuper] += x[i] * x[i];
  }
}

// The search expects finite weights; super-blocks with NaN or infinity go to the reference.
template <class Traits>
void EncodeSuperBlocks(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
  const Grid& grid = Traits::GetGrid();
  const size_t per_row = K / kSuper, total = num_rows * per_row;
  float sums[8];
  for (size_t b = 0; b < total; ++b, out += Traits::kBlockBytes) {
    const float* x = weights + b * kSuper;
    const float* columns = importance ? importance + b % per_row * kSuper : nullptr;
    if (b % 8 == 0) SumsOfSquares(x, HWY_MIN(size_t{8}, total - b), sums);
    Iq3Block block;
    if (HWY_LIKELY(AllFinite<kSuper>(x))) {
      FitBlock<Traits>(grid, x, columns, sums[b % 8], block);
    } else {
      Iq3Reference(Traits::kSearch, grid, x, columns, &block);
    }
    Traits::Pack(block, out);
  }
}

// The functions of a format.
template <class Traits, class Layout>
struct Format : BlockFormat<Codec<Layout>> {
  static void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
    iq3::EncodeSuperBlocks<Traits>(weights, importance, num_rows, K, out);
  }
};

}  // namespace iq3
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ3_INL_H_
