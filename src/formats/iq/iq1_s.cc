// IQ1_S: 256 weights in 50 bytes, 1.5625 bits per weight. Eight groups of 32, each of four points on a grid of eight
// dimensions.
//
//   byte 0-1    d        float16
//   byte 2-33   low[32]  bits 0-7 of the index of the grid point for weights 8 * k to 8 * k + 7
//   byte 34-49  high[8]  uint16 of group g: bits 8-10 of point 4 * g + k in bits 3 * k to 3 * k + 2,
//                        scale in bits 12-14, bit 15: 1 if shift is -1/8, 0 if it is 1/8
//
//   w[i] = d * (2 * scale[i / 32] + 1) * (grid[point[i / 8]][i % 8] + shift[i / 32])
//
// A grid point has coordinates -1, 0 and 1; the 2048 points are in iq1_grid.cc.
//
// Source: ggml-common.h (block_iq1_s, iq1s_grid), quantize_row_iq1_s_impl, dequantize_row_iq1_s.

// Fit: Encoder::Fit in this file, with the split of iq/iq1_split-inl.h and the grid points of iq/iq1-inl.h; scalar
//   reference: iq/iq1.cc.
// Packing: Encoder::Pack in this file.
// Product: Layout in this file, Codec in iq/iq1_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq1_s.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq1-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq1_s {

constexpr size_t kGroups = 8, kGroupSize = 32, kPoints = 4;
constexpr size_t kLowAt = 2, kHighAt = 34;

struct Encoder {
  static constexpr size_t kBlockBytes = 50;

  static HWY_INLINE void Pack(const Iq1Block& block, uint8_t* out) {
    StoreHalf(block.d, out);
    for (size_t g = 0; g < kGroups; ++g) {
      uint32_t high = static_cast<uint32_t>(block.scales[g]) << 12 | static_cast<uint32_t>(block.shifts[g]) << 15;
      for (size_t k = 0; k < kPoints; ++k) {
        const uint32_t point = block.points[g * kPoints + k];
        out[kLowAt + g * kPoints + k] = static_cast<uint8_t>(point);
        high |= point >> 8 << (3 * k);
      }
      const uint16_t word = static_cast<uint16_t>(high);
      hwy::CopyBytes<2>(&word, out + kHighAt + 2 * g);
    }
  }

  static HWY_INLINE void Reference(const float* x, const float* importance, Iq1Block* block) {
    Iq1SReference(x, importance, block);
  }

  static uint64_t Fit(SearchTag df, const float* x, const float* const* columns, Iq1Block* blocks);
};

// For each number n in [0, kGroupSize] of lowest weights: their sums, and by how much the lower two levels reduce sum
// q^2, for both shifts.
struct Sums {
  static constexpr size_t kNum = (kGroupSize + 1) * kMaxGroups;
  HWY_ALIGN float x[kNum], w[kNum], second_up[kNum], second_down[kNum];
};

HWY_NOINLINE void SumUp(SearchTag df, const double* HWY_RESTRICT sorted, const float* HWY_RESTRICT w, Sums& sums) {
  const hn::RebindToSigned<SearchTag> di;
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const auto lane = hn::Iota(di, 0), stride = hn::Set(di, static_cast<int>(N));
  const V up = hn::Set(df, iq1::SecondStep(false)), down = hn::Set(df, iq1::SecondStep(true));
  V sum_x = hn::Zero(df), sum_w = hn::Zero(df);
  for (size_t n = 0;; ++n) {
    hn::Store(sum_x, df, sums.x + n * N);
    hn::Store(sum_w, df, sums.w + n * N);
    hn::Store(hn::Mul(sum_w, up), df, sums.second_up + n * N);
    hn::Store(hn::Mul(sum_w, down), df, sums.second_down + n * N);
    if (n == kGroupSize) return;
    const auto place = iq1::Places(sorted + n * N, kGroupSize - 1);
    const V wi = hn::GatherIndex(df, w, hn::Add(hn::Mul(place, stride), lane));
    sum_x = hn::Add(sum_x, hn::Mul(wi, iq1::Values(sorted + n * N)));
    sum_w = hn::Add(sum_w, wi);
  }
}

