// Shared by Q4_0, Q4_1, Q5_0 and Q5_1, which differ only in their numbers. A block is 32 weights:
//
//   d           float16
//   m           float16, affine formats only
//   fifth[4]    5-bit formats only: bit i is bit 4 of code i, little-endian
//   nibbles[16] byte j: bits 0-3 of code j in bits 0-3, of code j + 16 in bits 4-7
//
//   w[i] = d * (code[i] - 2^(bits - 1)), affine: d * code[i] + m
//
// Without importances, the weight of largest magnitude fixes the scale (affine: the smallest and the largest weight),
// and each weight is rounded once. With importances, a search fits the scale for many blocks at once (search-inl.h).
// The weight of an error is importance * sqrt(mean square of the row + x^2).
//
// Sources: ggml-common.h (block_q4_0, ...), quantize_row_q4_0_ref, quantize_row_q4_0_impl, and so on.
#if defined(LOWBIT_FORMATS_BLOCK32_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_BLOCK32_INL_H_
#undef LOWBIT_FORMATS_BLOCK32_INL_H_
#else
#define LOWBIT_FORMATS_BLOCK32_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "hwy/highway.h"
#include "src/formats/block-inl.h"
#include "src/formats/kquant-inl.h"
#include "src/formats/search/affine-inl.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// Multipliers to try with importances, in affine formats.
constexpr AffineGrid kBlock32Grid = {-0.9f, 0.05f, 36};

template <int kBits, bool kAffine>
struct Block32 {
  static constexpr size_t kBlock = 32;
  static constexpr size_t kFifthAt = kAffine ? 4 : 2;
  static constexpr size_t kNibblesAt = kFifthAt + (kBits == 5 ? 4 : 0);
  static constexpr size_t kBlockBytes = kNibblesAt + 16;
  static constexpr int kTop = (1 << kBits) - 1;
  static constexpr int kHalf = 1 << (kBits - 1);

  // ---------------------------------------------------------------------------------------------- codes and bytes

  static HWY_INLINE void Pack(const uint8_t* codes, float d, float m, uint8_t* block) {
    StoreHalf(d, block);
    if constexpr (kAffine) StoreHalf(m, block + 2);
    PackCodes(codes, block);
  }

  static HWY_INLINE void PackCodes(const uint8_t* codes, uint8_t* block) {
    const hn::FixedTag<uint8_t, 16> du8;
    const auto low = hn::LoadU(du8, codes), high = hn::LoadU(du8, codes + 16);
    if constexpr (kBits == 5) {
      const auto fifth = hn::Set(du8, 16);
      hn::StoreMaskBits(du8, hn::TestBit(low, fifth), block + kFifthAt);
      hn::StoreMaskBits(du8, hn::TestBit(high, fifth), block + kFifthAt + 2);
    }
    hn::StoreU(hn::Or(hn::And(low, hn::Set(du8, 15)), hn::ShiftLeft<4>(high)), du8, block + kNibblesAt);
  }

  static HWY_INLINE void UnpackCodes(const uint8_t* block, uint8_t* codes) {
    const hn::FixedTag<uint8_t, 16> du8;
    const auto nibbles = hn::LoadU(du8, block + kNibblesAt);
    auto low = hn::And(nibbles, hn::Set(du8, 15)), high = hn::ShiftRight<4>(nibbles);
    if constexpr (kBits == 5) {
      // Each load reads 8 bytes; the nibbles follow, so these bytes exist.
      const auto fifth = hn::Set(du8, 16);
      low = hn::Or(low, hn::IfThenElseZero(hn::LoadMaskBits(du8, block + kFifthAt), fifth));
      high = hn::Or(high, hn::IfThenElseZero(hn::LoadMaskBits(du8, block + kFifthAt + 2), fifth));
    }
    StorePair(low, high, codes);
  }

  // --------------------------------------------------------------------------------------------- scalar reference

