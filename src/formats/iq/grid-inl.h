// Search for the grid point that replaces a point off the grid (grid.h), for points of eight coordinates with three or
// four levels.
//
// The weighted error of a candidate is a sum over its coordinates, each of which adds one of four numbers. The encoder
// first computes these numbers, with a group of weights in each lane (StoreCostTables). The search then has one
// candidate per lane: for each coordinate, two bits of the candidate's code select from a vector that repeats the four
// numbers. The sums have the reference's order. Cost of a search: 32 instructions for up to Lanes(df) candidates, and a
// dozen for the smallest sum.
#if defined(LOWBIT_FORMATS_GRID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_GRID_INL_H_
#undef LOWBIT_FORMATS_GRID_INL_H_
#else
#define LOWBIT_FORMATS_GRID_INL_H_
#endif

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/iq/grid.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kGridDims = 8;

// The lanes of the search; Grid::kPad is a multiple of them.
using CandidateTag = hn::CappedTag<float, 16>;

// Element (index & 3) of a table of four numbers, which every block of four lanes repeats.
template <class DF, class VU, class V = hn::Vec<DF>>
HWY_INLINE V LookUpFour(DF df, V table, VU indices) {
#if HWY_TARGET > HWY_AVX2 || HWY_IS_DEBUG_BUILD
  indices = hn::And(indices, hn::Set(hn::RebindToUnsigned<DF>(), 3));
#endif  // else the instruction takes the lowest two to four bits, and all tables that these reach are the same
  return hn::TableLookupLanes(table, hn::IndicesFromVec(df, indices));
}

// Tables of one coordinate's costs. Those of lane n, with levels 0 to 2, become the first three of the four floats at
// out + CostTable(n). Writes 4 * Lanes(df) floats.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void StoreCostTables(DF df, V cost0, V cost1, V cost2, float* HWY_RESTRICT out) {
  const hn::Repartition<uint64_t, DF> du64;
  const size_t N = hn::Lanes(df);
  const auto low01 = hn::BitCast(du64, hn::InterleaveLower(df, cost0, cost1));
  const auto high01 = hn::BitCast(du64, hn::InterleaveUpper(df, cost0, cost1));
  const auto low2 = hn::BitCast(du64, hn::InterleaveLower(df, cost2, cost2));
  const auto high2 = hn::BitCast(du64, hn::InterleaveUpper(df, cost2, cost2));
  hn::Store(hn::BitCast(df, hn::InterleaveLower(du64, low01, low2)), df, out);
  hn::Store(hn::BitCast(df, hn::InterleaveUpper(du64, low01, low2)), df, out + N);
  hn::Store(hn::BitCast(df, hn::InterleaveLower(du64, high01, high2)), df, out + 2 * N);
  hn::Store(hn::BitCast(df, hn::InterleaveUpper(du64, high01, high2)), df, out + 3 * N);
}

template <class DF>
HWY_INLINE size_t CostTable(DF df, size_t lane) {
  return lane % 4 * hn::Lanes(df) + lane / 4 * 4;
}

// The costs of Lanes(df) codes. The table of coordinate i is at costs + i * stride.
template <class DF, class VU>
HWY_INLINE hn::Vec<DF> Costs(DF df, VU codes, const float* HWY_RESTRICT costs, size_t stride) {
  auto sum = LookUpFour(df, hn::LoadDup128(df, costs), codes);
  const auto add = [&](size_t i, VU indices) HWY_ATTR {
    sum = hn::Add(sum, LookUpFour(df, hn::LoadDup128(df, costs + i * stride), indices));
  };
  add(1, hn::ShiftRight<2>(codes));
  add(2, hn::ShiftRight<4>(codes));
  add(3, hn::ShiftRight<6>(codes));
  add(4, hn::ShiftRight<8>(codes));
  add(5, hn::ShiftRight<10>(codes));
  add(6, hn::ShiftRight<12>(codes));
  add(7, hn::ShiftRight<14>(codes));
  return sum;
}

// The first of the cheapest candidates in a list of Grid; the first of the list if none costs less than FLT_MAX.
HWY_INLINE uint32_t NearestCandidate(const uint16_t* HWY_RESTRICT candidates, size_t num,
                                     const float* HWY_RESTRICT costs, size_t stride) {
  const CandidateTag df;
  const hn::RebindToUnsigned<CandidateTag> du;
  const hn::Rebind<uint16_t, CandidateTag> du16;
  const size_t N = hn::Lanes(df);
  const auto limit = hn::Set(df, FLT_MAX);
  const auto cost = Costs(df, hn::PromoteTo(du, hn::LoadU(du16, candidates)), costs, stride);
  auto best = hn::IfThenElse(hn::Lt(cost, limit), cost, limit);
  if (HWY_LIKELY(num <= N)) {
    return candidates[hn::FindKnownFirstTrue(df, hn::Eq(best, hn::Set(df, hn::ReduceMin(df, best))))];
  }
  auto best_at = hn::Iota(du, 0);
  for (size_t j = N; j < num; j += N) {
    const auto more = Costs(df, hn::PromoteTo(du, hn::LoadU(du16, candidates + j)), costs, stride);
    const auto less = hn::Lt(more, best);
    best = hn::IfThenElse(less, more, best);
    best_at = hn::IfThenElse(hn::RebindMask(du, less), hn::Iota(du, static_cast<uint32_t>(j)), best_at);
  }
  const auto is_best = hn::RebindMask(du, hn::Eq(best, hn::Set(df, hn::ReduceMin(df, best))));
  return candidates[hn::ReduceMin(du, hn::IfThenElse(is_best, best_at, hn::Set(du, ~0u)))];
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_GRID_INL_H_
