// Shared by Q2_K, Q4_K and Q5_K: groups of weights with w = d * scale * code - dmin * minimum. Scale and minimum are
// small integers. A format provides its numbers and the packing of the integers:
//
//   struct Traits {
//     static constexpr size_t kBlockBytes, kGroupSize;
//     static constexpr size_t kDAt;                         // offset of d; dmin follows; both float16
//     static constexpr int kTop, kScaleTop;                 // largest code of a weight, of a scale or minimum
//     static constexpr AffineGrid kGrid;                    // without importances
//     static constexpr bool kAbsolute;                      // without importances: absolute errors, weighted by |x|
//     static constexpr float kVarianceFactor;               // with importances: factor of the mean square
//     static constexpr bool kClampPlain, kClampWeighted;    // clamp scale codes above kScaleTop (else they overflow)
//     static void PackScales(const uint8_t* scales, const uint8_t* minima, uint8_t* block);
//     static void UnpackScales(const uint8_t* block, uint8_t* out);  // all scales, then all minima
//     static void Pack(const uint8_t* codes, uint8_t* block);
//   };
//
// Sources: ggml-quants.c, the two encoders of each format: quantize_row_q4_K_ref, quantize_row_q4_K_impl, and so on.
#if defined(LOWBIT_FORMATS_AFFINE_K_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_AFFINE_K_INL_H_
#undef LOWBIT_FORMATS_AFFINE_K_INL_H_
#else
#define LOWBIT_FORMATS_AFFINE_K_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hwy/highway.h"
#include "src/formats/kquant-inl.h"
#include "src/formats/search/affine-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace affine_k {

// The grid with importances, for all three formats.
constexpr AffineGrid kImportanceGrid = {-0.9f, 0.05f, 36};

// The scales and offsets of a block's groups.
template <class Traits>
HWY_INLINE void UnpackHeader(const uint8_t* block, float* scale, float* offset) {
  constexpr size_t kGroups = kSuper / Traits::kGroupSize;
  const hn::CappedTag<float, 8> dg;
  const hn::Rebind<int32_t, decltype(dg)> di32;
  const hn::Rebind<uint8_t, decltype(dg)> du8;
  HWY_ALIGN uint8_t codes[2 * kGroups];
  Traits::UnpackScales(block, codes);
  const auto d = BroadcastHalf(dg, block + Traits::kDAt);
  const auto dmin = BroadcastHalf(dg, block + Traits::kDAt + 2);
  for (size_t j = 0; j < kGroups; j += hn::Lanes(dg)) {
    const auto s = hn::ConvertTo(dg, hn::PromoteTo(di32, hn::LoadU(du8, codes + j)));
    const auto m = hn::ConvertTo(dg, hn::PromoteTo(di32, hn::LoadU(du8, codes + kGroups + j)));
    hn::StoreU(hn::Mul(d, s), dg, scale + j);
    hn::StoreU(hn::Mul(dmin, m), dg, offset + j);
  }
}

// The same for rows side by side, of the layout of SixBitScales.
template <class Sink>
HWY_INLINE void UnpackRowHeaders(PackedRows& rows, Sink& sink) {
  const PanelWords d;
  const auto six = hn::Set(d, 0x3F3F3F3F), four = hn::Set(d, 0x0F0F0F0F), top = hn::Set(d, 0x30303030);
  WordsV words[4];
  LoadWords(rows, 0, words);
  const FloatsV scale = LowHalves(words[0]), minimum = LowHalves(hn::ShiftRight<16>(words[0]));
  StoreScales(scale, hn::And(words[1], six), 0, sink);
  StoreMinima(minimum, hn::And(words[2], six), 0, sink);
  const auto top_scales = hn::And(hn::ShiftRight<2>(words[1]), top),
             top_minima = hn::And(hn::ShiftRight<2>(words[2]), top);
  StoreScales(scale, hn::Or(hn::And(words[3], four), top_scales), 4, sink);
  StoreMinima(minimum, hn::Or(hn::And(hn::ShiftRight<4>(words[3]), four), top_minima), 4, sink);
}

