// IQ1_M: 256 weights in 56 bytes, 1.75 bits per weight. Sixteen groups of 16, each of two points on a grid of eight
// dimensions.
//
//   byte 0-31   low[32]    bits 0-7 of the index of the grid point for weights 8 * k to 8 * k + 7
//   byte 32-47  high[16]   byte g: bits 8-10 of point 2 * g in bits 0-2, bit 3: 1 if its shift is -1/8, 0 if
//                          it is 1/8; the same for point 2 * g + 1 in bits 4-7
//   byte 48-55  scales[4]  uint16 m: scale of group 4 * m + n in bits 3 * n to 3 * n + 2, n in [0, 4);
//                          bits 4 * m to 4 * m + 3 of d, a float16, in bits 12-15
//
//   w[i] = d * (2 * scale[i / 16] + 1) * (grid[point[i / 8]][i % 8] + shift[i / 8])
//
// A grid point has coordinates -1, 0 and 1; the 2048 points are in iq1_grid.cc.
//
// Source: ggml-common.h (block_iq1_m, iq1s_grid), quantize_row_iq1_m_impl, dequantize_row_iq1_m.

// Fit: Encoder::Fit in this file, with the split of iq/iq1_split-inl.h and the grid points of iq/iq1-inl.h; scalar
//   reference: iq/iq1.cc.
// Packing: Encoder::Pack in this file.
// Product: Layout in this file, Codec in iq/iq1_decode-inl.h, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq1_m.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq1-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq1_m {

constexpr size_t kGroups = 16, kGroupSize = 16, kHalf = 8;
constexpr int kKinds = 4;  // of shifts: one for each half
constexpr size_t kHighAt = 32, kScalesAt = 48;

struct Encoder {
  static constexpr size_t kBlockBytes = 56;

  static HWY_INLINE void Pack(const Iq1Block& block, uint8_t* out) {
    uint16_t d;
    StoreHalf(block.d, reinterpret_cast<uint8_t*>(&d));
    for (size_t m = 0; m < kGroups / 4; ++m) {
      uint32_t word = static_cast<uint32_t>(d) >> (4 * m) << 12;
      for (size_t n = 0; n < 4; ++n) word |= static_cast<uint32_t>(block.scales[4 * m + n]) << (3 * n);
      const uint16_t half = static_cast<uint16_t>(word);
      hwy::CopyBytes<2>(&half, out + kScalesAt + 2 * m);
    }
    for (size_t g = 0; g < kGroups; ++g) {
      const uint32_t first = block.points[2 * g], second = block.points[2 * g + 1], shifts = block.shifts[g];
      out[2 * g] = static_cast<uint8_t>(first);
      out[2 * g + 1] = static_cast<uint8_t>(second);
      out[kHighAt + g] = static_cast<uint8_t>(first >> 8 | shifts >> 1 << 3 | second >> 8 << 4 | (shifts & 1) << 7);
    }
  }

  static HWY_INLINE void Reference(const float* x, const float* importance, Iq1Block* block) {
    Iq1MReference(x, importance, block);
  }

  static uint64_t Fit(SearchTag df, const float* x, const float* const* columns, Iq1Block* blocks);
};

// For each number n in [0, kGroupSize] of lowest weights: their sums in each half of the group and in both; and by how
// much the lower two levels reduce sum q^2, for each kind of shifts.
struct Sums {
  static constexpr size_t kNum = (kGroupSize + 1) * kMaxGroups;
  HWY_ALIGN float x[2][kNum], w[2][kNum];
  HWY_ALIGN float both_x[kNum], second[kKinds][kNum];
};

HWY_NOINLINE void SumUp(SearchTag df, const double* HWY_RESTRICT sorted, const float* HWY_RESTRICT w, Sums& sums) {
  const hn::RebindToSigned<SearchTag> di;
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const auto lane = hn::Iota(di, 0), stride = hn::Set(di, static_cast<int>(N)), middle = hn::Set(di, kHalf);
  const V steps[2] = {hn::Set(df, iq1::SecondStep(false)), hn::Set(df, iq1::SecondStep(true))};
  V sum_x[2] = {hn::Zero(df), hn::Zero(df)}, sum_w[2] = {hn::Zero(df), hn::Zero(df)};
  for (size_t n = 0;; ++n) {
    for (size_t half = 0; half < 2; ++half) {
      hn::Store(sum_x[half], df, sums.x[half] + n * N);
      hn::Store(sum_w[half], df, sums.w[half] + n * N);
    }
    hn::Store(hn::Add(sum_x[0], sum_x[1]), df, sums.both_x + n * N);
    for (size_t kind = 0; kind < kKinds; ++kind) {
      const V taken = hn::Add(hn::Mul(sum_w[0], steps[kind >> 1]), hn::Mul(sum_w[1], steps[kind & 1]));
      hn::Store(taken, df, sums.second[kind] + n * N);
    }
    if (n == kGroupSize) return;
    const auto place = iq1::Places(sorted + n * N, kGroupSize - 1);
    const V wi = hn::GatherIndex(df, w, hn::Add(hn::Mul(place, stride), lane));
    const V wx = hn::Mul(wi, iq1::Values(sorted + n * N));
    const auto is_first = hn::RebindMask(df, hn::Lt(place, middle));
    sum_x[0] = hn::Add(sum_x[0], hn::IfThenElseZero(is_first, wx));
    sum_x[1] = hn::Add(sum_x[1], hn::IfThenZeroElse(is_first, wx));
    sum_w[0] = hn::Add(sum_w[0], hn::IfThenElseZero(is_first, wi));
    sum_w[1] = hn::Add(sum_w[1], hn::IfThenZeroElse(is_first, wi));
  }
}

