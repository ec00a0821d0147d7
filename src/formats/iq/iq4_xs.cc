// IQ4_XS: 256 weights in 136 bytes, 4.25 bits per weight. Eight groups of 32; the levels are not evenly spaced.
//
//   byte 0-1    d            float16
//   byte 2-3    high         bits 2j, 2j + 1, starting at the lowest bit of the first byte: bits 4-5 of scale j
//   byte 4-7    low[4]       byte j: bits 0-3 of scale 2j in bits 0-3, of scale 2j + 1 in bits 4-7
//   byte 8-135  nibbles[128] byte 16 * g + k, k in [0, 16): code of weight 32 * g + k in bits 0-3, of weight
//                            32 * g + k + 16 in bits 4-7
//
//   w[i] = d * (scale[i / 32] - 32) * level[code[i]],
//   level = -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
//
// Source: ggml-common.h (block_iq4_xs, kvalues_iq4nl), quantize_row_iq4_nl_impl, dequantize_row_iq4_xs.

// Fit: Encoder::Fit in this file, FitScale in iq/iq4-inl.h; scalar reference: Encoder::Reference in this file.
// Packing: Encoder::Pack and Encoder::PackScales in this file, PackNibbles in iq/iq4-inl.h.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq4_xs.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq4_xs {

using iq4::kGroupSize;
constexpr size_t kGroups = kSuper / kGroupSize;
constexpr size_t kHighAt = 2, kLowAt = 4, kNibblesAt = 8;
constexpr int kScaleHalf = 32;  // the code of a scale is its level in [-kScaleHalf, kScaleHalf) plus kScaleHalf

struct Encoder {
  static constexpr size_t kBlock = kSuper, kBlockBytes = 136;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) {
    for (size_t g = 0; g < kGroups; ++g) iq4::PackNibbles(codes + 32 * g, block + kNibblesAt + 16 * g);
  }

  // codes[j * stride] is the code of scale j.
  static HWY_INLINE void PackScales(const int32_t* codes, size_t stride, uint8_t* block) {
    uint32_t high = 0, low = 0;
    for (size_t j = 0; j < kGroups; ++j) {
      const uint32_t code = static_cast<uint32_t>(codes[j * stride]);
      low |= (code & 15) << (4 * j);
      high |= code >> 4 << (2 * j);
    }
    for (size_t i = 0; i < 2; ++i) block[kHighAt + i] = static_cast<uint8_t>(high >> (8 * i));
    for (size_t i = 0; i < 4; ++i) block[kLowAt + i] = static_cast<uint8_t>(low >> (8 * i));
  }

  static void Reference(const float* x, const float* importance, uint8_t* block);
  static void Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words, uint8_t* out);
};

HWY_NOINLINE void Encoder::Reference(const float* x, const float* importance, uint8_t* block) {
  float scales[kGroups], sum_x2 = 0.0f;
  for (size_t i = 0; i < kSuper; ++i) sum_x2 += x[i] * x[i];
  const float variance = sum_x2 * (2.0f / kSuper);
  for (size_t j = 0; j < kGroups; ++j) {
    float w[kGroupSize];
    for (size_t i = 0; i < kGroupSize; ++i) {
      const float xi = x[j * kGroupSize + i];
      w[i] = importance ? importance[j * kGroupSize + i] * std::sqrt(variance + xi * xi) : xi * xi;
    }
    scales[j] = iq4::ReferenceScale(x + j * kGroupSize, w);
  }
  const float d = -reference::Extreme(kGroups, scales) / kScaleHalf;
  const float inverse_d = d != 0.0f ? 1.0f / d : 0.0f;
  StoreHalf(d, block);
  uint8_t codes[kSuper];
  int32_t scale_codes[kGroups];
  for (size_t j = 0; j < kGroups; ++j) {
    const int level = reference::NearestCode(inverse_d * scales[j], -kScaleHalf, kScaleHalf - 1);
    scale_codes[j] = level + kScaleHalf;
    const float scale = d * level;
    const float multiplier = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < kGroupSize; ++i) {
      codes[j * kGroupSize + i] = iq4::ReferenceCode(multiplier * x[j * kGroupSize + i]);
    }
  }
  PackScales(scale_codes, 1, block);
  Pack(codes, block);
}

