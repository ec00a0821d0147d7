// Encoding of IQ2_XXS, IQ2_XS and IQ2_S: Iq2Reference of iq2.h for as many super-blocks as a vector has lanes. A format
// provides
//
//   struct Traits {
//     static constexpr size_t kBlockBytes;
//     static constexpr Iq2Search kSearch;
//     static const Grid& GetGrid();
//     static void Pack(const Iq2Block& from, uint8_t* block);
//     static void Unpack(const uint8_t* block, Iq2Block& to);  // for iq2_decode-inl.h
//   };
//
// Each lane has a super-block, with one exception: points off the grid are replaced one at a time, with one candidate
// per lane (grid-inl.h). Most points are off the grid, so this is the larger part: about 50 instructions for eight
// weights and one of the 13 or 19 multipliers. The rest takes 350 instructions for Lanes(SearchTag) times eight weights
// (rounding 120, costs 170, sums 60).
#if defined(LOWBIT_FORMATS_IQ2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ2_INL_H_
#undef LOWBIT_FORMATS_IQ2_INL_H_
#else
#define LOWBIT_FORMATS_IQ2_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hwy/highway.h"
#include "src/formats/iq/grid-inl.h"
#include "src/formats/iq/iq2.h"
#include "src/formats/iq/iq2_decode-inl.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq2 {

using V = hn::Vec<SearchTag>;
using VU = hn::Vec<hn::RebindToUnsigned<SearchTag>>;

constexpr uint32_t kMoved = 1u << 31;  // in a code: the point was off the grid

// Group j of all super-blocks; element i of lane n at [i * N + n].
template <size_t kGroup>
struct Group {
  HWY_ALIGN float x[kGroup * kMaxGroups];  // magnitudes; negative for flipped signs
  HWY_ALIGN float w[kGroup * kMaxGroups];
  HWY_ALIGN float wx[kGroup * kMaxGroups];
  HWY_ALIGN float root_w[kGroup * kMaxGroups];
  HWY_ALIGN uint32_t signs[kGroup / kGridDims * kMaxGroups];
  HWY_ALIGN uint32_t codes[kGroup / kGridDims * kMaxGroups];
};

// Limits of the search for candidates: the largest magnitude, and the lanes whose error weights are all finite.
struct Bounds {
  V largest;
  hn::Mask<SearchTag> finite;
  uint32_t lanes;  // the lanes to search
};

// Splits x into magnitudes and signs, like SplitSigns of the reference.
template <bool kEvenSigns>
HWY_INLINE void SplitSigns(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w,
                           float* HWY_RESTRICT magnitudes, uint32_t* HWY_RESTRICT signs) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  V least = zero;
  VU bits = hn::Zero(du), parity = hn::Zero(du), cheapest = hn::Zero(du);
  for (uint32_t i = 0; i < kGridDims; ++i) {
    const V xi = hn::Load(df, x + i * N);
    const VU bit = hn::Set(du, 1u << i);
    const auto negative = hn::RebindMask(du, hn::Lt(xi, zero));
    bits = hn::Or(bits, hn::IfThenElseZero(negative, bit));
    hn::Store(hn::Abs(xi), df, magnitudes + i * N);
    if constexpr (kEvenSigns) {
      const V cost = hn::Mul(hn::Mul(hn::Load(df, w + i * N), xi), xi);
      const auto less = i == 0 ? hn::Eq(zero, zero) : hn::Lt(cost, least);
      least = hn::IfThenElse(less, cost, least);
      cheapest = hn::IfThenElse(hn::RebindMask(du, less), bit, cheapest);
      parity = hn::Xor(parity, hn::IfThenElseZero(negative, hn::Set(du, ~0u)));
    }
  }
  if constexpr (kEvenSigns) {
    const VU flipped = hn::And(cheapest, parity);
    bits = hn::And(hn::Xor(bits, flipped), hn::Set(du, 127));
    for (uint32_t i = 0; i < kGridDims; ++i) {
      const auto flip = hn::RebindMask(df, hn::Ne(hn::And(flipped, hn::Set(du, 1u << i)), hn::Zero(du)));
      const V magnitude = hn::Load(df, magnitudes + i * N);
      hn::Store(hn::IfThenElse(flip, hn::Neg(magnitude), magnitude), df, magnitudes + i * N);
    }
  }
  hn::Store(bits, du, signs);
}

