// Code that all formats share. Included by each format's source once for every SIMD target.
#if defined(LOWBIT_FORMATS_FORMAT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_FORMAT_INL_H_
#undef LOWBIT_FORMATS_FORMAT_INL_H_
#else
#define LOWBIT_FORMATS_FORMAT_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/format.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// float16 to float. On targets without an instruction for it, Highway decodes infinity and NaN as 65536 or more. No
// finite float16 is that large.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V PromoteHalves(DF df, hn::Vec<hn::Rebind<hwy::float16_t, DF>> halves) {
  const V x = hn::PromoteTo(df, halves);
  return hn::IfThenElse(hn::Ge(hn::Abs(x), hn::Set(df, 65536.0f)), hn::Or(x, hn::Inf(df)), x);
}

// Stores a scale or offset as float16, as ggml does: to nearest even; NaN becomes a quiet NaN of the same sign.
HWY_INLINE void StoreHalf(float value, uint8_t* to) {
  const hn::CappedTag<float, 1> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  hwy::float16_t half = hn::GetLane(hn::DemoteTo(dh, hn::Set(df, value)));
  if (HWY_UNLIKELY(hwy::ScalarIsNaN(value))) {
    half = hwy::BitCastScalar<hwy::float16_t>(static_cast<uint16_t>(hwy::ScalarSignBit(value) ? 0xFE00 : 0x7E00));
  }
  hwy::CopyBytes<2>(&half, to);
}

HWY_INLINE float LoadHalf(const uint8_t* from) {
  hwy::float16_t half;
  hwy::CopyBytes<2>(from, &half);
  return hwy::F32FromF16(half);
}

// Shared by F16 and BF16: n floats in two bytes each, at any address. to_bytes converts a vector of floats to bytes,
// to_floats the inverse.
using TwoByteFloats = hn::ScalableTag<float>;
using TwoByteCodes = hn::Repartition<uint8_t, hn::Rebind<uint16_t, TwoByteFloats>>;

template <class ToBytes>
HWY_INLINE void EncodeTwoBytes(const float* weights, size_t n, uint8_t* out, ToBytes to_bytes) {
  const TwoByteFloats df;
  const TwoByteCodes du8;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= n; i += N) hn::StoreU(to_bytes(hn::LoadU(df, weights + i)), du8, out + 2 * i);
  if (i != n) hn::StoreN(to_bytes(hn::LoadN(df, weights + i, n - i)), du8, out + 2 * i, 2 * (n - i));
}

template <class ToFloats>
HWY_INLINE void DecodeTwoBytes(const uint8_t* codes, size_t n, float* out, ToFloats to_floats) {
  const TwoByteFloats df;
  const TwoByteCodes du8;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= n; i += N) hn::StoreU(to_floats(hn::LoadU(du8, codes + 2 * i)), df, out + i);
  if (i != n) hn::StoreN(to_floats(hn::LoadN(du8, codes + 2 * i, 2 * (n - i))), df, out + i, n - i);
}

// Loads n (at most 8) float16 numbers that are `stride` bytes apart. They are joined in registers: a vector load after
// eight two-byte stores would wait until all of them reach the cache.
HWY_INLINE void LoadHalves(const uint8_t* from, size_t stride, size_t n, float* out) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  HWY_ALIGN uint64_t joined[2] = {0, 0};
  if (HWY_LIKELY(n == 8)) {
    for (size_t i = 0; i < 2; ++i) {
      for (size_t j = 0; j < 4; ++j) {
        uint16_t half;
        hwy::CopyBytes<2>(from + (4 * i + j) * stride, &half);
        joined[i] |= static_cast<uint64_t>(half) << (16 * j);
      }
    }
  } else {
    for (size_t i = 0; i < HWY_MIN(n, size_t{8}); ++i) {
      hwy::CopyBytes<2>(from + i * stride, reinterpret_cast<uint16_t*>(joined) + i);
    }
  }
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(joined);
  for (size_t i = 0; i < 8; i += hn::Lanes(df)) hn::Store(PromoteHalves(df, hn::Load(dh, halves + i)), df, out + i);
}