template <class Traits>
struct Encoder {
  static constexpr size_t kBlockBytes = Traits::kBlockBytes;
  static constexpr size_t kGroupSize = Traits::kGroupSize;
  static constexpr size_t kGroups = kSuper / kGroupSize;
  static constexpr int kScaleTop = Traits::kScaleTop;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) { Traits::Pack(codes, block); }

  // ---------------------------------------------------------------------------------------------- scalar reference

  // Codes of the scales, or of the minima: the largest value gets kScaleTop. Returns d or dmin.
  static float ReferenceScaleToLargest(const float* values, uint8_t* codes) {
    float largest = 0.0f;
    for (size_t j = 0; j < kGroups; ++j) {
      if (values[j] > largest) largest = values[j];
    }
    const float inverse = largest > 0.0f ? kScaleTop / largest : 0.0f;
    for (size_t j = 0; j < kGroups; ++j) {
      codes[j] = static_cast<uint8_t>(reference::NearestInt(inverse * values[j]));
    }
    return largest / kScaleTop;
  }

  // The weight of each error in a group.
  static void ReferenceWeights(const float* x, const float* importance, float variance, float* w) {
    float sum_x2 = 0.0f;
    for (size_t i = 0; i < kGroupSize; ++i) sum_x2 += x[i] * x[i];
    const float mean = Traits::kAbsolute ? 0.0f : std::sqrt(sum_x2 / kGroupSize);
    for (size_t i = 0; i < kGroupSize; ++i) {
      w[i] = importance ? importance[i] * std::sqrt(variance + x[i] * x[i]) : mean + std::fabs(x[i]);
    }
  }

  static HWY_NOINLINE void Reference(const float* x, const float* importance, uint8_t* block) {
    uint8_t codes[kSuper], scale_codes[kGroups], minimum_codes[kGroups], seen[2 * kGroups];
    float scales[kGroups], minima[kGroups], sums[kGroups] = {}, sum_x2 = 0.0f;
    for (size_t i = 0; i < kSuper; ++i) sum_x2 += x[i] * x[i];
    const float variance = Traits::kVarianceFactor * sum_x2 / kSuper;
    for (size_t j = 0; j < kGroups; ++j) {
      float w[kGroupSize];
      const size_t at = j * kGroupSize;
      ReferenceWeights(x + at, importance ? importance + at : nullptr, variance, w);
      for (size_t i = 0; i < kGroupSize; ++i) sums[j] += w[i];
      scales[j] = reference::FitAffine(kGroupSize, Traits::kTop, importance ? kImportanceGrid : Traits::kGrid,
                                       !importance && Traits::kAbsolute, x + at, w, codes + at, &minima[j]);
    }
    float d, dmin;
    if (importance) {
      d = reference::FitPositive(kGroups, kScaleTop, scales, sums, scale_codes);
      dmin = reference::FitPositive(kGroups, kScaleTop, minima, sums, minimum_codes);
    } else {
      d = ReferenceScaleToLargest(scales, scale_codes);
      dmin = ReferenceScaleToLargest(minima, minimum_codes);
    }
    const int limit = Limit(importance != nullptr);
    for (size_t j = 0; j < kGroups; ++j) {
      scale_codes[j] = static_cast<uint8_t>(HWY_MIN(limit, scale_codes[j]));
      minimum_codes[j] = static_cast<uint8_t>(HWY_MIN(limit, minimum_codes[j]));
    }
    StoreHalf(d, block + Traits::kDAt);
    StoreHalf(dmin, block + Traits::kDAt + 2);
    d = LoadHalf(block + Traits::kDAt);
    dmin = LoadHalf(block + Traits::kDAt + 2);
    Traits::PackScales(scale_codes, minimum_codes, block);
    Traits::UnpackScales(block, seen);
    for (size_t i = 0; i < kSuper; ++i) {
      const float scale = d * seen[i / kGroupSize], offset = dmin * seen[kGroups + i / kGroupSize];
      if (scale == 0.0f) continue;
      codes[i] = static_cast<uint8_t>(reference::NearestCode((x[i] + offset) / scale, 0, Traits::kTop));
    }
    Pack(codes, block);
  }

  // --------------------------------------------------------------------------------------------------- vector code

  using V = hn::Vec<SearchTag>;

  static constexpr int Limit(bool weighted) {
    return (weighted ? Traits::kClampWeighted : Traits::kClampPlain) ? kScaleTop : 255;
  }

  // ReferenceScaleToLargest: codes[j * N + lane] of values[j * N + lane].
  static HWY_INLINE V ScaleToLargest(SearchTag df, const float* values, int32_t* codes) {
    const hn::RebindToSigned<SearchTag> di;
    const size_t N = hn::Lanes(df);
    V largest = hn::Zero(df);
    for (size_t j = 0; j < kGroups * N; j += N) {
      const V value = hn::Load(df, values + j);
      largest = hn::IfThenElse(hn::Gt(value, largest), value, largest);
    }
    const V top = hn::Set(df, static_cast<float>(kScaleTop));
    const V inverse = hn::IfThenElseZero(hn::Gt(largest, hn::Zero(df)), hn::Div(top, largest));
    for (size_t j = 0; j < kGroups * N; j += N) {
      const auto code = NearestLevel(df, hn::Mul(inverse, hn::Load(df, values + j)));
      hn::Store(hn::And(code, hn::Set(di, 255)), di, codes + j);
    }
    return hn::Div(largest, top);
  }

  // Fits the groups j to j + kFitWays - 1 of every super-block.
  static HWY_INLINE void FitGroups(SearchTag df, const float* x, const float* const* columns, size_t j, V variance,
                                   float* scales, float* minima, float* sums, uint32_t* words) {
    const size_t N = hn::Lanes(df), size = kGroupSize * N;
    HWY_ALIGN float w[kFitWays * kGroupSize * kMaxGroups];
    for (size_t v = 0; v < kFitWays; ++v) {
      const float* xv = x + v * size;
      float* wv = w + v * size;
      if (columns) {
        WeighByImportance<kGroupSize>(df, xv, columns, (j + v) * kGroupSize, variance, wv);
        hn::Store(SumInOrder<kGroupSize>(df, wv), df, sums + (j + v) * N);
        continue;
      }
      const V mean_square = hn::Div(SumOfSquares<kGroupSize>(df, xv), hn::Set(df, static_cast<float>(kGroupSize)));
      const V mean = Traits::kAbsolute ? hn::Zero(df) : hn::Sqrt(mean_square);
      for (size_t i = 0; i < size; i += N) hn::Store(hn::Add(mean, hn::Abs(hn::Load(df, xv + i))), df, wv + i);
    }
    if (columns) {
      FitAffine<kGroupSize, false>(Traits::kTop, kImportanceGrid, x, w, scales + j * N, minima + j * N, words);
    } else {
      FitAffine<kGroupSize, Traits::kAbsolute>(Traits::kTop, Traits::kGrid, x, w, scales + j * N, minima + j * N,
                                               words);
    }
  }

  // Packs the scales and minima of the first num blocks, and replaces them by the stored values.
  static HWY_INLINE void StoreScales(const int32_t* scale_codes, const int32_t* minimum_codes, int limit, size_t num,
                                     float* scales, float* minima, uint8_t* out) {
    const size_t N = hn::Lanes(SearchTag());
    for (size_t lane = 0; lane < num; ++lane, out += kBlockBytes) {
      uint8_t s[kGroups], m[kGroups], seen[2 * kGroups];
      for (size_t j = 0; j < kGroups; ++j) {
        s[j] = static_cast<uint8_t>(HWY_MIN(limit, scale_codes[j * N + lane]));
        m[j] = static_cast<uint8_t>(HWY_MIN(limit, minimum_codes[j * N + lane]));
      }
      Traits::PackScales(s, m, out);
      Traits::UnpackScales(out, seen);
      for (size_t j = 0; j < kGroups; ++j) {
        scales[j * N + lane] = seen[j];
        minima[j * N + lane] = seen[kGroups + j];
      }
    }
  }

  static HWY_NOINLINE void Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words,
                               uint8_t* out) {
    const size_t N = hn::Lanes(df);
    HWY_ALIGN float scales[kGroups * kMaxGroups], minima[kGroups * kMaxGroups], sums[kGroups * kMaxGroups];
    HWY_ALIGN int32_t scale_codes[kGroups * kMaxGroups], minimum_codes[kGroups * kMaxGroups];
    const V square_sum = columns ? SumOfSquares<kSuper>(df, x) : hn::Zero(df);
    const V variance = hn::Div(hn::Mul(hn::Set(df, Traits::kVarianceFactor), square_sum), hn::Set(df, float{kSuper}));
    for (size_t j = 0; j < kGroups; j += kFitWays) {
      const size_t at = j * kGroupSize * N;
      FitGroups(df, x + at, columns, j, variance, scales, minima, sums, words + at / 4);
    }
    V d, dmin;
    if (columns) {
      FitPositive<kGroups>(df, kScaleTop, scales, sums, d, scale_codes);
      FitPositive<kGroups>(df, kScaleTop, minima, sums, dmin, minimum_codes);
    } else {
      d = ScaleToLargest(df, scales, scale_codes);
      dmin = ScaleToLargest(df, minima, minimum_codes);
    }
    d = StoreHalves(df, d, num, kBlockBytes, out + Traits::kDAt);
    dmin = StoreHalves(df, dmin, num, kBlockBytes, out + Traits::kDAt + 2);
    StoreScales(scale_codes, minimum_codes, Limit(columns != nullptr), num, scales, minima, out);
    for (size_t j = 0; j < kGroups; ++j) {
      const V scale = hn::Mul(d, hn::Load(df, scales + j * N)), offset = hn::Mul(dmin, hn::Load(df, minima + j * N));
      const size_t at = j * kGroupSize * N;
      RoundAgain<kGroupSize>(df, x + at, scale, offset, 0, Traits::kTop, words + at / 4);
    }
  }
};