// Rounds eight weights to the levels of `multiplier`. Returns the code, and the smallest distance of a weight from the
// middle between two levels.
HWY_INLINE VU RoundPoint(SearchTag df, const float* HWY_RESTRICT x, V multiplier, V& from_middle) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const V half = hn::Set(df, 0.5f), one = hn::Set(df, 1.0f);
  V nearest = one;
  VU code = hn::Zero(du);
  for (size_t i = kGridDims; i-- > 0;) {
    const V level = hn::Mul(half, hn::Sub(hn::Mul(multiplier, hn::Load(df, x + i * N)), one));
    nearest = hn::Min(nearest, hn::Abs(hn::Sub(hn::Abs(hn::Sub(level, one)), half)));  // the middles: 1/2 and 3/2
    code = hn::Or(hn::ShiftLeft<2>(code), hn::BitCast(du, NearestCode(df, level, 0, 2)));
  }
  from_middle = nearest;
  return code;
}

// The cost tables of eight weights, 4 * N floats for each.
HWY_INLINE void CostTables(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT root_w, V scale,
                           float* HWY_RESTRICT tables) {
  const size_t N = hn::Lanes(df);
  const V value1 = hn::Mul(scale, hn::Set(df, 3.0f)), value2 = hn::Mul(scale, hn::Set(df, 5.0f));
  for (size_t i = 0; i < kGridDims; ++i) {
    const V xi = hn::Load(df, x + i * N), w = hn::Load(df, root_w + i * N);
    const V d0 = hn::Sub(scale, xi), d1 = hn::Sub(value1, xi), d2 = hn::Sub(value2, xi);
    StoreCostTables(df, hn::Mul(hn::Mul(w, d0), d0), hn::Mul(hn::Mul(w, d1), d1), hn::Mul(hn::Mul(w, d2), d2),
                    tables + i * 4 * N);
  }
}

// The codes of the grid points for all weights of a group: rounded with `multiplier`; replacements are chosen with
// `scale`, its reciprocal.
//
// The lists of Grid::Candidates require costs that do not fall from the rounded level outwards. This holds if each
// weight is farther from the middle between two levels than the rounding error, which is 5e-7 of a level for finite
// normal numbers.
template <size_t kGroup>
HWY_NOINLINE void NearestPoints(SearchTag df, const Grid& grid, const Group<kGroup>& group, const Bounds& bounds,
                                V multiplier, V scale, uint32_t* HWY_RESTRICT codes) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df), stride = 4 * N;
  HWY_ALIGN float tables[kGridDims * 4 * kMaxGroups];
  const auto small = hn::Lt(hn::Mul(bounds.largest, multiplier), hn::Set(df, 1e6f));
  const auto finite = hn::IsFinite(hn::Add(bounds.largest, hn::Mul(scale, hn::Set(df, 5.0f))));
  const auto normal = hn::And(hn::And(small, finite), hn::And(bounds.finite, hn::Gt(scale, hn::Set(df, 1e-30f))));
  for (size_t k = 0; k < kGroup / kGridDims; ++k) {
    const size_t at = k * kGridDims * N;
    V from_middle;
    hn::Store(RoundPoint(df, group.x + at, multiplier, from_middle), du, codes + k * N);
    CostTables(df, group.x + at, group.root_w + at, scale, tables);
    const auto monotonic = hn::And(normal, hn::Gt(from_middle, hn::Set(df, 1e-6f)));
    const uint64_t short_list = hn::BitsFromMask(df, monotonic);
    for (size_t lane = 0; lane < N; ++lane) {
      uint32_t& code = codes[k * N + lane];
      if ((bounds.lanes >> lane & 1) == 0 || grid.Contains(code)) continue;
      const float* costs = tables + CostTable(df, lane);
      size_t num;
      const uint16_t* candidates =
          short_list >> lane & 1 ? grid.Candidates(code, &num) : grid.AllCandidates(code, &num);
      code = kMoved | NearestCandidate(candidates, num, costs, stride);
    }
  }
}

// Sums of w * x * q and of w * q * q over the group.
template <size_t kGroup>
HWY_INLINE void Sums(SearchTag df, const Group<kGroup>& group, const uint32_t* HWY_RESTRICT codes, V& sum_xq_out,
                     V& sum_q2_out) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  alignas(16) constexpr float kValues[4] = {1.0f, 3.0f, 5.0f, 7.0f};
  const V values = hn::LoadDup128(df, kValues);
  V sum_xq = hn::Zero(df), sum_q2 = hn::Zero(df);
  for (size_t k = 0; k < kGroup / kGridDims; ++k) {
    VU code = hn::Load(du, codes + k * N);
    for (size_t i = k * kGridDims * N; i < (k + 1) * kGridDims * N; i += N, code = hn::ShiftRight<2>(code)) {
      const V q = LookUpFour(df, values, code);
      sum_xq = hn::Add(sum_xq, hn::Mul(hn::Load(df, group.wx + i), q));
      sum_q2 = hn::Add(sum_q2, hn::Mul(hn::Mul(hn::Load(df, group.w + i), q), q));
    }
  }
  sum_xq_out = sum_xq;
  sum_q2_out = sum_q2;
}

