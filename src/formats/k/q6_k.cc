// Q6_K: 256 weights in 210 bytes, 6.5625 bits per weight. Sixteen groups of 16.
//
//   byte 0-127    low[128]    byte 64 * h + k, h in [0, 2), k in [0, 64): bits 0-3 of code 128 * h + k in bits 0-3,
//                             of code 128 * h + 64 + k in bits 4-7
//   byte 128-191  high[64]    byte 32 * h + k, k in [0, 32): bits 4-5 of code 128 * h + 32 * p + k in bits 2p, 2p + 1
//   byte 192-207  scale[16]   int8
//   byte 208-209  d           float16
//
//   w[i] = d * scale[i / 16] * (code[i] - 32)
//
// Importances are the weights of the errors, unchanged. Source: ggml-common.h (block_q6_K), quantize_row_q6_K_ref,
// quantize_row_q6_K_impl, dequantize_row_q6_K.

// Fit: Encoder::Fit in this file, FitSymmetric in search/search-inl.h; scalar reference: Encoder::Reference in this
//   file.
// Packing: Encoder::Pack in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/k/q6_k.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q6_k {

constexpr size_t kGroups = 16, kGroupSize = 16;
constexpr size_t kHighAt = 128, kScaleAt = 192, kDAt = 208;
constexpr int kHalf = 32;  // codes are levels in [-32, 32) plus 32

struct Encoder {
  static constexpr size_t kBlockBytes = 210;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) {
    const hn::CappedTag<uint8_t, 32> d;
    const auto nibble = hn::Set(d, 15);
    for (size_t h = 0; h < 2; ++h) {
      for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
        const uint8_t* from = codes + 128 * h + k;
        const auto c0 = hn::LoadU(d, from), c1 = hn::LoadU(d, from + 32);
        const auto c2 = hn::LoadU(d, from + 64), c3 = hn::LoadU(d, from + 96);
        uint8_t* low = block + 64 * h + k;
        hn::StoreU(hn::Or(hn::And(c0, nibble), hn::ShiftLeft<4>(c2)), d, low);
        hn::StoreU(hn::Or(hn::And(c1, nibble), hn::ShiftLeft<4>(c3)), d, low + 32);
        const auto high01 = hn::Or(hn::ShiftRight<4>(c0), hn::ShiftLeft<2>(hn::ShiftRight<4>(c1)));
        const auto high23 = hn::Or(hn::ShiftRight<4>(c2), hn::ShiftLeft<2>(hn::ShiftRight<4>(c3)));
        hn::StoreU(hn::Or(high01, hn::ShiftLeft<4>(high23)), d, block + kHighAt + 32 * h + k);
      }
    }
  }

  static void Reference(const float* x, const float* importance, uint8_t* block);
  static void Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words, uint8_t* out);
};

HWY_NOINLINE void Encoder::Reference(const float* x, const float* importance, uint8_t* block) {
  uint8_t codes[kSuper];
  float scales[kGroups];
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize;
    float w[kGroupSize];
    for (size_t i = 0; i < kGroupSize; ++i) w[i] = importance ? importance[j * kGroupSize + i] : xj[i] * xj[i];
    scales[j] = reference::FitSymmetric(kGroupSize, kHalf, xj, w, codes + j * kGroupSize);
  }
  const float extreme = reference::Extreme(kGroups, scales);
  if (std::fabs(extreme) < kNegligible) {
    memset(block, 0, kBlockBytes);
    return;
  }
  const float multiplier = -128.0f / extreme;
  StoreHalf(1.0f / multiplier, block + kDAt);
  const float d = LoadHalf(block + kDAt);
  for (size_t j = 0; j < kGroups; ++j) {
    const int8_t scale_code = static_cast<int8_t>(HWY_MIN(127, reference::NearestInt(multiplier * scales[j])));
    memcpy(block + kScaleAt + j, &scale_code, 1);
    const float scale = d * scale_code;
    if (scale == 0.0f) continue;
    for (size_t i = j * kGroupSize; i < (j + 1) * kGroupSize; ++i) {
      codes[i] = static_cast<uint8_t>(reference::NearestCode(x[i] / scale, -kHalf, kHalf - 1) + kHalf);
    }
  }
  Pack(codes, block);
}