// Offers a split with one kind of shifts, with the reference's sums.
HWY_INLINE void Offer(SearchTag df, const Sums& sums, size_t first, size_t second, int kind, iq1::Splits& splits) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df), last = kGroupSize * N;
  V xq[2], q2[2];  // by half
  for (size_t half = 0; half < 2; ++half) {
    const bool down = (kind >> (1 - half) & 1) != 0;
    const V first_w = hn::Load(df, sums.w[half] + first * N), second_w = hn::Load(df, sums.w[half] + second * N);
    const V all_x = hn::Load(df, sums.x[half] + last), all_w = hn::Load(df, sums.w[half] + last);
    const V both = hn::Add(hn::Load(df, sums.x[half] + first * N), hn::Load(df, sums.x[half] + second * N));
    const V top = hn::Set(df, Iq1Value(2, down));
    xq[half] = hn::Sub(hn::Mul(all_x, top), both);
    const V low = hn::Add(hn::Mul(hn::Mul(all_w, top), top), hn::Mul(first_w, hn::Set(df, iq1::FirstStep(down))));
    q2[half] = hn::Add(low, hn::Mul(second_w, hn::Set(df, iq1::SecondStep(down))));
  }
  splits.Take(hn::Add(xq[0], xq[1]), hn::Add(q2[0], q2[1]), iq1::Splits::Pack(first, second, kind));
}

// Tries every split with a shift for each half: 153 splits times four. Cost of four: eight additions, eight
// multiplications, four comparisons and a branch for all lanes. The branch is taken about 30 times.
template <bool kNear>
HWY_NOINLINE void Search(SearchTag df, const Sums& sums, iq1::Splits& splits) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df), last = kGroupSize * N;
  V all_x[kKinds], all_w[kKinds];
  for (size_t kind = 0; kind < kKinds; ++kind) {
    const V a = hn::Set(df, Iq1Value(2, kind >> 1)), b = hn::Set(df, Iq1Value(2, kind & 1));
    const V w0 = hn::Load(df, sums.w[0] + last), w1 = hn::Load(df, sums.w[1] + last);
    all_x[kind] = hn::Add(hn::Mul(hn::Load(df, sums.x[0] + last), a), hn::Mul(hn::Load(df, sums.x[1] + last), b));
    all_w[kind] = hn::Add(hn::Mul(hn::Mul(w0, a), a), hn::Mul(hn::Mul(w1, b), b));
  }
  const V steps[2] = {hn::Set(df, iq1::FirstStep(false)), hn::Set(df, iq1::FirstStep(true))};
  for (size_t first = 0; first <= kGroupSize; ++first) {
    V x[kKinds], w[kKinds];
    for (size_t kind = 0; kind < kKinds; ++kind) {
      const V w0 = hn::Load(df, sums.w[0] + first * N), w1 = hn::Load(df, sums.w[1] + first * N);
      x[kind] = hn::Sub(all_x[kind], hn::Load(df, sums.both_x + first * N));
      w[kind] = hn::Add(all_w[kind], hn::Add(hn::Mul(w0, steps[kind >> 1]), hn::Mul(w1, steps[kind & 1])));
    }
    for (size_t second = first; second <= kGroupSize; ++second) {
      if constexpr (kNear) {
        const V second_x = hn::Load(df, sums.both_x + second * N);
        const auto near = [&](size_t kind) HWY_ATTR {
          return splits.Near(hn::Sub(x[kind], second_x),
                             hn::Add(w[kind], hn::Load(df, sums.second[kind] + second * N)));
        };
        const auto near0 = near(0), near1 = near(1), near2 = near(2), near3 = near(3);
        if (HWY_LIKELY(hn::AllFalse(df, hn::Or(hn::Or(near0, near1), hn::Or(near2, near3))))) continue;
        if (!hn::AllFalse(df, near0)) Offer(df, sums, first, second, 0, splits);
        if (!hn::AllFalse(df, near1)) Offer(df, sums, first, second, 1, splits);
        if (!hn::AllFalse(df, near2)) Offer(df, sums, first, second, 2, splits);
        if (!hn::AllFalse(df, near3)) Offer(df, sums, first, second, 3, splits);
      } else {
        for (int kind = 0; kind < kKinds; ++kind) Offer(df, sums, first, second, kind, splits);
      }
    }
  }
}