// -------------------------------------------------------------------------------------------------------------------
// Integer products. A format provides a codec:
//
//   struct Codec {
//     static constexpr size_t kBlock, kBlockBytes;  // as in the descriptor; kBlock divides 256
//     static constexpr size_t kGroup;               // weights that share a scale: 16, or 32 or more
//     static constexpr bool kSigned;                // codes are int8 in [-128, 127]; else uint8 in [0, 127]
//     static constexpr bool kHasOffset;
//     static constexpr int kBias;                   // if not 0, offset is kBias * scale: a weight is scale * (code - kBias)
//     static void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u);
//   };
//
// Unpack decodes at most 256 weights. Weight i becomes u.scale[i / g] * code[i] - u.offset[i / g] with g = min(kGroup,
// 32). DotInt8 below does the rest. Cost: about 1.5 instructions per weight. The codes pass through 256 bytes of stack,
// which the store buffer hides.

struct Unpacked {
  HWY_ALIGN uint8_t code[256];
  HWY_ALIGN float scale[16];
  HWY_ALIGN float offset[16];
};

// Adds the products of four neighbouring codes and activations to each lane of `sum`. |code| <= 128, |activation| <=
// 127.
template <bool kSigned, class DI32, class DU8, class VU8, class VI8>
HWY_INLINE hn::Vec<DI32> MulAddQuads(DI32 di32, DU8 du8, VU8 codes, VI8 activations, hn::Vec<DI32> sum) {
  if constexpr (kSigned) {
    const hn::RebindToSigned<DU8> di8;
    const auto signed_codes = hn::BitCast(di8, codes);
    // abs(-128) is -128, which is 128 as an unsigned byte.
    codes = hn::BitCast(du8, hn::Abs(signed_codes));
    activations = hn::IfNegativeThenNegOrUndefIfZero(signed_codes, activations);
  }
#if HWY_TARGET == HWY_AVX2
  // Highway's emulation of the quad product widens both operands. Two products of 128 * 127 fit in 16 bits, so the
  // saturating instruction is exact here.
  const hn::RepartitionToWide<hn::RebindToSigned<DU8>> di16;
  const auto pairs = hn::SatWidenMulPairwiseAdd(di16, codes, activations);
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di32, pairs, hn::Set(di16, 1)));
#else
  return hn::SumOfMulQuadAccumulate(di32, codes, activations, sum);
#endif
}

// The factors of the groups of the 32 or 16 codes from i on, one float for each quad of codes.
template <size_t kGroup, class DF>
HWY_INLINE hn::Vec<DF> QuadFactors(DF df, const float* factors, size_t i) {
  if constexpr (kGroup == 16 && HWY_MAX_LANES_D(DF) == 8) {
    return hn::IfThenElse(hn::FirstN(df, 4), hn::Set(df, factors[i / 16]), hn::Set(df, factors[i / 16 + 1]));
  } else {
    return hn::Set(df, factors[i / kGroup]);
  }
}

// With one token each sum would wait for the previous one, so there are four sums.
template <size_t kTokens>
constexpr size_t kDotChains = kTokens == 1 ? 4 : 1;

// Adds the products of n unpacked weights with kTokens tokens, K apart, from code x.q[at] on. kFull: n is 256, so that
// all loops unroll.
template <class Codec, size_t kTokens, bool kFull, class DF, class VF = hn::Vec<DF>>
HWY_INLINE void DotUnpacked(DF df, const Unpacked& u, size_t n, const Activations& x, size_t at,
                            VF (&sums)[kTokens][kDotChains<kTokens>]) {
  const hn::Repartition<uint8_t, DF> du8;
  const hn::RebindToSigned<decltype(du8)> di8;
  const hn::Repartition<int32_t, DF> di32;
  constexpr size_t kGroup = Codec::kGroup < 32 ? 16 : 32;
  if constexpr (kFull) n = 256;
  // The products of the two operands' scales, eight at a time.
  HWY_ALIGN float factors[kTokens][16];
  for (size_t g = 0; g < n / kGroup; g += hn::Lanes(df)) {
    for (size_t t = 0; t < kTokens; ++t) {
      const float* from = (kGroup == 16 ? x.scale16 : x.scale) + (at + t * x.K) / kGroup + g;
      const VF scales = kFull ? hn::LoadU(df, from) : hn::LoadN(df, from, n / kGroup - g);
      hn::Store(hn::Mul(scales, hn::Load(df, u.scale + g)), df, factors[t] + g);
    }
  }
  HWY_UNROLL(8)
  for (size_t i = 0; i < n; i += hn::Lanes(du8)) {
    const auto codes = hn::Load(du8, u.code + i);
    for (size_t t = 0; t < kTokens; ++t) {
      const auto activations = hn::LoadU(di8, x.q + at + t * x.K + i);
      const auto quads = MulAddQuads<Codec::kSigned>(di32, du8, codes, activations, hn::Zero(di32));
      VF& sum = sums[t][i / hn::Lanes(du8) % kDotChains<kTokens>];
      sum = hn::MulAdd(hn::ConvertTo(df, quads), QuadFactors<kGroup>(df, factors[t], i), sum);
    }
  }
  if constexpr (Codec::kHasOffset) {
    const float* group_sums = kGroup == 16 ? x.sum16 : x.sum32;
    for (size_t g = 0; g < n / kGroup; g += hn::Lanes(df)) {
      const size_t num = n / kGroup - g;
      const VF offsets = hn::Load(df, u.offset + g);
      for (size_t t = 0; t < kTokens; ++t) {
        const float* from = group_sums + (at + t * x.K) / kGroup + g;
        const VF group = kFull || num >= hn::Lanes(df) ? hn::LoadU(df, from) : hn::LoadN(df, from, num);
        VF& sum = sums[t][kDotChains<kTokens> - 1];
        sum = hn::NegMulAdd(offsets, group, sum);
      }
    }
  }
}