  // Truncates. Infinity and NaN (1 / d overflows for the smallest d) give 0, the low byte of x86's conversion.
  static uint8_t ReferenceCode(float v) {
    return v > -1.0f && v < 128.0f ? static_cast<uint8_t>(HWY_MIN(kTop, static_cast<int>(v))) : 0;
  }

  static void ReferencePlain(const float* x, uint8_t* block) {
    uint8_t codes[kBlock];
    float d, m = 0.0f;
    if constexpr (kAffine) {
      float max = -hwy::HighestValue<float>();
      m = hwy::HighestValue<float>();
      for (size_t i = 0; i < kBlock; ++i) {
        if (x[i] < m) m = x[i];
        if (x[i] > max) max = x[i];
      }
      d = (max - m) / static_cast<float>(kTop);
      const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
      for (size_t i = 0; i < kBlock; ++i) codes[i] = ReferenceCode((x[i] - m) * inverse + 0.5f);
    } else {
      d = reference::Extreme(kBlock, x) / static_cast<float>(-kHalf);
      const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
      for (size_t i = 0; i < kBlock; ++i) codes[i] = ReferenceCode(x[i] * inverse + (static_cast<float>(kHalf) + 0.5f));
    }
    Pack(codes, d, m, block);
  }

  static void ReferenceWeighted(const float* x, const float* importance, float mean_square, uint8_t* block) {
    uint8_t codes[kBlock];
    float w[kBlock];
    for (size_t i = 0; i < kBlock; ++i) w[i] = importance[i] * std::sqrt(mean_square + x[i] * x[i]);
    float d, minimum = 0.0f;
    if constexpr (kAffine) {
      d = reference::FitAffine(kBlock, kTop, kBlock32Grid, /*absolute=*/false, x, w, codes, &minimum);
    } else {
      d = reference::FitSymmetric(kBlock, kHalf, x, w, codes);
    }
    Pack(codes, d, -minimum, block);
  }

  // -------------------------------------------------------------------------------------------------- vector code

  using DF = hn::CappedTag<float, 16>;
  using VF = hn::Vec<DF>;

  // Blocks per batch without importances, so that divisions and roundings to float16 use all lanes.
  static constexpr size_t kBatch = 16;

  // The weights that fix the scale of each block: the smallest and the largest, or (in `high`) the first of largest
  // magnitude. The order of comparisons has no effect, so the weights of a block go across the lanes. Infinite if a
  // weight is not finite.
  struct Extremes {
    HWY_ALIGN float low[kBatch] = {}, high[kBatch] = {};

    HWY_INLINE void Find(size_t b, const float* x) {
      const DF df;
      VF min = hn::LoadU(df, x), max = min, nan = hn::Mul(min, hn::Zero(df));
      for (size_t i = hn::Lanes(df); i < kBlock; i += hn::Lanes(df)) {
        const VF xi = hn::LoadU(df, x + i);
        min = hn::Min(min, xi);
        max = hn::Max(max, xi);
        nan = hn::Add(nan, hn::Mul(xi, hn::Zero(df)));  // NaN for infinity too
      }
      low[b] = hn::ReduceMin(df, min);
      high[b] = hn::ReduceMax(df, max);
      if (HWY_UNLIKELY(!hn::AllTrue(df, hn::Eq(nan, nan)))) {
        high[b] = hwy::BitCastScalar<float>(uint32_t{0x7F800000});
      } else if constexpr (kAffine) {
        // A zero gets the sign of the first zero.
        if (low[b] == 0.0f) low[b] = FirstWithMagnitude(x, 0.0f);
        if (high[b] == 0.0f) high[b] = FirstWithMagnitude(x, 0.0f);
      } else {
        if (-low[b] > high[b]) high[b] = low[b];
        if (-low[b] == high[b]) high[b] = high[b] == 0.0f ? 0.0f : FirstWithMagnitude(x, high[b]);
      }
    }
  };