// Offers a split with one shift, with the reference's sums.
HWY_INLINE void Offer(SearchTag df, const Sums& sums, size_t first, size_t second, int down, iq1::Splits& splits) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const V x0 = hn::Load(df, sums.x + first * N), w0 = hn::Load(df, sums.w + first * N);
  const V x01 = hn::Load(df, sums.x + second * N), w01 = hn::Load(df, sums.w + second * N);
  const V x1 = hn::Sub(x01, x0), w1 = hn::Sub(w01, w0);
  const V x2 = hn::Sub(hn::Load(df, sums.x + kGroupSize * N), x01);
  const V w2 = hn::Sub(hn::Load(df, sums.w + kGroupSize * N), w01);
  const V v0 = hn::Set(df, Iq1Value(0, down)), v1 = hn::Set(df, Iq1Value(1, down)), v2 = hn::Set(df, Iq1Value(2, down));
  const V sum_xq = hn::Add(hn::Add(hn::Mul(x0, v0), hn::Mul(x1, v1)), hn::Mul(x2, v2));
  const V low = hn::Add(hn::Mul(hn::Mul(w0, v0), v0), hn::Mul(hn::Mul(w1, v1), v1));
  splits.Take(sum_xq, hn::Add(low, hn::Mul(hn::Mul(w2, v2), v2)), iq1::Splits::Pack(first, second, down));
}

// Tries every split with both shifts: 561 pairs. Cost of a pair: four additions, four multiplications, two comparisons
// and a branch for all lanes. The branch is taken about 30 times.
template <bool kNear>
HWY_NOINLINE void Search(SearchTag df, const Sums& sums, iq1::Splits& splits) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const V up = hn::Set(df, Iq1Value(2, false)), down = hn::Set(df, Iq1Value(2, true));
  const V first_up = hn::Set(df, iq1::FirstStep(false)), first_down = hn::Set(df, iq1::FirstStep(true));
  const V all_x = hn::Load(df, sums.x + kGroupSize * N), all_w = hn::Load(df, sums.w + kGroupSize * N);
  const V all_x_up = hn::Mul(all_x, up), all_x_down = hn::Mul(all_x, down);
  const V all_w_up = hn::Mul(hn::Mul(all_w, up), up), all_w_down = hn::Mul(hn::Mul(all_w, down), down);
  for (size_t first = 0; first <= kGroupSize; ++first) {
    const V first_x = hn::Load(df, sums.x + first * N), first_w = hn::Load(df, sums.w + first * N);
    const V x_up = hn::Sub(all_x_up, first_x), x_down = hn::Sub(all_x_down, first_x);
    const V w_up = hn::Add(all_w_up, hn::Mul(first_w, first_up));
    const V w_down = hn::Add(all_w_down, hn::Mul(first_w, first_down));
    for (size_t second = first; second <= kGroupSize; ++second) {
      if constexpr (kNear) {
        const V second_x = hn::Load(df, sums.x + second * N);
        const auto near_up =
            splits.Near(hn::Sub(x_up, second_x), hn::Add(w_up, hn::Load(df, sums.second_up + second * N)));
        const auto near_down =
            splits.Near(hn::Sub(x_down, second_x), hn::Add(w_down, hn::Load(df, sums.second_down + second * N)));
        if (HWY_LIKELY(hn::AllFalse(df, hn::Or(near_up, near_down)))) continue;
        if (!hn::AllFalse(df, near_up)) Offer(df, sums, first, second, 0, splits);
        if (!hn::AllFalse(df, near_down)) Offer(df, sums, first, second, 1, splits);
      } else {
        Offer(df, sums, first, second, 0, splits);
        Offer(df, sums, first, second, 1, splits);
      }
    }
  }
}