HWY_NOINLINE void Encoder::Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words,
                               uint8_t* out) {
  using V = hn::Vec<SearchTag>;
  const hn::RebindToSigned<SearchTag> di;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float w[kGroupSize * kMaxGroups], scales[kGroups * kMaxGroups];
  HWY_ALIGN int32_t scale_codes[kGroups * kMaxGroups];
  const V sum_x2 = columns ? SumOfSquares<kSuper>(df, x) : hn::Zero(df);
  const V variance = hn::Mul(sum_x2, hn::Set(df, 2.0f / kSuper));
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize * N;
    iq4::WeighErrors(df, xj, columns, j * kGroupSize, variance, w);
    hn::Store(iq4::FitScale(df, xj, w), df, scales + j * N);
  }
  // Codes are computed with d before it is rounded to float16.
  const V d = hn::Div(hn::Neg(Extreme<kGroups>(df, scales)), hn::Set(df, float{kScaleHalf}));
  const V inverse_d = iq4::InverseOrZero(df, d);
  StoreHalves(df, d, num, kBlockBytes, out);
  for (size_t j = 0; j < kGroups; ++j) {
    const size_t at = j * kGroupSize * N;
    const V exact_level = hn::Mul(inverse_d, hn::Load(df, scales + j * N));
    const auto level = NearestCode(df, exact_level, -kScaleHalf, kScaleHalf - 1);
    hn::Store(hn::Add(level, hn::Set(di, kScaleHalf)), di, scale_codes + j * N);
    const V scale = hn::Mul(d, hn::ConvertTo(df, level));
    iq4::StoreNearest(df, x + at, iq4::InverseOrZero(df, scale), words + at / 4);
  }
  for (size_t lane = 0; lane < num; ++lane) PackScales(scale_codes + lane, N, out + lane * kBlockBytes);
}

void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
  EncodeSuperBlocks<Encoder>(weights, importance, num_rows, K, out);
}

struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Encoder::kBlockBytes, kGroup = kGroupSize;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

  static HWY_INLINE void UnpackScales(const uint8_t* block, float* scales) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Rebind<uint32_t, decltype(df)> du32;
    uint16_t high;
    uint32_t low;
    memcpy(&high, block + kHighAt, 2);
    memcpy(&low, block + kLowAt, 4);
    const auto d = BroadcastHalf(df, block);
    for (size_t j = 0; j < kGroups; j += hn::Lanes(df)) {
      const auto two_j = hn::ShiftLeft<1>(hn::Iota(du32, static_cast<uint32_t>(j)));
      const auto low_bits = hn::And(hn::Shr(hn::Set(du32, low), hn::Add(two_j, two_j)), hn::Set(du32, 15));
      const auto high_bits = hn::And(hn::Shr(hn::Set(du32, high), two_j), hn::Set(du32, 3));
      const auto code = hn::BitCast(di32, hn::Or(low_bits, hn::ShiftLeft<4>(high_bits)));
      hn::Store(hn::Mul(d, hn::ConvertTo(df, hn::Sub(code, hn::Set(di32, kScaleHalf)))), df, scales + j);
    }
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    const PanelWords d;
    WordsV words[4];
    LoadWords(rows, 0, words);
    const FloatsV scale = LowHalves(words[0]);
    const auto four = hn::Set(d, 15), top = hn::Set(d, 0x30);
    auto high = hn::ShiftRight<12>(words[0]), low = words[1];  // the first two bits from bit 4 on
    HWY_UNROLL(8)
    for (size_t g = 0; g < kGroups; ++g) {
      const auto code = hn::BitCast(PanelInts(), hn::Or(hn::And(low, four), hn::And(high, top)));
      const auto level = hn::ConvertTo(PanelFloats(), hn::Sub(code, hn::Set(PanelInts(), kScaleHalf)));
      sink.Scale(hn::Mul(scale, level), g);
      low = hn::ShiftRight<4>(low);
      high = hn::ShiftRight<2>(high);
      UnpackLevelRows(rows, kNibblesAt + 16 * g, g, iq4::kLevels, sink);
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    UnpackScales(block, u.scale);
    for (size_t g = 0; g < kGroups; ++g) iq4::UnpackLevels(block + kNibblesAt + 16 * g, u.code + 32 * g);
  }
};

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  HWY_ALIGN float scales[kGroups];
  for (size_t b = 0; b < num_blocks; ++b, blocks += Codec::kBlockBytes, out += kSuper) {
    Codec::UnpackScales(blocks, scales);
    for (size_t g = 0; g < kGroups; ++g) {
      iq4::DecodeGroup(blocks + kNibblesAt + 16 * g, scales[g], out + kGroupSize * g);
    }
  }
}

constexpr PanelKind PanelOf() { return PanelKindOf<Codec>(); }

void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) { UnpackPanel<Codec>(rows, num_blocks, panel); }

void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {
  MultiplyFew<Codec>(rows, K, x, starts, sums);
}

void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {
  UnpackLevels<Codec>(blocks, num_blocks, levels, scales, minima);
}

}  // namespace iq4_xs
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq4_xs, "IQ4_XS", /*ggml_type=*/23, /*block_size=*/256, /*block_bytes=*/136,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