// The packing that Q4_K and Q5_K share: eight scales and eight minima of 6 bits in bytes 4-15 of a block.
//
//   byte 4-7    scale 0-3 in bits 0-5, bits 4-5 of scale 4-7 in bits 6-7
//   byte 8-11   minimum 0-3 in bits 0-5, bits 4-5 of minimum 4-7 in bits 6-7
//   byte 12-15  bits 0-3 of scale 4-7 in bits 0-3, of minimum 4-7 in bits 4-7
//
// Source: get_scale_min_k4. Codes above 63 (wrapped negative ones) overflow into the neighbours' bits, as in the
// source.
struct SixBitScales {
  static constexpr size_t kDAt = 0;
  static constexpr int kScaleTop = 63;

  static HWY_INLINE void PackScales(const uint8_t* scales, const uint8_t* minima, uint8_t* block) {
    for (size_t j = 0; j < 4; ++j) {
      block[j + 4] = static_cast<uint8_t>(scales[j] | (scales[j + 4] >> 4 << 6));
      block[j + 8] = static_cast<uint8_t>(minima[j] | (minima[j + 4] >> 4 << 6));
      block[j + 12] = static_cast<uint8_t>((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
    }
  }

  static HWY_INLINE void UnpackScales(const uint8_t* block, uint8_t* out) {
    // Written as words of eight bytes, because they are loaded so next: narrower stores are not forwarded to such a
    // load.
    uint64_t low;
    uint32_t both;
    memcpy(&low, block + 4, 8);
    memcpy(&both, block + 12, 4);
    const uint64_t top = low >> 2 & 0x3030303030303030u;
    low &= 0x3f3f3f3f3f3f3f3fu;
    const uint32_t scales = (both & 0x0f0f0f0fu) | static_cast<uint32_t>(top);
    const uint32_t minima = (both >> 4 & 0x0f0f0f0fu) | static_cast<uint32_t>(top >> 32);
    const uint64_t words[2] = {(low & 0xffffffffu) | uint64_t{scales} << 32, low >> 32 | uint64_t{minima} << 32};
    memcpy(out, words, 16);
  }
};

}  // namespace affine_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_AFFINE_K_INL_H_
