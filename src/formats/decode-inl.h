// Format::decode, built on Codec::Unpack (format-inl.h).
#if defined(LOWBIT_FORMATS_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_DECODE_INL_H_
#undef LOWBIT_FORMATS_DECODE_INL_H_
#else
#define LOWBIT_FORMATS_DECODE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "hwy/highway.h"
#include "src/formats/few_tokens-inl.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// The order of operations is that of the reference.
template <class Codec>
void DecodeUnpacked(const uint8_t* blocks, size_t num_blocks, float* HWY_RESTRICT out) {
  constexpr size_t kGroup = HWY_MIN(Codec::kGroup, size_t{32}), kNum = 256 / Codec::kBlock;
  using Code = std::conditional_t<Codec::kSigned, int8_t, uint8_t>;
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<Code, decltype(df)> dcode;
  const size_t N = hn::Lanes(df);
  Unpacked u;
  while (num_blocks != 0) {
    const size_t num = HWY_MIN(num_blocks, kNum);
    Codec::Unpack(blocks, num, u);
    for (size_t i = 0; i < num * Codec::kBlock; i += N) {
      const auto loaded = hn::Load(dcode, reinterpret_cast<const Code*>(u.code) + i);
      auto code = hn::PromoteTo(di32, loaded);
      if constexpr (Codec::kBias != 0) code = hn::Sub(code, hn::Set(di32, Codec::kBias));
      auto value = hn::Mul(hn::Set(df, u.scale[i / kGroup]), hn::ConvertTo(df, code));
      if constexpr (Codec::kHasMinima) value = hn::Sub(value, hn::Set(df, u.minimum[i / kGroup]));
      hn::StoreU(value, df, out + i);
    }
    num_blocks -= num;
    blocks += num * Codec::kBlockBytes;
    out += num * Codec::kBlock;
  }
}

// Stores 32 codes with one store if the product loads them with one load: a load that spans two stores waits until both
// reach the cache.
template <class V16>
HWY_INLINE void StorePair(V16 low, V16 high, uint8_t* codes) {
  const hn::FixedTag<uint8_t, 16> d16;
  const hn::CappedTag<uint8_t, 32> d;
  if constexpr (HWY_MAX_LANES_D(decltype(d)) == 32) {
    hn::StoreU(hn::Combine(d, high, low), d, codes);
  } else {
    hn::StoreU(low, d16, codes);
    hn::StoreU(high, d16, codes + 16);
  }
}

// Loads the scales of num blocks with at least 32 weights: one float16 per block, kBlockBytes apart. The scales are joined in registers: a vector load after narrow stores
// would wait until all of them reach the cache.
template <class Codec>
HWY_INLINE void UnpackScales(const uint8_t* from, size_t num, Unpacked& u) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  HWY_ALIGN uint64_t joined[2] = {0, 0};
  for (size_t j = 0; j < 8; ++j) {
    uint16_t half;
    hwy::CopyBytes<2>(from + HWY_MIN(j * 32 / Codec::kBlock, num - 1) * Codec::kBlockBytes, &half);
    joined[j / 4] |= static_cast<uint64_t>(half) << (16 * (j % 4));
  }
  const auto* halves = reinterpret_cast<const hwy::float16_t*>(joined);
  for (size_t j = 0; j < 8; j += hn::Lanes(df)) {
    hn::Store(PromoteHalves(df, hn::Load(dh, halves + j)), df, u.scale + j);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_DECODE_INL_H_