HWY_INLINE uint32_t LaneBits(SearchTag df, hn::Mask<SearchTag> mask) {
  return static_cast<uint32_t>(hn::BitsFromMask(df, mask));
}

// Tries the multipliers; improves the scale and group.codes.
template <size_t kGroup>
HWY_INLINE void TryMultipliers(SearchTag df, int steps, const Grid& grid, const Bounds& bounds, V largest,
                               Group<kGroup>& group, V& scale_inout) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  V scale = scale_inout, best = hn::Zero(df);
  HWY_ALIGN uint32_t codes[kGroup / kGridDims * kMaxGroups];
  for (int step = -steps; step <= steps; ++step) {
    const V multiplier = hn::Div(hn::Set(df, 5.0f + static_cast<float>(step) * 0.1f), largest);
    NearestPoints(df, grid, group, bounds, multiplier, hn::Div(hn::Set(df, 1.0f), multiplier), codes);
    V sum_xq, sum_q2;
    Sums(df, group, codes, sum_xq, sum_q2);
    const auto greater = hn::Gt(hn::Mul(sum_xq, sum_xq), hn::Mul(best, sum_q2));
    const auto better = hn::And(hn::Gt(sum_q2, hn::Zero(df)), greater);
    scale = hn::IfThenElse(better, hn::Div(sum_xq, sum_q2), scale);
    best = hn::IfThenElse(better, hn::Mul(scale, sum_xq), best);
    for (size_t k = 0; k < kGroup / kGridDims * N; k += N) {
      const auto taken = hn::RebindMask(du, better);
      hn::Store(hn::IfThenElse(taken, hn::Load(du, codes + k), hn::Load(du, group.codes + k)), du, group.codes + k);
    }
  }
  scale_inout = scale;
}

// Rounds again with the fitted scale: all points, or only those that were off the grid.
template <size_t kGroup>
HWY_INLINE V Refit(SearchTag df, bool all, const Grid& grid, Bounds bounds, Group<kGroup>& group, V scale) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  VU moved = hn::Set(du, all ? kMoved : 0);
  for (size_t k = 0; k < kGroup / kGridDims * N; k += N) moved = hn::Or(moved, hn::Load(du, group.codes + k));
  const auto any_moved = hn::RebindMask(df, hn::Ge(moved, hn::Set(du, kMoved)));
  const auto again = hn::And(any_moved, hn::Gt(scale, hn::Zero(df)));
  bounds.lanes &= LaneBits(df, again);
  if (bounds.lanes == 0) return scale;
  HWY_ALIGN uint32_t codes[kGroup / kGridDims * kMaxGroups];
  NearestPoints(df, grid, group, bounds, hn::Div(hn::Set(df, 1.0f), scale), scale, codes);
  for (size_t k = 0; k < kGroup / kGridDims * N; k += N) {
    const VU old = hn::Load(du, group.codes + k);
    const auto off_grid = hn::Ge(hn::Or(old, hn::Set(du, all ? kMoved : 0)), hn::Set(du, kMoved));
    const auto taken = hn::And(off_grid, hn::RebindMask(du, again));
    hn::Store(hn::IfThenElse(taken, hn::Load(du, codes + k), old), du, group.codes + k);
  }
  V sum_xq, sum_q2;
  Sums(df, group, group.codes, sum_xq, sum_q2);
  const auto valid = hn::And(again, hn::Gt(sum_q2, hn::Zero(df)));
  return hn::IfThenElse(valid, hn::Div(sum_xq, sum_q2), scale);
}

