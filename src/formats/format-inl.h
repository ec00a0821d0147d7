// What the formats' vector code shares. Included by each format's source once for every SIMD target.
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

// Rounds half away from zero, as C's roundf does. Exact: x - trunc(x) is representable.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V RoundHalfAway(D d, V x) {
  const V whole = hn::Trunc(x);
  const V away = hn::IfThenElseZero(hn::Ge(hn::Abs(hn::Sub(x, whole)), hn::Set(d, 0.5f)), hn::Set(d, 1.0f));
  return hn::Add(whole, hn::CopySign(away, x));
}

// Half-precision numbers as floats. Where the target has no instruction for it, Highway takes the exponent of
// infinities and NaN for one more power of two; no other half is that large.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V PromoteHalves(DF df, hn::Vec<hn::Rebind<hwy::float16_t, DF>> halves) {
  const V x = hn::PromoteTo(df, halves);
  return hn::IfThenElse(hn::Ge(hn::Abs(x), hn::Set(df, 65536.0f)), hn::Or(x, hn::Inf(df)), x);
}

// A block's scale or offset in half precision, as ggml stores it: to nearest even, NaN as a quiet NaN of the same sign.
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

// n (at most 8) half-precision numbers, `stride` bytes apart, as floats. They are joined in registers: a vector load of
// eight two-byte stores would wait for all of them to reach the cache.
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
    for (size_t i = 0; i < n; ++i) hwy::CopyBytes<2>(from + i * stride, reinterpret_cast<uint16_t*>(joined) + i);
  }
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(joined);
  for (size_t i = 0; i < 8; i += hn::Lanes(df)) hn::Store(PromoteHalves(df, hn::Load(dh, halves + i)), df, out + i);
}

// -------------------------------------------------------------------------------------------------------------------
// Integer products. A format gives a codec:
//
//   struct Codec {
//     static constexpr size_t kBlock, kBlockBytes;  // as in the descriptor; kBlock divides 256
//     static constexpr size_t kGroup;               // weights that share a scale: 16, or 32 or more
//     static constexpr bool kSigned;                // codes are int8 in [-128, 127]; else uint8 in [0, 127]
//     static constexpr bool kHasOffset;
//     static void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u);
//   };
//
// Unpack gets at most 256 weights and leaves weight i as u.scale[i / g] * code[i] - u.offset[i / g] with g =
// min(kGroup, 32). DotInt8 below does the rest. Cost a weight: an eighth of a dozen or so 32-byte instructions; the
// codes go through 256 bytes of stack, which the store buffer hides.

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
    // -128 stays -128, which is 128 as an unsigned byte.
    codes = hn::BitCast(du8, hn::Abs(signed_codes));
    activations = hn::IfNegativeThenNegOrUndefIfZero(signed_codes, activations);
  }
#if HWY_TARGET == HWY_AVX2
  // Highway's emulation of the quad product widens both operands. Two products of 128 * 127 fit 16 bits, so the
  // saturating instruction is exact here.
  const hn::RepartitionToWide<hn::RebindToSigned<DU8>> di16;
  const auto pairs = hn::SatWidenMulPairwiseAdd(di16, codes, activations);
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di32, pairs, hn::Set(di16, 1)));
#else
  return hn::SumOfMulQuadAccumulate(di32, codes, activations, sum);
#endif
}

// The scales of the groups that the 32 or 16 codes from i on belong to, one float for each quad of codes.
template <size_t kGroup, class DF>
HWY_INLINE hn::Vec<DF> QuadScales(DF df, const float* scale, size_t i) {
  if constexpr (kGroup >= 32) {
    return hn::Set(df, scale[i / 32]);
  } else if constexpr (HWY_MAX_LANES_D(DF) == 8) {
    return hn::IfThenElse(hn::FirstN(df, 4), hn::Set(df, scale[i / 16]), hn::Set(df, scale[i / 16 + 1]));
  } else {
    return hn::Set(df, scale[i / 16]);
  }
}

template <class Codec, size_t kTokens>
HWY_INLINE void DotRow(const uint8_t* HWY_RESTRICT row, const Activations& x, size_t token, float* out,
                       size_t out_stride) {
  const hn::CappedTag<uint8_t, 32> du8;
  const hn::RebindToSigned<decltype(du8)> di8;
  const hn::Repartition<int32_t, decltype(du8)> di32;
  const hn::Repartition<float, decltype(du8)> df;
  using VF = hn::Vec<decltype(df)>;
  const size_t num8 = hn::Lanes(du8);
  const size_t K = x.K;

  // One token alone would wait for each sum before the next, so it keeps four.
  constexpr size_t kChains = kTokens == 1 ? 4 : 1;
  Unpacked u;
  VF sums[kTokens][kChains];
  for (auto& chains : sums) {
    for (VF& sum : chains) sum = hn::Zero(df);
  }
  for (size_t k = 0; k < K; k += 256) {
    const size_t n = HWY_MIN(K - k, size_t{256});
    Codec::Unpack(row + k / Codec::kBlock * Codec::kBlockBytes, n / Codec::kBlock, u);
    const auto multiply = [&](size_t i, size_t chain) HWY_ATTR {
      const auto codes = hn::Load(du8, u.code + i);
      const VF scales = QuadScales<Codec::kGroup>(df, u.scale, i);
      for (size_t t = 0; t < kTokens; ++t) {
        const size_t at = (token + t) * K + k + i;
        const auto quads = MulAddQuads<Codec::kSigned>(di32, du8, codes, hn::LoadU(di8, x.q + at), hn::Zero(di32));
        const VF factors = hn::Mul(scales, hn::Set(df, x.scale[at / 32]));
        sums[t][chain] = hn::MulAdd(hn::ConvertTo(df, quads), factors, sums[t][chain]);
      }
    };
    size_t i = 0;
    for (; i + kChains * num8 <= n; i += kChains * num8) {
      for (size_t chain = 0; chain < kChains; ++chain) multiply(i + chain * num8, chain);
    }
    for (; i < n; i += num8) multiply(i, 0);
    if constexpr (Codec::kHasOffset) {
      constexpr size_t kGroup = Codec::kGroup < 32 ? 16 : 32;
      const float* group_sums = kGroup == 16 ? x.sum16 : x.sum32;
      for (size_t g = 0; g < n / kGroup; g += hn::Lanes(df)) {
        const size_t num = HWY_MIN(n / kGroup - g, hn::Lanes(df));
        const VF offsets = hn::LoadN(df, u.offset + g, num);
        for (size_t t = 0; t < kTokens; ++t) {
          const VF s = hn::LoadN(df, group_sums + ((token + t) * K + k) / kGroup + g, num);
          sums[t][kChains - 1] = hn::NegMulAdd(offsets, s, sums[t][kChains - 1]);
        }
      }
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t chain = 1; chain < kChains; ++chain) sums[t][0] = hn::Add(sums[t][0], sums[t][chain]);
    out[(token + t) * out_stride] = hn::ReduceSum(df, sums[t][0]);
  }
}

// Format::dot_int8 for a codec. A row is unpacked once for up to four tokens.
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

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_FORMAT_INL_H_
