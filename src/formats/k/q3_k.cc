// Q3_K: 256 weights in 110 bytes, 3.4375 bits per weight. Sixteen groups of 16.
//
//   byte 0-31     high[32]   byte k, bit g: bit 2 of the code of weight 32 * g + k
//   byte 32-95    low[64]    byte 32 * h + k, h in [0, 2), k in [0, 32): bits 0-1 of the code of weight
//                            128 * h + 32 * p + k in bits 2p, 2p + 1
//   byte 96-107   scales     byte j < 8: bits 0-3 of scale j in bits 0-3, of scale j + 8 in bits 4-7;
//                            byte 8 + j % 4: bits 4-5 of scale j in bits 2 * (j / 4), 2 * (j / 4) + 1
//   byte 108-109  d          float16
//
//   w[i] = d * (scale[i / 16] - 32) * (code[i] - 4)
//
// Source: ggml-common.h (block_q3_K), quantize_row_q3_K_ref, quantize_row_q3_K_impl, dequantize_row_q3_K.

// Fit: Encoder::Fit in this file; with importances FitSymmetric in search/search-inl.h, without FitGroupsByDescent in
//   search/descent-inl.h; scalar reference: Encoder::Reference in this file.
// Packing: Encoder::Pack and PackScales in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/k/q3_k.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/kquant-inl.h"
#include "src/formats/search/descent-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q3_k {

constexpr size_t kGroups = 16, kGroupSize = 16;
constexpr size_t kLowAt = 32, kScalesAt = 96, kDAt = 108;
constexpr int kHalf = 4, kScaleHalf = 32;  // codes are levels in [-kHalf, kHalf) plus kHalf; scales' codes likewise

HWY_INLINE void PackScales(const uint8_t* scales, uint8_t* out) {
  for (size_t j = 0; j < 8; ++j) out[j] = static_cast<uint8_t>((scales[j] & 15) | (scales[j + 8] & 15) << 4);
  for (size_t j = 0; j < 4; ++j) {
    const int low = scales[j] >> 4 | scales[j + 4] >> 4 << 2;
    const int high = scales[j + 8] >> 4 | scales[j + 12] >> 4 << 2;
    out[8 + j] = static_cast<uint8_t>(low | high << 4);
  }
}

struct Encoder {
  static constexpr size_t kBlockBytes = 110;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) {
    const hn::CappedTag<uint8_t, 32> d;
    for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
      auto high = hn::Zero(d);
      for (size_t g = 8; g-- > 0;) {
        high = hn::Or(hn::Add(high, high), hn::ShiftRight<2>(hn::LoadU(d, codes + 32 * g + k)));
      }
      hn::StoreU(high, d, block + k);
    }
    PackTwoBits(codes, block + kLowAt);
  }

  static void Reference(const float* x, const float* importance, uint8_t* block);
  static void Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words, uint8_t* out);
};

// ------------------------------------------------------------------------------------------------- scalar reference

// Without importances: the scale of largest magnitude becomes -32. Returns d.
HWY_INLINE float ReferenceScaleToExtreme(const float* scales, uint8_t* codes) {
  const float extreme = reference::Extreme(kGroups, scales);
  memset(codes, 0, kGroups);
  if (extreme == 0.0f) return 0.0f;
  const float multiplier = static_cast<float>(-kScaleHalf) / extreme;
  for (size_t j = 0; j < kGroups; ++j) {
    const int8_t level = static_cast<int8_t>(reference::NearestInt(multiplier * scales[j]));
    codes[j] = static_cast<uint8_t>(HWY_MAX(-kScaleHalf, HWY_MIN(kScaleHalf - 1, level)) + kScaleHalf);
  }
  return 1.0f / multiplier;
}

HWY_NOINLINE void Encoder::Reference(const float* x, const float* importance, uint8_t* block) {
  uint8_t codes[kSuper], scale_codes[kGroups] = {};  // zeroed for GCC, which does not see that they are set
  float scales[kGroups], sums[kGroups] = {}, sum_x2 = 0.0f;
  for (size_t i = 0; i < kSuper; ++i) sum_x2 += x[i] * x[i];
  const float variance = 2 * sum_x2 / kSuper;
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize;
    float w[kGroupSize];
    for (size_t i = 0; importance && i < kGroupSize; ++i) {
      w[i] = importance[j * kGroupSize + i] * std::sqrt(variance + xj[i] * xj[i]);
      sums[j] += w[i];
    }
    uint8_t* group_codes = codes + j * kGroupSize;
    scales[j] = importance ? reference::FitSymmetric(kGroupSize, kHalf, xj, w, group_codes)
                           : reference::FitByDescent(kGroupSize, kHalf, xj, group_codes);
  }
  const float exact_d = importance ? reference::FitSymmetric(kGroups, kScaleHalf, scales, sums, scale_codes)
                                   : ReferenceScaleToExtreme(scales, scale_codes);
  PackScales(scale_codes, block + kScalesAt);
  StoreHalf(exact_d, block + kDAt);
  const float d = LoadHalf(block + kDAt);
  for (size_t i = 0; i < kSuper; ++i) {
    const float scale = d * (scale_codes[i / kGroupSize] - kScaleHalf);
    if (scale == 0.0f) continue;
    codes[i] = static_cast<uint8_t>(reference::NearestCode(x[i] / scale, -kHalf, kHalf - 1) + kHalf);
  }
  Pack(codes, block);
}