// The reference's Fit for the first num lanes. Returns scales. `zero`: lanes whose group counts as zero.
template <class Traits>
HWY_INLINE V Fit(SearchTag df, const Grid& grid, size_t num, Group<Traits::kSearch.group>& group,
                 hn::Mask<SearchTag>& zero) {
  constexpr Iq2Search kSearch = Traits::kSearch;
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  V largest = hn::Load(df, group.x), magnitude = hn::Zero(df), sum_w = hn::Zero(df);
  for (size_t i = 0; i < kSearch.group * N; i += N) {
    const V xi = hn::Load(df, group.x + i);
    largest = hn::IfThenElse(hn::Gt(largest, xi), largest, xi);
    magnitude = hn::Max(magnitude, hn::Abs(xi));
    sum_w = hn::Add(sum_w, hn::Load(df, group.w + i));
  }
  zero = hn::Lt(largest, hn::Set(df, kSearch.negligible));
  V scale = hn::Div(largest, hn::Set(df, 5.0f));
  if constexpr (kSearch.fit_first) {
    HWY_ALIGN int32_t codes[kSearch.group * kMaxGroups];
    FitPositive<kSearch.group>(df, 4, group.x, group.w, scale, codes);
    largest = hn::Mul(scale, hn::Set(df, 3.0f));
    zero = hn::Or(zero, hn::Le(largest, hn::Zero(df)));
  }
  const auto searched = hn::AndNot(zero, hn::FirstN(df, num));
  const Bounds bounds = {magnitude, hn::IsFinite(sum_w), LaneBits(df, searched)};
  for (size_t k = 0; k < kSearch.group / kGridDims * N; k += N) hn::Store(hn::Zero(du), du, group.codes + k);
  if (bounds.lanes != 0) {
    TryMultipliers(df, kSearch.steps, grid, bounds, largest, group, scale);
    scale = Refit(df, kSearch.fit_first, grid, bounds, group, scale);
  }
  return hn::IfThenZeroElse(zero, scale);
}

// Weights of the errors of a group: from importances, or from the weights themselves.
template <size_t kGroup>
HWY_INLINE void WeighErrors(SearchTag df, const float* HWY_RESTRICT x, const float* const* columns, size_t first,
                            V variance, Group<kGroup>& group) {
  const size_t N = hn::Lanes(df);
  if (columns) {
    WeighByImportance<kGroup>(df, x, columns, first, variance, group.w);
  } else {
    const V base = hn::Mul(hn::Set(df, 0.25f), variance);
    for (size_t i = 0; i < kGroup * N; i += N) {
      const V xi = hn::Load(df, x + i);
      hn::Store(hn::Add(base, hn::Mul(xi, xi)), df, group.w + i);
    }
  }
  for (size_t i = 0; i < kGroup * N; i += N) {
    hn::Store(hn::Sqrt(hn::Load(df, group.w + i)), df, group.root_w + i);
  }
}

// Stores a group's points and signs in the first num blocks, with inverted signs in `negative` lanes.
template <class Traits>
HWY_INLINE void StorePoints(SearchTag df, const Grid& grid, size_t j, size_t num, uint32_t zero, uint32_t negative,
                            const Group<Traits::kSearch.group>& group, Iq2Block* blocks) {
  constexpr size_t kSubgroups = Traits::kSearch.group / kGridDims;
  const size_t N = hn::Lanes(df);
  for (size_t lane = 0; lane < num; ++lane) {
    if (zero >> lane & 1) continue;
    const uint32_t flip = negative >> lane & 1 ? (Traits::kSearch.even_signs ? 127 : 255) : 0;
    for (size_t k = 0; k < kSubgroups; ++k) {
      const uint32_t code = group.codes[k * N + lane] & ~kMoved;
      blocks[lane].points[j * kSubgroups + k] = static_cast<uint16_t>(grid.Index(code));
      blocks[lane].signs[j * kSubgroups + k] = static_cast<uint8_t>(group.signs[k * N + lane] ^ flip);
    }
  }
}

// The scales' codes and the factor of each super-block.
template <class Traits>
HWY_INLINE void StoreScales(SearchTag df, const float* HWY_RESTRICT scales, V largest, size_t num, Iq2Block* blocks) {
  const hn::RebindToSigned<SearchTag> di;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float d[kMaxGroups];
  HWY_ALIGN int32_t codes[kMaxGroups];
  const V exact_d = hn::Div(largest, hn::Set(df, 31.0f));
  const V multiplier = hn::Div(hn::Set(df, 1.0f), exact_d);
  hn::Store(exact_d, df, d);
  for (size_t j = 0; j < kSuper / Traits::kSearch.group; ++j) {
    const V scaled = hn::Sub(hn::Mul(multiplier, hn::Load(df, scales + j * N)), hn::Set(df, 1.0f));
    hn::Store(NearestCode(df, hn::Mul(hn::Set(df, 0.5f), scaled), 0, 15), di, codes);
    for (size_t lane = 0; lane < num; ++lane) blocks[lane].scales[j] = static_cast<uint8_t>(codes[lane]);
  }
  const uint32_t nothing = LaneBits(df, hn::Eq(largest, hn::Zero(df)));
  for (size_t lane = 0; lane < num; ++lane) {
    blocks[lane].d = d[lane];
    if ((nothing >> lane & 1) == 0) continue;
    // If all scales are zero, IQ2_S keeps points and signs.
    memset(blocks[lane].scales, 0, sizeof(blocks[lane].scales));
    if (Traits::kSearch.even_signs) blocks[lane] = {};
  }
}