HWY_INLINE void Weigh(SearchTag df, const float* HWY_RESTRICT x, const float* const* columns, size_t j,
                      hn::Vec<SearchTag> variance, float* HWY_RESTRICT w) {
  if (columns) {
    WeighByImportance<kGroupSize>(df, x, columns, j * kGroupSize, variance, w);
    return;
  }
  for (size_t i = 0; i < kGroupSize * hn::Lanes(df); i += hn::Lanes(df)) {
    const auto xi = hn::Load(df, x + i);
    hn::Store(hn::Mul(xi, xi), df, w + i);
  }
}

// Whether the shift of point k of a group is -1/8, in each lane.
struct IsDown {
  template <class VU>
  HWY_INLINE auto operator()(VU shifts, size_t k) const {
    const hn::RebindToUnsigned<SearchTag> du;
    return hn::TestBit(shifts, hn::Set(du, k == 0 ? 2 : 1));
  }
};

// Adds sum x * q and sum q^2 of group j to both sums.
HWY_INLINE void AddGroup(SearchTag df, const float* HWY_RESTRICT x, const float* HWY_RESTRICT w, size_t j,
                         const int32_t* HWY_RESTRICT scale_codes, const Iq1Block* blocks, hn::Vec<SearchTag>& sum_xq,
                         hn::Vec<SearchTag>& sum_q2) {
  const hn::RebindToSigned<SearchTag> di;
  const hn::RebindToUnsigned<SearchTag> du;
  const Grid& grid = Iq1Grid();
  const size_t N = hn::Lanes(df);
  const auto scale_code = hn::Load(di, scale_codes + j * N);
  const auto factor = hn::ConvertTo(df, hn::Add(hn::Add(scale_code, scale_code), hn::Set(di, 1)));
  HWY_ALIGN uint32_t codes[2 * kMaxGroups], shifts[kMaxGroups];
  for (size_t lane = 0; lane < N; ++lane) {
    for (size_t k = 0; k < 2; ++k) codes[k * N + lane] = grid.Point(blocks[lane].points[2 * j + k]);
    shifts[lane] = blocks[lane].shifts[j];
  }
  for (size_t k = 0; k < 2; ++k) {
    auto code = hn::Load(du, codes + k * N);
    const auto shift = iq1::ShiftOf(df, IsDown()(hn::Load(du, shifts), k));
    for (size_t i = 8 * k; i < 8 * k + 8; ++i, code = hn::ShiftRight<2>(code)) {
      const auto q = hn::Mul(iq1::LevelValue(df, hn::And(code, hn::Set(du, 3)), shift), factor);
      const auto wq = hn::Mul(hn::Load(df, w + i * N), q);
      sum_xq = hn::Add(sum_xq, hn::Mul(wq, hn::Load(df, x + i * N)));
      sum_q2 = hn::Add(sum_q2, hn::Mul(wq, q));
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
  const V square_sum = columns ? SumOfSquares<kSuper>(df, x) : hn::Zero(df);
  const V variance = hn::Div(hn::Mul(hn::Set(df, 2.0f), square_sum), hn::Set(df, float{kSuper}));
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize * N;
    Weigh(df, xj, columns, j, variance, w);
    iq1::Sort<kGroupSize>(xj, keys, sorted);
    SumUp(df, sorted, w, sums);
    const iq1::Start start = iq1::StartScore<kGroupSize, 2>(df, xj, w, kIq1MNegligible);
    unsure |= start.unsure;
    iq1::Splits splits(start.score);
    (start.near ? Search<true> : Search<false>)(df, sums, splits);
    iq1::TakeLevels<kGroupSize>(df, splits, 3, keys, sorted, levels);
    const uint64_t moved = iq1::PutOnGrid<kGroupSize>(df, xj, w, IsDown(), levels);
    const V scale = iq1::Refit<kGroupSize>(df, xj, w, IsDown(), moved, levels);
    hn::Store(iq1::KeepLanes(df, levels.found, scale), df, scales + j * N);
    iq1::StorePoints<kGroupSize>(df, j, levels, blocks);
  }
  V d = iq1::TakeScales<kGroups>(df, scales, codes, blocks);
  const auto nothing = hn::Eq(d, hn::Zero(df));
  V sum_xq = hn::Zero(df), sum_q2 = hn::Zero(df);
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize * N;
    Weigh(df, xj, columns, j, variance, w);
    AddGroup(df, xj, w, j, codes, blocks, sum_xq, sum_q2);
  }
  d = hn::IfThenElse(hn::Gt(sum_q2, hn::Zero(df)), hn::Div(sum_xq, sum_q2), d);
  iq1::StoreFactors(df, hn::IfThenZeroElse(nothing, hn::Mul(d, hn::Set(df, kIq1MFactor))), blocks);
  return unsure;
}

