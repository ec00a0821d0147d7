// What Q4_K and Q5_K share: eight groups of 32 weights, w = d * scale * code - dmin * minimum, scales and minima in 6
// bits.
//
//   scales[12]   bytes 0-3   scale 0-3 in bits 0-5, bits 4-5 of scale 4-7 in bits 6-7
//                bytes 4-7   minimum 0-3 in bits 0-5, bits 4-5 of minimum 4-7 in bits 6-7
//                bytes 8-11  bits 0-3 of scale 4-7 in bits 0-3, of minimum 4-7 in bits 4-7
//
// Sources: ggml-quants.c, get_scale_min_k4 and the two encoders of quantize_row_q4_K and quantize_row_q5_K.
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

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace affine_k {

constexpr size_t kGroups = 8;
constexpr size_t kGroupSize = 32;

// With importances: the same grid for every format.
constexpr AffineGrid kImportanceGrid = {-0.9f, 0.05f, 36};

// Codes above 63 (wrapped negative ones) spill into the neighbours' bits, as in the reference.
HWY_INLINE void PackScales(const uint8_t* scales, const uint8_t* minima, uint8_t* out) {
  for (size_t j = 0; j < 4; ++j) {
    out[j] = static_cast<uint8_t>(scales[j] | (scales[j + 4] >> 4 << 6));
    out[j + 4] = static_cast<uint8_t>(minima[j] | (minima[j + 4] >> 4 << 6));
    out[j + 8] = static_cast<uint8_t>((scales[j + 4] & 15) | (minima[j + 4] & 15) << 4);
  }
}

// Bytes 0-7: the scales, 8-15: the minima.
HWY_INLINE void UnpackScales(const uint8_t* packed, uint8_t* out) {
  uint32_t s, m, both;
  memcpy(&s, packed, 4);
  memcpy(&m, packed + 4, 4);
  memcpy(&both, packed + 8, 4);
  const uint32_t words[4] = {s & 0x3f3f3f3fu, (both & 0x0f0f0f0fu) | (s >> 2 & 0x30303030u), m & 0x3f3f3f3fu,
                             (both >> 4 & 0x0f0f0f0fu) | (m >> 2 & 0x30303030u)};
  memcpy(out, words, 16);
}

// The scales and offsets of a block that starts with d, dmin (float16) and the 12 bytes of scales.
HWY_INLINE void UnpackHeader(const uint8_t* block, float* scale, float* offset) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<uint8_t, decltype(df)> du8;
  HWY_ALIGN uint8_t codes[16];
  UnpackScales(block + 4, codes);
  const auto d = hn::Set(df, reference::LoadHalf(block)), dmin = hn::Set(df, reference::LoadHalf(block + 2));
  for (size_t j = 0; j < kGroups; j += hn::Lanes(df)) {
    const auto s = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(du8, codes + j)));
    const auto m = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(du8, codes + 8 + j)));
    hn::StoreU(hn::Mul(d, s), df, scale + j);
    hn::StoreU(hn::Mul(dmin, m), df, offset + j);
  }
}

// What the two formats differ in.
struct Parameters {
  int top;           // largest code
  AffineGrid grid;   // without importances
  bool clamp_scale;  // codes of scales that exceed 63 are cut, not packed as they are
};

// ------------------------------------------------------------------------------------------------ scalar reference

// Codes of the scales and minima, d and dmin. Without importances: the largest becomes 63.
HWY_INLINE void ReferenceScales(const float* scales, const float* minima, uint8_t* scale_codes, uint8_t* minimum_codes,
                                float* d, float* dmin) {
  float max_scale = 0.0f, max_minimum = 0.0f;
  for (size_t j = 0; j < kGroups; ++j) {
    if (scales[j] > max_scale) max_scale = scales[j];
    if (minima[j] > max_minimum) max_minimum = minima[j];
  }
  const float inverse_scale = max_scale > 0.0f ? 63.0f / max_scale : 0.0f;
  const float inverse_minimum = max_minimum > 0.0f ? 63.0f / max_minimum : 0.0f;
  for (size_t j = 0; j < kGroups; ++j) {
    const uint8_t s = static_cast<uint8_t>(reference::NearestInt(inverse_scale * scales[j]));
    const uint8_t m = static_cast<uint8_t>(reference::NearestInt(inverse_minimum * minima[j]));
    scale_codes[j] = HWY_MIN(s, uint8_t{63});
    minimum_codes[j] = HWY_MIN(m, uint8_t{63});
  }
  *d = max_scale / 63.0f;
  *dmin = max_minimum / 63.0f;
}