// Encodes the first num of N super-blocks, x[i * N + lane].
template <class Traits>
HWY_NOINLINE void FitBlocks(SearchTag df, const Grid& grid, const float* HWY_RESTRICT x, const float* const* columns,
                            size_t num, Iq2Block* blocks) {
  constexpr size_t kGroup = Traits::kSearch.group;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float scales[kSuper / kGroup * kMaxGroups];
  Group<kGroup> group;
  const V sum = hn::Mul(hn::Set(df, Traits::kSearch.variance_factor), SumOfSquares<kSuper>(df, x));
  const V variance = hn::Div(sum, hn::Set(df, float{kSuper}));
  V largest = hn::Zero(df);
  for (size_t j = 0; j < kSuper / kGroup; ++j) {
    const float* from = x + j * kGroup * N;
    WeighErrors(df, from, columns, j * kGroup, variance, group);
    for (size_t i = 0; i < kGroup; i += kGridDims) {
      SplitSigns<Traits::kSearch.even_signs>(df, from + i * N, group.w + i * N, group.x + i * N,
                                             group.signs + i / kGridDims * N);
    }
    for (size_t i = 0; i < kGroup * N; i += N) {
      hn::Store(hn::Mul(hn::Load(df, group.w + i), hn::Load(df, group.x + i)), df, group.wx + i);
    }
    hn::Mask<SearchTag> zero;
    const V scale = Fit<Traits>(df, grid, num, group, zero);
    const auto negative = hn::Lt(scale, hn::Zero(df));
    const V positive = hn::IfThenElse(negative, hn::Neg(scale), scale);
    hn::Store(positive, df, scales + j * N);
    largest = hn::IfThenElse(hn::Gt(largest, positive), largest, positive);
    StorePoints<Traits>(df, grid, j, num, LaneBits(df, zero), LaneBits(df, negative), group, blocks);
  }
  StoreScales<Traits>(df, scales, largest, num, blocks);
}

// The searches expect finite weights; super-blocks with NaN or infinity go to the reference.
template <class Traits>
void EncodeSuperBlocks(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
  const SearchTag df;
  const size_t N = hn::Lanes(df);
  const Grid& grid = Traits::GetGrid();
  const size_t per_row = K / kSuper, total = num_rows * per_row;
  HWY_ALIGN float x[kSuper * kMaxGroups];
  for (size_t first = 0; first < total; first += N) {
    const Batch<kSuper> batch(weights, importance, first, total, per_row);
    Transpose(batch.rows, 0, kSuper, x);
    Iq2Block blocks[kMaxGroups] = {};
    FitBlocks<Traits>(df, grid, x, batch.importances, batch.num, blocks);
    for (size_t lane = 0; lane < batch.num; ++lane, out += Traits::kBlockBytes) {
      if (HWY_UNLIKELY(!AllFinite<kSuper>(batch.rows[lane]))) {
        Iq2Reference(Traits::kSearch, grid, batch.rows[lane], batch.columns[lane], &blocks[lane]);
      }
      Traits::Pack(blocks[lane], out);
    }
  }
}

// The functions of a format.
template <class Traits>
struct Format {
  static void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
    iq2::EncodeSuperBlocks<Traits>(weights, importance, num_rows, K, out);
  }

  static void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
    DecodeSuperBlocks<Traits>(blocks, num_blocks, out);
  }

  static constexpr PanelKind PanelOf() { return PanelKindOf<Codec<Traits>>(); }

  static void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) {
    UnpackPanel<Codec<Traits>>(rows, num_blocks, panel);
  }

  static void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {
    MultiplyFew<Codec<Traits>>(rows, K, x, starts, sums);
  }

  static void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {
    UnpackLevels<Codec<Traits>>(blocks, num_blocks, levels, scales, minima);
  }
};

}  // namespace iq2
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ2_INL_H_