uint64_t Encoder::Fit(SearchTag df, const float* x, const float* const* columns, Iq1Block* blocks) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float w[kGroupSize * kMaxGroups], scales[kGroups * kMaxGroups];
  HWY_ALIGN double keys[kGroupSize * kMaxGroups], sorted[kGroupSize * kMaxGroups];
  HWY_ALIGN int32_t codes[kGroups * kMaxGroups];
  Sums sums;
  iq1::Levels levels;
  uint64_t unsure = 0;
  const auto down = [](auto shifts, size_t /*k*/)
                        HWY_ATTR { return hn::Ne(shifts, hn::Zero(hn::RebindToUnsigned<SearchTag>())); };
  const V square_sum = SumOfSquares<kSuper>(df, x);
  const V variance = hn::Div(hn::Mul(hn::Set(df, 2.0f), square_sum), hn::Set(df, float{kSuper}));
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize * N;
    WeighByImportance<kGroupSize>(df, xj, columns, j * kGroupSize, variance, w);
    iq1::Sort<kGroupSize>(xj, keys, sorted);
    SumUp(df, sorted, w, sums);
    const iq1::Start start = iq1::StartScore<kGroupSize, 1>(df, xj, w, kIq1SNegligible);
    unsure |= start.unsure;
    iq1::Splits splits(start.score);
    (start.near ? Search<true> : Search<false>)(df, sums, splits);
    iq1::TakeLevels<kGroupSize>(df, splits, 1, keys, sorted, levels);
    const uint64_t moved = iq1::PutOnGrid<kGroupSize>(df, xj, w, down, levels);
    const V scale = iq1::Refit<kGroupSize>(df, xj, w, down, moved, levels);
    hn::Store(iq1::KeepLanes(df, levels.found, scale), df, scales + j * N);
    iq1::StorePoints<kGroupSize>(df, j, levels, blocks);
  }
  const V d = iq1::TakeScales<kGroups>(df, scales, codes, blocks);
  iq1::StoreFactors(df, hn::Mul(d, hn::Set(df, kIq1SFactor)), blocks);
  return unsure;
}

struct Layout {
  static constexpr size_t kBlockBytes = Encoder::kBlockBytes, kGroupSize = iq1_s::kGroupSize;

  static HWY_INLINE void Scales(const uint8_t* block, float* scale) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Rebind<uint16_t, decltype(df)> du16;
    const auto d = BroadcastHalf(df, block);
    for (size_t g = 0; g < kGroups; g += hn::Lanes(df)) {
      const auto high = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(block + kHighAt) + g);
      const auto code = hn::PromoteTo(di32, hn::And(hn::ShiftRight<11>(high), hn::Set(du16, 14)));
      hn::StoreU(hn::Mul(d, hn::ConvertTo(df, hn::Add(code, hn::Set(di32, 1)))), df, scale + g);
    }
  }

  static HWY_INLINE void Points(const uint8_t* block, size_t g, uint32_t* points) {
    const uint8_t* low = block + kLowAt + kPoints * g;
    uint16_t word;
    hwy::CopyBytes<2>(block + kHighAt + 2 * g, &word);
    const uint32_t high = word, down = high >> 15 << 11;
    points[0] = low[0] | (high << 8 & 0x700) | down;
    points[1] = low[1] | (high << 5 & 0x700) | down;
    points[2] = low[2] | (high << 2 & 0x700) | down;
    points[3] = low[3] | (high >> 1 & 0x700) | down;
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    const PanelBytes d;
    const FloatsV scale = hn::Mul(LoadHalfOfRows(rows, 0), hn::Set(PanelFloats(), iq1::kEighth));
    WordsV high[4], low[4];
    LoadWords(rows, kHighAt, high);
    HWY_UNROLL(8)
    for (size_t g = 0; g < kGroups; g += 2) {
      if (g % 4 == 0) LoadWords(rows, kLowAt + kPoints * g, low);
      const WordsV word = high[g / 2];
      const auto bytes = hn::BitCast(d, word);
      StoreOddScales<3>(scale, hn::ShiftRight<12>(word), 1, g, sink);
      StoreOddScales<3>(scale, hn::ShiftRight<28>(word), 1, g + 1, sink);
      const hn::Vec<PanelBytes> bits[2] = {grid_rows::Fields<3>(bytes, 0), grid_rows::Fields<3>(bytes, 16)};
      const hn::Mask<PanelBytes> down[2] = {hn::TestBit(RepeatByte(word, 1), hn::Set(d, 128)),
                                            hn::TestBit(RepeatByte(word, 3), hn::Set(d, 128))};
      iq1::UnpackGroups(low + g % 4, bits, down, g, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq1::Format<Encoder, Layout>;

}  // namespace iq1_s
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq1_s::Functions, "IQ1_S", /*ggml_type=*/19, /*block_size=*/256, /*block_bytes=*/50,
                       /*needs_imatrix=*/true)
#endif  // HWY_ONCE