  // codes = (x - base) * inverse + bias, truncated.
  static HWY_INLINE void Round(const float* x, float base, float inverse, float bias, uint8_t* codes) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Repartition<uint8_t, decltype(df)> du8;
    const size_t N = hn::Lanes(df);
    const auto code = [&](size_t i) HWY_ATTR {
      auto v = hn::LoadU(df, x + i);
      if constexpr (kAffine) v = hn::Sub(v, hn::Set(df, base));
      return hn::ConvertInRangeTo(di32, hn::Add(hn::Mul(v, hn::Set(df, inverse)), hn::Set(df, bias)));
    };
    for (size_t i = 0; i < kBlock; i += 4 * N) {
      const auto bytes = hn::BitCast(du8, JoinBytes(di32, code(i), code(i + N), code(i + 2 * N), code(i + 3 * N)));
      hn::Store(hn::Min(bytes, hn::Set(du8, kTop)), du8, codes + i);
    }
  }

  // Encodes num (at most kBatch) blocks.
  static HWY_INLINE void Plain(const float* x, size_t num, uint8_t* out) {
    const DF df;
    const hn::Rebind<hwy::float16_t, DF> dh;
    HWY_ALIGN float scale[kBatch], inverse[kBatch], bias[kBatch];
    HWY_ALIGN hwy::float16_t scale_half[kBatch], low_half[kBatch];
    Extremes of;
    for (size_t b = 0; b < num; ++b) of.Find(b, x + b * kBlock);
    for (size_t b = 0; b < kBatch; b += hn::Lanes(df)) {
      const VF low = hn::Load(df, of.low + b), high = hn::Load(df, of.high + b), zero = hn::Zero(df);
      const VF d =
          hn::Div(kAffine ? hn::Sub(high, low) : high, hn::Set(df, static_cast<float>(kAffine ? kTop : -kHalf)));
      // If 1 / d overflows, products are infinite or NaN, and codes are 0, the low byte of x86's conversion.
      const VF one_by_d = hn::IfThenZeroElse(hn::Eq(d, zero), hn::Div(hn::Set(df, 1.0f), d));
      const auto overflow = hn::Eq(hn::Abs(one_by_d), hn::Inf(df));
      hn::Store(d, df, scale + b);
      hn::Store(hn::IfThenZeroElse(overflow, one_by_d), df, inverse + b);
      hn::Store(hn::IfThenZeroElse(overflow, hn::Set(df, (kAffine ? 0.0f : float{kHalf}) + 0.5f)), df, bias + b);
      hn::Store(hn::DemoteTo(dh, d), dh, scale_half + b);
      if constexpr (kAffine) hn::Store(hn::DemoteTo(dh, low), dh, low_half + b);
    }
    for (size_t b = 0; b < num; ++b, x += kBlock, out += kBlockBytes) {
      if (HWY_UNLIKELY(!hwy::ScalarIsFinite(scale[b]))) {
        ReferencePlain(x, out);
        continue;
      }
      HWY_ALIGN uint8_t codes[kBlock];
      Round(x, of.low[b], inverse[b], bias[b], codes);
      hwy::CopyBytes<2>(scale_half + b, out);
      if constexpr (kAffine) hwy::CopyBytes<2>(low_half + b, out + 2);
      PackCodes(codes, out);
    }
  }

  // The mean square of each row. Sums run from the first weight to the last, so each lane has a row.
  static void MeanSquares(const float* weights, size_t num_rows, size_t K, float* out) {
    const SearchTag df;
    const size_t N = hn::Lanes(df);
    HWY_ALIGN float x[kBlock * kMaxGroups], means[kMaxGroups];
    for (size_t r = 0; r < num_rows; r += N) {
      const float* rows[kMaxGroups];
      for (size_t lane = 0; lane < N; ++lane) rows[lane] = weights + HWY_MIN(r + lane, num_rows - 1) * K;
      auto sum = hn::Zero(df);
      for (size_t k = 0; k < K; k += kBlock) {
        Transpose(rows, k, kBlock, x);
        for (size_t i = 0; i < kBlock * N; i += N) {
          const auto xi = hn::Load(df, x + i);
          sum = hn::Add(sum, hn::Mul(xi, xi));
        }
      }
      hn::Store(hn::Div(sum, hn::Set(df, static_cast<float>(K))), df, means);
      std::copy_n(means, HWY_MIN(N, num_rows - r), out + r);
    }
  }

  // The weights of errors for the blocks of a vector. `finite` is 1 in lanes where all of them are finite, else 0.
  static HWY_INLINE void Weigh(const float* x, const float* const* columns, const float* mean_square, float* w,
                               float* finite) {
    const SearchTag df;
    const size_t N = hn::Lanes(df);
    WeighByImportance<kBlock>(df, x, columns, 0, hn::Load(df, mean_square), w);
    auto all_finite = hn::IsFinite(hn::Load(df, w));
    for (size_t i = 1; i < kBlock; ++i) all_finite = hn::And(all_finite, hn::IsFinite(hn::Load(df, w + i * N)));
    hn::Store(hn::IfThenElseZero(all_finite, hn::Set(df, 1.0f)), df, finite);
  }

  // Blocks [first, first + num), one per lane of kFitWays vectors. Lanes after the last block repeat it.
  static HWY_INLINE void Weighted(const float* weights, const float* importance, const float* mean_squares,
                                  size_t per_row, size_t first, size_t num, uint8_t* out) {
    constexpr size_t kMaxLanes = kFitWays * kMaxGroups;
    const SearchTag df;
    const size_t N = hn::Lanes(df);
    const float* rows[kMaxLanes];
    const float* columns[kMaxLanes];
    HWY_ALIGN float x[kBlock * kMaxLanes], w[kBlock * kMaxLanes];
    HWY_ALIGN float mean_square[kMaxLanes], d[kMaxLanes], minimum[kMaxLanes] = {}, finite[kMaxLanes];
    HWY_ALIGN uint32_t words[kBlock / 4 * kMaxLanes], codes[kBlock / 4 * kMaxLanes];
    for (size_t lane = 0; lane < kFitWays * N; ++lane) {
      const size_t block = first + HWY_MIN(lane, num - 1);
      rows[lane] = weights + block * kBlock;
      columns[lane] = importance + block % per_row * kBlock;
      mean_square[lane] = mean_squares[block / per_row];
    }
    for (size_t lane = 0; lane < kFitWays * N; lane += N) {
      Transpose(rows + lane, 0, kBlock, x + lane * kBlock);
      Weigh(x + lane * kBlock, columns + lane, mean_square + lane, w + lane * kBlock, finite + lane);
    }
    if constexpr (kAffine) {
      FitAffine<kBlock, false>(kTop, kBlock32Grid, x, w, d, minimum, words);
    } else {
      for (size_t lane = 0; lane < kFitWays * N; lane += N) {
        hn::Vec<SearchTag> scale;
        FitSymmetric<kBlock, false>(df, kHalf, x + lane * kBlock, w + lane * kBlock, scale, words + lane * kBlock / 4);
        hn::Store(scale, df, d + lane);
      }
    }
    for (size_t at = 0; at < kFitWays * N * kBlock / 4; at += N * kBlock / 4) {
      TransposeBack(words + at, kBlock / 4, codes + at);
    }
    for (size_t lane = 0; lane < num; ++lane) {
      uint8_t* block = out + lane * kBlockBytes;
      if (HWY_UNLIKELY(finite[lane] == 0.0f)) {
        ReferenceWeighted(rows[lane], columns[lane], mean_square[lane], block);
        continue;
      }
      Pack(reinterpret_cast<const uint8_t*>(codes + lane * kBlock / 4), d[lane], -minimum[lane], block);
    }
  }

  static void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
    const size_t per_row = K / kBlock, num_blocks = num_rows * per_row;
    if (importance == nullptr) {
      for (size_t b = 0; b < num_blocks; b += kBatch) {
        Plain(weights + b * kBlock, HWY_MIN(kBatch, num_blocks - b), out + b * kBlockBytes);
      }
      return;
    }
    std::vector<float> mean_squares(num_rows);
    MeanSquares(weights, num_rows, K, mean_squares.data());
    const size_t lanes = kFitWays * hn::Lanes(SearchTag());
    for (size_t b = 0; b < num_blocks; b += lanes) {
      const size_t num = HWY_MIN(lanes, num_blocks - b);
      Weighted(weights, importance, mean_squares.data(), per_row, b, num, out + b * kBlockBytes);
    }
  }

  static void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
    const DF df;
    const hn::Rebind<int32_t, DF> di32;
    const hn::Rebind<uint8_t, DF> du8;
    HWY_ALIGN uint8_t codes[kBlock];
    for (size_t b = 0; b < num_blocks; ++b, blocks += kBlockBytes, out += kBlock) {
      UnpackCodes(blocks, codes);
      const VF d = hn::Set(df, LoadHalf(blocks));
      for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
        const VF code = hn::ConvertTo(df, hn::PromoteTo(di32, hn::Load(du8, codes + i)));
        if constexpr (kAffine) {
          hn::StoreU(hn::Add(hn::Mul(code, d), hn::Set(df, LoadHalf(blocks + 2))), df, out + i);
        } else {
          hn::StoreU(hn::Mul(hn::Sub(code, hn::Set(df, static_cast<float>(kHalf))), d), df, out + i);
        }
      }
    }
  }

  static constexpr size_t kGroup = 32;
  static constexpr bool kSigned = false, kHasMinima = kAffine;
  static constexpr int kBias = kAffine ? 0 : kHalf;

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    const auto fifth = hn::Set(PanelBytes(), 16);
    HWY_UNROLL(8)
    for (size_t b = 0; b < Panel::kMaxK / kBlock; ++b, rows.Skip(kBlockBytes)) {
      if (HWY_UNLIKELY(b >= num_blocks)) break;
      sink.Scale(LoadHalfOfRows(rows, 0), b);
      if constexpr (kAffine) sink.Minimum(hn::Neg(LoadHalfOfRows(rows, 2)), b);
      WordsV words[4];  // the first has the fifth bits
      if constexpr (kBits == 5) LoadWords(rows, kFifthAt, words);
      UnpackNibbleRows(rows, kNibblesAt, b, [&](WordsV codes, size_t quad) HWY_ATTR {
        if constexpr (kBits == 5) {
          const auto bits = hn::IfThenElseZero(QuadBits(words[0], quad % 8), fifth);
          codes = hn::Or(codes, hn::BitCast(PanelWords(), bits));
        }
        sink.Quad(codes, quad);
      });
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    const hn::CappedTag<float, 8> df;
    LoadHalves(blocks, kBlockBytes, num_blocks, u.scale);
    if constexpr (kAffine) {
      LoadHalves(blocks + 2, kBlockBytes, num_blocks, u.minimum);
      for (size_t i = 0; i < 8; i += hn::Lanes(df)) hn::Store(hn::Neg(hn::Load(df, u.minimum + i)), df, u.minimum + i);
    }
    for (size_t b = 0; b < num_blocks; ++b) UnpackCodes(blocks + b * kBlockBytes, u.code + b * kBlock);
  }

  static constexpr PanelKind PanelOf() { return PanelKindOf<Block32>(); }

  static void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) {
    UnpackPanel<Block32>(rows, num_blocks, panel);
  }

  static void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {
    MultiplyFew<Block32>(rows, K, x, starts, sums);
  }

  static void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {
    UnpackLevels<Block32>(blocks, num_blocks, levels, scales, minima);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_BLOCK32_INL_H_