// Writes the header of a block and leaves its codes.
HWY_NOINLINE void ReferenceFit(const Parameters& p, const float* x, const float* importance, uint8_t* codes,
                               uint8_t* block) {
  float scales[kGroups], minima[kGroups], sums[kGroups], sum_x2 = 0.0f;
  for (size_t i = 0; i < kSuper; ++i) sum_x2 += x[i] * x[i];
  const float variance = 2 * sum_x2 / kSuper;
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize;
    float w[kGroupSize], group_x2 = 0.0f;
    for (size_t i = 0; i < kGroupSize; ++i) group_x2 += xj[i] * xj[i];
    const float mean = std::sqrt(group_x2 / kGroupSize);
    sums[j] = 0.0f;
    for (size_t i = 0; i < kGroupSize; ++i) {
      w[i] =
          importance ? importance[j * kGroupSize + i] * std::sqrt(variance + xj[i] * xj[i]) : mean + std::fabs(xj[i]);
      sums[j] += w[i];
    }
    scales[j] = reference::FitAffine(kGroupSize, p.top, importance ? kImportanceGrid : p.grid, false, xj, w,
                                     codes + j * kGroupSize, &minima[j]);
  }
  uint8_t scale_codes[kGroups], minimum_codes[kGroups], seen[2 * kGroups];
  float d, dmin;
  if (importance) {
    d = reference::FitPositive(kGroups, 63, scales, sums, scale_codes);
    dmin = reference::FitPositive(kGroups, 63, minima, sums, minimum_codes);
    for (size_t j = 0; p.clamp_scale && j < kGroups; ++j) {
      scale_codes[j] = HWY_MIN(scale_codes[j], uint8_t{63});
      minimum_codes[j] = HWY_MIN(minimum_codes[j], uint8_t{63});
    }
  } else {
    ReferenceScales(scales, minima, scale_codes, minimum_codes, &d, &dmin);
  }
  d = reference::StoreHalf(d, block);
  dmin = reference::StoreHalf(dmin, block + 2);
  PackScales(scale_codes, minimum_codes, block + 4);
  UnpackScales(block + 4, seen);
  for (size_t i = 0; i < kSuper; ++i) {
    const float scale = d * seen[i / kGroupSize], offset = dmin * seen[kGroups + i / kGroupSize];
    if (scale == 0.0f) continue;
    codes[i] = static_cast<uint8_t>(reference::NearestCode((x[i] + offset) / scale, 0, p.top));
  }
}

// ----------------------------------------------------------------------------------------------------- vector code

// ReferenceScales for one of the two: codes[j * N + lane] of values[j * N + lane]; returns d.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V ScaleToLargest(DF df, const float* values, int32_t* codes) {
  const hn::RebindToSigned<DF> di;
  const size_t N = hn::Lanes(df);
  const V zero = hn::Zero(df);
  V largest = zero;
  for (size_t j = 0; j < kGroups * N; j += N) {
    const V value = hn::Load(df, values + j);
    largest = hn::IfThenElse(hn::Gt(value, largest), value, largest);
  }
  const V inverse = hn::IfThenElseZero(hn::Gt(largest, zero), hn::Div(hn::Set(df, 63.0f), largest));
  for (size_t j = 0; j < kGroups * N; j += N) {
    const auto code = NearestLevel(df, hn::Mul(inverse, hn::Load(df, values + j)));
    hn::Store(hn::Min(hn::And(code, hn::Set(di, 255)), hn::Set(di, 63)), di, codes + j);
  }
  return hn::Div(largest, hn::Set(df, 63.0f));
}

