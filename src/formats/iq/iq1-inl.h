// The vector encoders of IQ1_S and IQ1_M: the code that both share. Lane = super-block, as in kquant-inl.h. Group j of
// all super-blocks is fitted at once: sorted, split, and moved to the grid.
//
// A format provides an encoder:
//
//   struct Encoder {
//     static constexpr size_t kBlockBytes;
//     // Fits x[i * N + lane]; columns is null, or has each lane's importances. Fills the blocks of all lanes.
//     // Returns a bit for each lane whose result may differ from the reference's.
//     static uint64_t Fit(SearchTag df, const float* x, const float* const* columns, Iq1Block* blocks);
//     static void Pack(const Iq1Block& block, uint8_t* out);
//     static void Reference(const float* x, const float* importance, Iq1Block* block);
//   };
#if defined(LOWBIT_FORMATS_IQ1_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ1_INL_H_
#undef LOWBIT_FORMATS_IQ1_INL_H_
#else
#define LOWBIT_FORMATS_IQ1_INL_H_
#endif

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/iq/grid-inl.h"
#include "src/formats/iq/iq1.h"
#include "src/formats/iq/iq1_decode-inl.h"
#include "src/formats/iq/iq1_split-inl.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq1 {

// -------------------------------------------------------------------------------------------------------------- levels

// A split with a positive scale, as input of the next steps.
struct Levels {
  HWY_ALIGN uint32_t codes[4 * kMaxGroups];  // of eight weights each: [k * N + lane]
  HWY_ALIGN uint32_t shifts[kMaxGroups];
  HWY_ALIGN float scales[kMaxGroups];
  uint64_t found;  // one bit per lane
};

// Levels: each key is compared with the keys at the ends of the split.
template <size_t kNum>
HWY_NOINLINE void TakeLevels(SearchTag df, const Splits& splits, uint32_t all_shifts, const double* HWY_RESTRICT keys,
                             const double* HWY_RESTRICT sorted, Levels& levels) {
  const KeyTag dk;
  const hn::RebindToSigned<SearchTag> di;
  const hn::RebindToUnsigned<SearchTag> du;
  const hn::Half<decltype(di)> dih;
  const size_t N = hn::Lanes(df), half = hn::Lanes(dk);
  HWY_ALIGN int32_t at[kMaxGroups];
  HWY_ALIGN double low[kMaxGroups], high[kMaxGroups];
  hn::Store(splits.at, di, at);
  for (size_t lane = 0; lane < N; ++lane) {
    const size_t first = static_cast<uint32_t>(at[lane]) >> 8, second = static_cast<uint32_t>(at[lane]) >> 2 & 63;
    const bool found = at[lane] >= 0;
    low[lane] = found && first < kNum ? sorted[first * N + lane] : HUGE_VAL;
    high[lane] = found && second < kNum ? sorted[second * N + lane] : HUGE_VAL;
  }
  const auto negative = hn::Lt(splits.scale, hn::Zero(df));
  const auto turned = hn::RebindMask(du, negative);
  const auto kind = hn::And(hn::BitCast(du, splits.at), hn::Set(du, all_shifts));
  hn::Store(hn::IfThenElse(turned, hn::Xor(kind, hn::Set(du, all_shifts)), kind), du, levels.shifts);
  hn::Store(hn::Abs(splits.scale), df, levels.scales);
  levels.found = hn::BitsFromMask(di, hn::Ge(splits.at, hn::Zero(di)));
  for (size_t k = 0; k < kNum / 8; ++k) {
    for (size_t lane = 0; lane < N; lane += half) {
      const VK from = hn::Load(dk, low + lane), to = hn::Load(dk, high + lane);
      VK code = hn::Zero(dk);
      for (size_t i = 0; i < 8; ++i) {
        const VK key = hn::Load(dk, keys + (8 * k + i) * N + lane);
        const VK digit = hn::Set(dk, static_cast<double>(1 << (2 * i)));
        code = hn::Add(code, hn::IfThenElseZero(hn::Ge(key, from), digit));
        code = hn::Add(code, hn::IfThenElseZero(hn::Ge(key, to), digit));
      }
      hn::Store(hn::BitCast(hn::RebindToUnsigned<decltype(dih)>(), hn::DemoteTo(dih, code)),
                hn::RebindToUnsigned<decltype(dih)>(), levels.codes + k * N + lane);
    }
    const auto code = hn::Load(du, levels.codes + k * N);
    hn::Store(hn::IfThenElse(turned, hn::Sub(hn::Set(du, 0xAAAA), code), code), du, levels.codes + k * N);
  }
}

// `v` in the lanes of `bits`, else 0.
HWY_INLINE VF KeepLanes(SearchTag df, uint64_t bits, VF v) {
  const hn::RebindToUnsigned<SearchTag> du;
  const auto lane_bits = hn::Shl(hn::Set(du, 1), hn::Iota(du, 0));
  const auto keep = hn::TestBit(hn::Set(du, static_cast<uint32_t>(bits)), lane_bits);
  return hn::IfThenElseZero(hn::RebindMask(df, keep), v);
}