struct Layout {
  static constexpr size_t kBlockBytes = Encoder::kBlockBytes, kGroupSize = iq1_m::kGroupSize;

  static HWY_INLINE void Scales(const uint8_t* block, float* scale) {
    const hn::CappedTag<float, 4> df;
    const hn::RebindToSigned<decltype(df)> di32;
    const hn::RebindToUnsigned<decltype(df)> du32;
    uint16_t words[4];
    hwy::CopyBytes<8>(block + kScalesAt, words);
    const uint16_t half =
        static_cast<uint16_t>(words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12);
    const auto d = BroadcastHalf(df, reinterpret_cast<const uint8_t*>(&half));
    const auto shifts = hn::Mul(hn::Iota(du32, 0), hn::Set(du32, 3));
    for (size_t m = 0; m < 4; ++m) {
      const auto code = hn::And(hn::Shr(hn::Set(du32, words[m] * 2u), shifts), hn::Set(du32, 14));
      const auto factor = hn::ConvertTo(df, hn::BitCast(di32, hn::Or(code, hn::Set(du32, 1))));
      hn::StoreU(hn::Mul(d, factor), df, scale + 4 * m);
    }
  }

  static HWY_INLINE void Points(const uint8_t* block, size_t g, uint32_t* points) {
    const uint8_t* low = block + 4 * g;
    const uint32_t high0 = block[kHighAt + 2 * g], high1 = block[kHighAt + 2 * g + 1];
    points[0] = low[0] | (high0 << 8 & 0xf00);
    points[1] = low[1] | (high0 << 4 & 0xf00);
    points[2] = low[2] | (high1 << 8 & 0xf00);
    points[3] = low[3] | (high1 << 4 & 0xf00);
  }

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, Sink& sink) {
    const PanelWords d;
    const PanelBytes d8;
    WordsV words[4], high[4], low[4];
    LoadWords(rows, kScalesAt - 8, words);
    const auto part = [&](WordsV word, uint32_t mask) HWY_ATTR { return hn::And(word, hn::Set(d, mask)); };
    const WordsV first = hn::Or(part(hn::ShiftRight<12>(words[2]), 0xf), part(hn::ShiftRight<24>(words[2]), 0xf0));
    const WordsV last = hn::Or(part(hn::ShiftRight<4>(words[3]), 0xf00), part(hn::ShiftRight<16>(words[3]), 0xf000));
    const FloatsV scale = hn::Mul(LowHalves(hn::Or(first, last)), hn::Set(PanelFloats(), iq1::kEighth));
    for (size_t m = 0; m < 4; m += 2) {
      const WordsV codes = words[2 + m / 2];
      StoreOddScales<3>(scale, codes, 4, 4 * m, sink);
      StoreOddScales<3>(scale, hn::ShiftRight<16>(codes), 4, 4 * m + 4, sink);
    }
    LoadWords(rows, kHighAt, high);
    HWY_UNROLL(8)
    for (size_t w = 0; w < 8; w += 2) {  // words of four points
      if (w % 4 == 0) LoadWords(rows, 4 * w, low);
      const auto bytes = hn::BitCast(d8, high[w / 2]);
      const hn::Vec<PanelBytes> bits[2] = {grid_rows::Fields<4>(bytes, 0), grid_rows::Fields<4>(bytes, 16)};
      const hn::Mask<PanelBytes> down[2] = {hn::TestBit(bits[0], hn::Set(d8, 8)), hn::TestBit(bits[1], hn::Set(d8, 8))};
      iq1::UnpackGroups(low + w % 4, bits, down, w, sink);
    }
  }
#endif  // LOWBIT_GRID_ROWS
};

using Functions = iq1::Format<Encoder, Layout>;

}  // namespace iq1_m
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq1_m::Functions, "IQ1_M", /*ggml_type=*/29, /*block_size=*/256, /*block_bytes=*/56,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