template <class Codec, size_t kTokens>
HWY_INLINE void DotRow(const uint8_t* HWY_RESTRICT row, const Activations& x, size_t token, float* out,
                       size_t out_stride) {
  const hn::CappedTag<float, 8> df;
  using VF = hn::Vec<decltype(df)>;
  Unpacked u;
  VF sums[kTokens][kDotChains<kTokens>];
  for (auto& chains : sums) {
    for (VF& sum : chains) sum = hn::Zero(df);
  }
  const size_t at = token * x.K;
  size_t k = 0;
  for (; k + 256 <= x.K; k += 256) {
    Codec::Unpack(row + k / Codec::kBlock * Codec::kBlockBytes, 256 / Codec::kBlock, u);
    DotUnpacked<Codec, kTokens, true>(df, u, 256, x, at + k, sums);
  }
  if (k < x.K) {
    const size_t n = x.K - k;
    Codec::Unpack(row + k / Codec::kBlock * Codec::kBlockBytes, n / Codec::kBlock, u);
    // Values after the last group are multiplied by zero, so they must be finite.
    constexpr size_t kGroup = HWY_MIN(Codec::kGroup, size_t{32});
    for (size_t g = n / kGroup; g < 256 / kGroup; ++g) u.scale[g] = u.offset[g] = 0.0f;
    DotUnpacked<Codec, kTokens, false>(df, u, n, x, at + k, sums);
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t chain = 1; chain < kDotChains<kTokens>; ++chain) sums[t][0] = hn::Add(sums[t][0], sums[t][chain]);
    out[(token + t) * out_stride] = hn::ReduceSum(df, sums[t][0]);
  }
}

// Format::dot_int8 for a codec. Each row is unpacked once for up to four tokens.
template <class Codec>
void DotInt8(const uint8_t* rows, size_t row_bytes, size_t num_rows, const Activations& x, float* out,
             size_t out_stride) {
  for (size_t n = 0; n < num_rows; ++n) {
    const uint8_t* row = rows + n * row_bytes;
    size_t t = 0;
    for (; t + 4 <= x.num_tokens; t += 4) DotRow<Codec, 4>(row, x, t, out + n, out_stride);
    for (; t < x.num_tokens; ++t) DotRow<Codec, 1>(row, x, t, out + n, out_stride);
  }
}

// Format::unpack for a codec.
template <class Codec>
void UnpackLevels(const uint8_t* blocks, size_t num_blocks, int8_t* HWY_RESTRICT levels, float* HWY_RESTRICT scales,
                  float* HWY_RESTRICT minima) {
  constexpr size_t kNum = 256 / Codec::kBlock, kRepeat = Codec::kGroup < 32 ? 1 : 2;
  Unpacked u;
  while (num_blocks != 0) {
    const size_t num = HWY_MIN(num_blocks, kNum), n = num * Codec::kBlock;
    Codec::Unpack(blocks, num, u);
    for (size_t i = 0; i < n; ++i) levels[i] = static_cast<int8_t>(u.code[i] - Codec::kBias);
    for (size_t g = 0; g < n / 16; ++g) {
      scales[g] = u.scale[g / kRepeat];
      minima[g] = Codec::kHasOffset && Codec::kBias == 0 ? u.offset[g / kRepeat] : 0.0f;
    }
    num_blocks -= num;
    blocks += num * Codec::kBlockBytes;
    levels += n;
    scales += n / 16;
    minima += n / 16;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_FORMAT_INL_H_