// ---------------------------------------------------------------------------------------------------------------- grid

// The value of level `index` of each lane's code, given the shift.
template <class VU>
HWY_INLINE VF LevelValue(SearchTag df, VU level, VF shift) {
  const hn::RebindToSigned<SearchTag> di;
  const VF centred = hn::Sub(hn::ConvertTo(df, hn::BitCast(di, level)), hn::Set(df, 1.0f));
  return hn::Add(centred, shift);
}

// -1/8 in lanes of `down`, else 1/8.
template <class M>
HWY_INLINE VF ShiftOf(SearchTag df, M down) {
  return hn::IfThenElse(hn::RebindMask(df, down), hn::Set(df, -kIq1Shift), hn::Set(df, kIq1Shift));
}

// The costs of all levels of eight weights, as tables for NearestCandidate. Returns a bit for each lane in which some
// cost falls from the level of its code outwards.
template <class VU>
HWY_NOINLINE uint64_t StoreCosts(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, VU codes,
                                 VF shift, VF scale, float* HWY_RESTRICT tables) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const VF one = hn::Set(df, 1.0f);
  const VF v0 = hn::Mul(scale, hn::Sub(shift, one)), v1 = hn::Mul(scale, shift),
           v2 = hn::Mul(scale, hn::Add(shift, one));
  VF excess = hn::Zero(df);
  for (size_t i = 0; i < 8; ++i, codes = hn::ShiftRight<2>(codes)) {
    const VF xi = hn::Load(df, x + i * N), wi = hn::Load(df, w + i * N);
    const auto cost = [&](VF value) HWY_ATTR {
      const VF difference = hn::Sub(value, xi);
      return hn::Mul(hn::Mul(wi, difference), difference);
    };
    const VF c0 = cost(v0), c1 = cost(v1), c2 = cost(v2);
    StoreCostTables(df, c0, c1, c2, tables + i * 4 * N);
    const auto level = hn::And(codes, hn::Set(du, 3));
    const auto is0 = hn::RebindMask(df, hn::Eq(level, hn::Zero(du)));
    const auto is2 = hn::RebindMask(df, hn::Eq(level, hn::Set(du, 2)));
    // own <= next and c1 <= last: from the own level to its neighbour and on to the far one, or to both neighbours.
    const VF own = hn::IfThenElse(is0, c0, hn::IfThenElse(is2, c2, c1));
    const VF next = hn::IfThenElse(hn::Or(is0, is2), c1, c0);
    const VF last = hn::IfThenElse(is2, c0, c2);
    const auto rises = hn::And(hn::Le(own, next), hn::Le(c1, last));
    excess = hn::Or(excess, hn::IfThenZeroElse(rises, one));
  }
  return hn::BitsFromMask(df, hn::Ne(excess, hn::Zero(df)));
}

// Replaces codes off the grid by those of grid points. Returns a bit for each lane with a replacement.
template <size_t kNum, class Down>
HWY_NOINLINE uint64_t PutOnGrid(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, Down down,
                                Levels& levels) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const Grid& grid = Iq1Grid();
  HWY_ALIGN float tables[8 * 4 * kMaxGroups];
  uint64_t moved = 0;
  for (size_t k = 0; k < kNum / 8; ++k) {
    uint32_t* codes = levels.codes + k * N;
    const auto shift = ShiftOf(df, down(hn::Load(du, levels.shifts), k));
    const uint64_t uneven =
        StoreCosts(df, x + 8 * k * N, w + 8 * k * N, hn::Load(du, codes), shift, hn::Load(df, levels.scales), tables);
    for (size_t lane = 0; lane < N; ++lane) {
      if ((levels.found >> lane & 1) == 0 || grid.Contains(codes[lane])) continue;
      moved |= uint64_t{1} << lane;
      const float* costs = tables + CostTable(df, lane);
      size_t num;
      // In IQ1_M one split serves two shifts, so many weights do not have their nearest level.
      const uint16_t* candidates = HWY_LIKELY((uneven >> lane & 1) == 0) ? grid.Candidates(codes[lane], &num)
                                                                         : grid.AllCandidates(codes[lane], &num);
      codes[lane] = NearestCandidate(candidates, num, costs, 4 * N);
    }
  }
  return moved;
}

// The best scale for the codes, in lanes of `moved`.
template <size_t kNum, class Down>
HWY_NOINLINE VF Refit(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, Down down, uint64_t moved,
                      const Levels& levels) {
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const VF zero = hn::Zero(df), scale = hn::Load(df, levels.scales);
  VF sum_xq = zero, sum_q2 = zero;
  for (size_t k = 0; k < kNum / 8; ++k) {
    auto code = hn::Load(du, levels.codes + k * N);
    const VF shift = ShiftOf(df, down(hn::Load(du, levels.shifts), k));
    for (size_t i = 8 * k; i < 8 * k + 8; ++i, code = hn::ShiftRight<2>(code)) {
      const VF q = LevelValue(df, hn::And(code, hn::Set(du, 3)), shift);
      const VF wq = hn::Mul(hn::Load(df, w + i * N), q);
      sum_xq = hn::Add(sum_xq, hn::Mul(wq, hn::Load(df, x + i * N)));
      sum_q2 = hn::Add(sum_q2, hn::Mul(wq, q));
    }
  }
  const auto take = hn::And(hn::Gt(KeepLanes(df, moved, sum_xq), zero), hn::Gt(sum_q2, zero));
  return hn::IfThenElse(take, hn::Div(sum_xq, sum_q2), scale);
}