HWY_NOINLINE void Encoder::Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words,
                               uint8_t* out) {
  using V = hn::Vec<SearchTag>;
  const hn::RebindToSigned<SearchTag> di;
  const size_t N = hn::Lanes(df);
  HWY_ALIGN float w[kGroupSize * kMaxGroups];
  HWY_ALIGN float scales[kGroups * kMaxGroups];
  for (size_t j = 0; j < kGroups; ++j) {
    const float* xj = x + j * kGroupSize * N;
    if (columns) {
      Transpose(columns, j * kGroupSize, kGroupSize, w);
    } else {
      for (size_t i = 0; i < kGroupSize * N; i += N) {
        hn::Store(hn::Mul(hn::Load(df, xj + i), hn::Load(df, xj + i)), df, w + i);
      }
    }
    V scale;
    FitSymmetric<kGroupSize, false>(df, kHalf, xj, w, scale, words + j * kGroupSize / 4 * N);
    hn::Store(scale, df, scales + j * N);
  }
  const V extreme = Extreme<kGroups>(df, scales);
  // A super-block of negligible weights is all zero bytes.
  const auto nothing = hn::Lt(hn::Abs(extreme), hn::Set(df, kNegligible));
  const V multiplier = hn::IfThenZeroElse(nothing, hn::Div(hn::Set(df, -128.0f), extreme));
  const V exact_d = hn::IfThenZeroElse(nothing, hn::Div(hn::Set(df, 1.0f), multiplier));
  const V d = StoreHalves(df, exact_d, num, kBlockBytes, out + kDAt);
  const hn::RebindToUnsigned<SearchTag> du;
  const auto clear = hn::RebindMask(du, nothing);
  for (size_t j = 0; j < kGroups; ++j) {
    const auto code = hn::Min(NearestLevel(df, hn::Mul(multiplier, hn::Load(df, scales + j * N))), hn::Set(di, 127));
    const auto wrapped = hn::ShiftRight<24>(hn::ShiftLeft<24>(code));
    HWY_ALIGN int32_t scale_codes[kMaxGroups];
    hn::Store(wrapped, di, scale_codes);
    for (size_t lane = 0; lane < num; ++lane) {
      out[lane * kBlockBytes + kScaleAt + j] = static_cast<uint8_t>(scale_codes[lane]);
    }
    uint32_t* group_words = words + j * kGroupSize / 4 * N;
    const V scale = hn::Mul(d, hn::ConvertTo(df, wrapped));
    RoundAgain<kGroupSize>(df, x + j * kGroupSize * N, scale, hn::Zero(df), -kHalf, kHalf - 1, group_words);
    for (size_t m = 0; m < kGroupSize / 4 * N; m += N) {
      hn::Store(hn::IfThenZeroElse(clear, hn::Load(du, group_words + m)), du, group_words + m);
    }
  }
}

struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Encoder::kBlockBytes, kGroup = kGroupSize;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = kHalf, kTop = 2 * kHalf - 1;

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    const PanelWords d;
    const auto four = hn::Set(d, 0x0F0F0F0F), top = hn::Set(d, 0x30303030), sign = hn::Set(d, 0x80808080);
    HWY_UNROLL(8)
    for (size_t h = 0; h < 2; ++h) {
      HWY_UNROLL(8)
      for (size_t k = 0; k < 2; ++k) {
        WordsV high[4], a[4], b[4];
        LoadWords(rows, 64 * h + 16 * k, a);
        LoadWords(rows, 64 * h + 32 + 16 * k, b);
        LoadWords(rows, kHighAt + 32 * h + 16 * k, high);
        HWY_UNROLL(8)
        for (size_t i = 0; i < 4; ++i) {
          const size_t quad = 32 * h + 4 * k + i;
          const auto c0 = hn::Or(hn::And(a[i], four), hn::And(hn::ShiftLeft<4>(high[i]), top));
          const auto c1 = hn::Or(hn::And(b[i], four), hn::And(hn::ShiftLeft<2>(high[i]), top));
          const auto c2 = hn::Or(hn::And(hn::ShiftRight<4>(a[i]), four), hn::And(high[i], top));
          const auto c3 = hn::Or(hn::And(hn::ShiftRight<4>(b[i]), four), hn::And(hn::ShiftRight<2>(high[i]), top));
          sink.Quad(c0, quad);
          sink.Quad(c1, quad + 8);
          sink.Quad(c2, quad + 16);
          sink.Quad(c3, quad + 24);
        }
      }
    }
    const FloatsV scale = LoadHalfOfRows(rows, kDAt);
    WordsV words[4];
    LoadWords(rows, kScaleAt, words);
    HWY_UNROLL(8)
    for (size_t i = 0; i < 4; ++i) StoreScales<-128>(scale, hn::Xor(words[i], sign), 4 * i, sink);
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<float, 8> df;
    const hn::Rebind<int32_t, decltype(df)> di32;
    const hn::Rebind<int8_t, decltype(df)> di8;
    const auto factor = BroadcastHalf(df, block + kDAt);
    for (size_t j = 0; j < kGroups; j += hn::Lanes(df)) {
      const auto code = hn::LoadU(di8, reinterpret_cast<const int8_t*>(block + kScaleAt + j));
      hn::Store(hn::Mul(factor, hn::ConvertTo(df, hn::PromoteTo(di32, code))), df, u.scale + j);
    }
    const hn::CappedTag<uint8_t, 32> d;
    const auto nibble = hn::Set(d, 15), upper = hn::Set(d, 0x30);
    for (size_t h = 0; h < 2; ++h) {
      for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
        const auto a = hn::LoadU(d, block + 64 * h + k), b = hn::LoadU(d, block + 64 * h + 32 + k);
        const auto high = hn::LoadU(d, block + kHighAt + 32 * h + k);
        const auto c0 = hn::Or(hn::And(a, nibble), hn::And(hn::ShiftLeft<4>(high), upper));
        const auto c1 = hn::Or(hn::And(b, nibble), hn::And(hn::ShiftLeft<2>(high), upper));
        const auto c2 = hn::Or(hn::ShiftRight<4>(a), hn::And(high, upper));
        const auto c3 = hn::Or(hn::ShiftRight<4>(b), hn::And(hn::ShiftRight<2>(high), upper));
        uint8_t* to = u.code + 128 * h + k;
        hn::Store(c0, d, to);
        hn::Store(c1, d, to + 32);
        hn::Store(c2, d, to + 64);
        hn::Store(c3, d, to + 96);
      }
    }
  }
};

using Functions = SuperBlockFormat<Encoder, Codec>;

}  // namespace q6_k
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q6_k::Functions, "Q6_K", /*ggml_type=*/14, /*block_size=*/256, /*block_bytes=*/210,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