// Writes d, dmin and the packed scales of the first num blocks, and turns scales and minima into what a reader will see
// (for the lanes below num).
HWY_INLINE void StoreHeaders(const Parameters& p, const int32_t* scale_codes, const int32_t* minimum_codes, size_t num,
                             size_t block_bytes, bool weighted, float* scales, float* minima, uint8_t* out) {
  const size_t N = hn::Lanes(SearchTag());
  const int limit = weighted && !p.clamp_scale ? 255 : 63;
  for (size_t lane = 0; lane < num; ++lane) {
    uint8_t s[kGroups], m[kGroups], seen[2 * kGroups];
    for (size_t j = 0; j < kGroups; ++j) {
      s[j] = static_cast<uint8_t>(HWY_MIN(limit, scale_codes[j * N + lane]));
      m[j] = static_cast<uint8_t>(HWY_MIN(limit, minimum_codes[j * N + lane]));
    }
    uint8_t* packed = out + lane * block_bytes + 4;
    PackScales(s, m, packed);
    UnpackScales(packed, seen);
    for (size_t j = 0; j < kGroups; ++j) {
      scales[j * N + lane] = seen[j];
      minima[j * N + lane] = seen[kGroups + j];
    }
  }
}

// Encoder::Fit of both formats.
HWY_INLINE void Fit(SearchTag df, const Parameters& p, const float* x, const float* const* columns, size_t num,
                    size_t block_bytes, uint32_t* words, uint8_t* out) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float w[kGroupSize * kMaxGroups];
  HWY_ALIGN float scales[kGroups * kMaxGroups], minima[kGroups * kMaxGroups], sums[kGroups * kMaxGroups];
  HWY_ALIGN int32_t scale_codes[kGroups * kMaxGroups], minimum_codes[kGroups * kMaxGroups];
  const V square_sum = columns ? SumOfSquares<kSuper>(df, x) : hn::Zero(df);
  const V variance = hn::Div(hn::Mul(hn::Set(df, 2.0f), square_sum), hn::Set(df, static_cast<float>(kSuper)));
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize * N;
    if (columns) {
      WeighByImportance<kGroupSize>(df, xj, columns, j * kGroupSize, variance, w);
      hn::Store(SumInOrder<kGroupSize>(df, w), df, sums + j * N);
    } else {
      const V mean = hn::Sqrt(hn::Div(SumOfSquares<kGroupSize>(df, xj), hn::Set(df, static_cast<float>(kGroupSize))));
      for (size_t i = 0; i < kGroupSize * N; i += N) hn::Store(hn::Add(mean, hn::Abs(hn::Load(df, xj + i))), df, w + i);
    }
    V scale, minimum;
    FitAffine<kGroupSize, false>(df, p.top, columns ? kImportanceGrid : p.grid, xj, w, scale, minimum,
                                 words + j * kGroupSize / 4 * N);
    hn::Store(scale, df, scales + j * N);
    hn::Store(minimum, df, minima + j * N);
  }

  V d, dmin;
  if (columns) {
    FitPositive<kGroups>(df, 63, scales, sums, d, scale_codes);
    FitPositive<kGroups>(df, 63, minima, sums, dmin, minimum_codes);
  } else {
    d = ScaleToLargest(df, scales, scale_codes);
    dmin = ScaleToLargest(df, minima, minimum_codes);
  }
  d = StoreHalves(df, d, num, block_bytes, out);
  dmin = StoreHalves(df, dmin, num, block_bytes, out + 2);
  StoreHeaders(p, scale_codes, minimum_codes, num, block_bytes, columns != nullptr, scales, minima, out);
  for (size_t j = 0; j < kGroups; ++j) {
    const V scale = hn::Mul(d, hn::Load(df, scales + j * N)), offset = hn::Mul(dmin, hn::Load(df, minima + j * N));
    RoundAgain<kGroupSize>(df, x + j * kGroupSize * N, scale, offset, 0, p.top, words + j * kGroupSize / 4 * N);
  }
}

}  // namespace affine_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_AFFINE_K_INL_H_