// ------------------------------------------------------------------------------------------------------ super-blocks

// Grid indices of group j of all lanes; 0 in lanes without a split.
template <size_t kNum>
HWY_NOINLINE void StorePoints(SearchTag df, size_t j, const Levels& levels, Iq1Block* blocks) {
  const Grid& grid = Iq1Grid();
  const size_t N = hn::Lanes(df);
  for (size_t lane = 0; lane < N; ++lane) {
    const bool found = (levels.found >> lane & 1) != 0;
    for (size_t k = 0; k < kNum / 8; ++k) {
      const size_t index = found ? grid.Index(levels.codes[k * N + lane]) : 0;
      blocks[lane].points[j * kNum / 8 + k] = static_cast<uint16_t>(index);
    }
    blocks[lane].shifts[j] = static_cast<uint8_t>(found ? levels.shifts[lane] : 0);
  }
}

// Codes of kGroups scales, in `codes` and in the blocks. Returns d before the final factor, or 0 if all scales are 0.
template <size_t kGroups>
HWY_INLINE VF TakeScales(SearchTag df, const float* scales, int32_t* codes, Iq1Block* blocks) {
  const hn::RebindToSigned<SearchTag> di;
  const size_t N = hn::Lanes(df);
  VF largest = hn::Zero(df);
  for (size_t j = 0; j < kGroups * N; j += N) {
    const VF scale = hn::Load(df, scales + j);
    largest = hn::IfThenElse(hn::Gt(largest, scale), largest, scale);
  }
  const VF one = hn::Set(df, 1.0f), half = hn::Set(df, 0.5f);
  const auto nothing = hn::Eq(largest, hn::Zero(df));
  const VF d = hn::Div(largest, hn::Set(df, 15.0f));
  const VF multiplier = hn::Div(one, d);
  for (size_t j = 0; j < kGroups; ++j) {
    const VF scaled = hn::Mul(half, hn::Sub(hn::Mul(multiplier, hn::Load(df, scales + j * N)), one));
    const auto code = NearestCode(df, scaled, 0, 7);
    hn::Store(hn::IfThenZeroElse(hn::RebindMask(di, nothing), code), di, codes + j * N);
  }
  const uint64_t empty = hn::BitsFromMask(df, nothing);
  for (size_t lane = 0; lane < N; ++lane) {
    for (size_t j = 0; j < kGroups; ++j) {
      blocks[lane].scales[j] = static_cast<uint8_t>(codes[j * N + lane]);
      if ((empty >> lane & 1) != 0) blocks[lane].shifts[j] = 0;
    }
  }
  return d;
}

HWY_INLINE void StoreFactors(SearchTag df, VF d, Iq1Block* blocks) {
  HWY_ALIGN float factors[kMaxGroups];
  hn::Store(d, df, factors);
  for (size_t lane = 0; lane < hn::Lanes(df); ++lane) blocks[lane].d = factors[lane];
}

// Super-blocks with NaN or infinity go to Encoder::Reference.
template <class Encoder>
void EncodeIq1(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
  const SearchTag df;
  const size_t N = hn::Lanes(df);
  const size_t per_row = K / kSuper, total = num_rows * per_row;
  HWY_ALIGN float x[kSuper * kMaxGroups];
  Iq1Block blocks[kMaxGroups];
  for (size_t first = 0; first < total; first += N) {
    const Batch<kSuper> batch(weights, importance, first, total, per_row);
    Transpose(batch.rows, 0, kSuper, x);
    const uint64_t unsure = Encoder::Fit(df, x, batch.importances, blocks);
    for (size_t lane = 0; lane < batch.num; ++lane, out += Encoder::kBlockBytes) {
      if (HWY_UNLIKELY((unsure >> lane & 1) != 0 || !AllFinite<kSuper>(batch.rows[lane]))) {
        Encoder::Reference(batch.rows[lane], batch.columns[lane], &blocks[lane]);
      }
      Encoder::Pack(blocks[lane], out);
    }
  }
}

// The functions of a format.
template <class Encoder, class Layout>
struct Format {
  static void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
    EncodeIq1<Encoder>(weights, importance, num_rows, K, out);
  }

  static void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
    DecodePoints<Layout>(blocks, num_blocks, out);
  }

  static constexpr PanelKind PanelOf() { return PanelKindOf<Codec<Layout>>(); }

  static void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) {
    UnpackPanel<Codec<Layout>>(rows, num_blocks, panel);
  }

  static void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {
    MultiplyFew<Codec<Layout>>(rows, K, x, starts, sums);
  }

  static void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {
    UnpackLevels<Codec<Layout>>(blocks, num_blocks, levels, scales, minima);
  }
};

}  // namespace iq1
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ1_INL_H_