// ------------------------------------------------------------------------------------------------------ vector code

// Like ReferenceScaleToExtreme; the codes have the layout of the searches.
HWY_INLINE hn::Vec<SearchTag> ScaleToExtreme(SearchTag df, const float* scales, uint32_t* words) {
  using V = hn::Vec<SearchTag>;
  const hn::RebindToSigned<SearchTag> di;
  const size_t N = hn::Lanes(df);
  const V extreme = Extreme<kGroups>(df, scales);
  const auto nothing = hn::Eq(extreme, hn::Zero(df));
  const V multiplier = hn::Div(hn::Set(df, static_cast<float>(-kScaleHalf)), extreme);
  HWY_ALIGN int32_t codes[kGroups * kMaxGroups];
  for (size_t j = 0; j < kGroups * N; j += N) {
    // The reference stores a level in a signed byte before it clamps it.
    const auto level = NearestLevel(df, hn::Mul(multiplier, hn::Load(df, scales + j)));
    const auto wrapped = hn::ShiftRight<24>(hn::ShiftLeft<24>(level));
    const auto cut = hn::Max(hn::Set(di, -kScaleHalf), hn::Min(hn::Set(di, kScaleHalf - 1), wrapped));
    const auto code = hn::Add(cut, hn::Set(di, kScaleHalf));
    hn::Store(hn::IfThenZeroElse(hn::RebindMask(di, nothing), code), di, codes + j);
  }
  for (size_t j = 0; j < kGroups; j += 4) {
    const int32_t* from = codes + j * N;
    StoreCodes(di, hn::Load(di, from), hn::Load(di, from + N), hn::Load(di, from + 2 * N), hn::Load(di, from + 3 * N),
               words + j / 4 * N);
  }
  return hn::IfThenZeroElse(nothing, hn::Div(hn::Set(df, 1.0f), multiplier));
}

HWY_NOINLINE void Encoder::Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words,
                               uint8_t* out) {
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float w[kGroupSize * kMaxGroups];
  HWY_ALIGN float scales[kGroups * kMaxGroups], sums[kGroups * kMaxGroups];
  HWY_ALIGN uint32_t scale_words[kGroups / 4 * kMaxGroups];
  const V square_sum = columns ? SumOfSquares<kSuper>(df, x) : hn::Zero(df);
  const V variance = hn::Div(hn::Mul(hn::Set(df, 2.0f), square_sum), hn::Set(df, float{kSuper}));
  for (size_t j = 0; columns && j < kGroups; ++j) {
    const size_t at = j * kGroupSize * N;
    V scale;
    WeighByImportance<kGroupSize>(df, x + at, columns, j * kGroupSize, variance, w);
    hn::Store(SumInOrder<kGroupSize>(df, w), df, sums + j * N);
    FitSymmetric<kGroupSize, false>(df, kHalf, x + at, w, scale, words + at / 4);
    hn::Store(scale, df, scales + j * N);
  }
  V exact_d;
  if (columns) {
    FitSymmetric<kGroups, true>(df, kScaleHalf, scales, sums, exact_d, scale_words);
  } else {
    FitGroupsByDescent<kGroups, kGroupSize>(df, kHalf, x, scales, words);
    exact_d = ScaleToExtreme(df, scales, scale_words);
  }
  const V d = StoreHalves(df, exact_d, num, kBlockBytes, out + kDAt);
  for (size_t lane = 0; lane < num; ++lane) {
    uint32_t scale_codes[kGroups / 4];
    for (size_t m = 0; m < kGroups / 4; ++m) scale_codes[m] = scale_words[m * N + lane];
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(scale_codes);
    PackScales(bytes, out + lane * kBlockBytes + kScalesAt);
    for (size_t j = 0; j < kGroups; ++j) scales[j * N + lane] = static_cast<float>(bytes[j] - kScaleHalf);
  }
  for (size_t j = 0; j < kGroups; ++j) {
    const size_t at = j * kGroupSize * N;
    const V scale = hn::Mul(d, hn::Load(df, scales + j * N));
    RoundAgain<kGroupSize>(df, x + at, scale, hn::Zero(df), -kHalf, kHalf - 1, words + at / 4);
  }
}

struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Encoder::kBlockBytes, kGroup = kGroupSize;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = kHalf, kTop = 2 * kHalf - 1;

  static HWY_INLINE void UnpackScales(const uint8_t* block, float* scale) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Rebind<uint8_t, decltype(df)> du8;
    // Written as words of eight bytes, because they are loaded so next: narrower stores are not forwarded to such a
    // load.
    uint64_t low;
    uint32_t high;
    memcpy(&low, block + kScalesAt, 8);
    memcpy(&high, block + kScalesAt + 8, 4);
    constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f, kHigh = 0x3030303030303030;
    const uint64_t first = uint64_t{high} << 4 | uint64_t{high} << 34, second = uint64_t{high} | uint64_t{high} << 30;
    const uint64_t codes[2] = {(low & kLow) | (first & kHigh), (low >> 4 & kLow) | (second & kHigh)};
    const auto d = BroadcastHalf(df, block + kDAt);
    for (size_t j = 0; j < kGroups; j += hn::Lanes(df)) {
      const auto code = hn::PromoteTo(di32, hn::LoadU(du8, reinterpret_cast<const uint8_t*>(codes) + j));
      hn::Store(hn::Mul(d, hn::ConvertTo(df, hn::Sub(code, hn::Set(di32, kScaleHalf)))), df, scale + j);
    }
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    const PanelWords d;
    const auto four = hn::Set(d, 0x0F0F0F0F), top = hn::Set(d, 0x30303030), third = hn::Set(d, 0x04040404);
    WordsV high[8];
    for (size_t k = 0; k < 2; ++k) {
      WordsV words[4];
      LoadWords(rows, 16 * k, words);
      for (size_t i = 0; i < 4; ++i) high[4 * k + i] = words[i];
    }
    UnpackTwoBitRows(rows, kLowAt, [&](WordsV codes, size_t quad) HWY_ATTR {
      // Bit 4 * h + p of byte k is the third bit of code 128 * h + 32 * p + k.
      const auto bit = hn::ShiftRightSame(high[quad % 8], static_cast<int>(quad / 8));
      sink.Quad(hn::Or(codes, hn::And(hn::ShiftLeft<2>(bit), third)), quad);
    });
    const FloatsV scale = LoadHalfOfRows(rows, kDAt);
    WordsV scales[4];
    LoadWords(rows, kScalesAt - 4, scales);  // the scales are words 1 to 3
    const auto store = [&](WordsV low, WordsV high, size_t group) HWY_ATTR {
      StoreScales<-kScaleHalf>(scale, hn::Or(hn::And(low, four), hn::And(high, top)), group, sink);
    };
    store(scales[1], hn::ShiftLeft<4>(scales[3]), 0);
    store(scales[2], hn::ShiftLeft<2>(scales[3]), 4);
    store(hn::ShiftRight<4>(scales[1]), scales[3], 8);
    store(hn::ShiftRight<4>(scales[2]), hn::ShiftRight<2>(scales[3]), 12);
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    UnpackScales(block, u.scale);
    const hn::CappedTag<uint8_t, 32> d;
    const auto two = hn::Set(d, 3), third = hn::Set(d, 4);
    for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
      auto high = hn::LoadU(d, block + k);
      for (size_t h = 0; h < 2; ++h) {
        const auto low = hn::LoadU(d, block + kLowAt + 32 * h + k);
        const auto c0 = hn::Or(hn::And(low, two), hn::And(hn::ShiftLeft<2>(high), third));
        const auto c1 = hn::Or(hn::And(hn::ShiftRight<2>(low), two), hn::And(hn::Add(high, high), third));
        const auto c2 = hn::Or(hn::And(hn::ShiftRight<4>(low), two), hn::And(high, third));
        const auto c3 = hn::Or(hn::ShiftRight<6>(low), hn::And(hn::ShiftRight<1>(high), third));
        uint8_t* to = u.code + 128 * h + k;
        hn::Store(c0, d, to);
        hn::Store(c1, d, to + 32);
        hn::Store(c2, d, to + 64);
        hn::Store(c3, d, to + 96);
        high = hn::ShiftRight<4>(high);
      }
    }
  }
};

using Functions = SuperBlockFormat<Encoder, Codec>;

}  // namespace q3_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q3_k::Functions, "Q3_K", /*ggml_type=*/11, /*block_size=*/256, /*block_bytes=*/110,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
