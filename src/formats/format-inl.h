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
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  return x;
#else
  return hn::IfThenElse(hn::Ge(hn::Abs(x), hn::Set(df, 65536.0f)), hn::Or(x, hn::Inf(df)), x);
#endif
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
// A format describes its weights as small integers with a codec:
//
//   struct Codec {
//     static constexpr size_t kBlock, kBlockBytes;  // as in the descriptor; kBlock divides 256
//     static constexpr size_t kGroup;               // weights that share a scale: 16, or 32 or more
//     static constexpr bool kSigned;                // codes are int8 in [-128, 127]; else uint8 in [0, kTop]
//     static constexpr bool kHasMinima;
//     static constexpr int kBias, kTop;             // kTop <= 127
//     static void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u);
//   };
//
// Unpack decodes at most 256 weights. Weight i becomes u.scale[i / g] * (code[i] - kBias) - u.minimum[i / g], with g =
// min(kGroup, 32), without the minimum if the format has none.

struct Unpacked {
  HWY_ALIGN uint8_t code[256];
  HWY_ALIGN float scale[16];
  HWY_ALIGN float minimum[16];
};

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
      minima[g] = Codec::kHasMinima ? u.minimum[g / kRepeat] : 0.0f;
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
