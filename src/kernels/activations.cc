#include "src/kernels/activations.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/activations.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/kernels/token_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

float RoundToken(float* HWY_RESTRICT x, size_t K) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const size_t N = hn::Lanes(df);
  // Compared as integers, where NaN is the largest: the scale, and so every product, becomes NaN.
  auto max = hn::Zero(di32);
  for (size_t i = 0; i < K; i += N) {
    max = hn::Max(max, hn::BitCast(di32, hn::Abs(hn::LoadN(df, x + i, HWY_MIN(N, K - i)))));
  }
  const float most = hwy::BitCastScalar<float>(hn::ReduceMax(di32, max));
  const float s = 127.0f / (most < 1e-5f ? 1e-5f : most);
  const auto lo = hn::Set(df, -128.0f), hi = hn::Set(df, 127.0f);
  for (size_t i = 0; i < K; i += N) {
    const size_t n = HWY_MIN(N, K - i);
    const auto rounded = hn::Round(hn::Mul(hn::LoadN(df, x + i, n), hn::Set(df, s)));
    hn::StoreN(hn::Clamp(rounded, lo, hi), df, x + i, n);
  }
  return 1.0f / s;
}

// Asks for memory that is written soon. The last product's activations are still in the caches of all cores.
template <typename T>
HWY_INLINE void PrefetchForWriting(T* memory, size_t num) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  for (size_t i = 0; i < num; i += 64 / sizeof(T)) __builtin_prefetch(memory + i, /*rw=*/1);
#endif
}

// Rounds token t of num_tokens. If `given` is not null, x has codes and *given is their scale. The other pointers are those
// of Activations.
void RoundGroups(const float* HWY_RESTRICT x, size_t K, const float* given, size_t num_tokens, size_t t,
                 int8_t* HWY_RESTRICT q, float* HWY_RESTRICT scale, float* HWY_RESTRICT sum16,
                 float* HWY_RESTRICT sum32, int32_t* HWY_RESTRICT q16, int32_t* HWY_RESTRICT q32) {
  const TokenTile tile = TileOfToken(num_tokens, t);
  const size_t n = tile.num;
  // The token's first value, of 16 or 32 each, among those of all tiles.
  const size_t first16 = tile.first * K / 16 + t - tile.first, first32 = tile.first * K / 32 + t - tile.first;
  q += tile.first * K + 4 * (t - tile.first);
  if (t == tile.first && n > 1) {
    PrefetchForWriting(q, n * K);
    for (float* sums : {scale + first32, sum32 + first32}) PrefetchForWriting(sums, n * K / 32);
    PrefetchForWriting(sum16 + first16, n * K / 16);
    PrefetchForWriting(q32 + first32, n * K / 32);
    PrefetchForWriting(q16 + first16, n * K / 16);
  }
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const size_t N = hn::Lanes(df);
  constexpr size_t kGroup = Activations::kGroup;
  for (size_t g = 0; g < K / kGroup; ++g, x += kGroup) {
    HWY_ALIGN int8_t codes_of_group[kGroup];
    // Magnitudes are compared as integers, where NaN is the largest: the scale of its group, and so the product,
    // becomes NaN.
    auto max = hn::Zero(di32);
    for (size_t i = 0; i < kGroup; i += N) {
      max = hn::Max(max, hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + i))));
    }
    float d = hwy::BitCastScalar<float>(hn::ReduceMax(di32, max)) / 127.0f;
    // Below the smallest normal number the inverse would overflow; such a group is stored as zeros.
    if (d < 1.17549435e-38f) d = 0.0f;
    float inverse = d != 0.0f ? 1.0f / d : 0.0f;
    if (given) {
      d = *given;
      inverse = 1.0f;
    }
    int32_t halves[2];
    for (size_t half = 0; half < 2; ++half) {
      auto sum = hn::Zero(di32);
      for (size_t i = half * kGroup / 2; i < (half + 1) * kGroup / 2; i += N) {
        // Infinity and NaN become codes too, so that sums of codes do not overflow.
        const auto nearest = hn::NearestInt(hn::Mul(hn::LoadU(df, x + i), hn::Set(df, inverse)));
        const auto codes = hn::Clamp(nearest, hn::Set(di32, -128), hn::Set(di32, 127));
        sum = hn::Add(sum, codes);
        hn::StoreU(hn::DemoteTo(di8, codes), di8, codes_of_group + i);
      }
      halves[half] = hn::ReduceSum(di32, sum);
      const size_t at = first16 + (2 * g + half) * n;
      q16[at] = halves[half];
      sum16[at] = d * static_cast<float>(halves[half]);
    }
    const size_t at = first32 + g * n;
    scale[at] = d;
    q32[at] = halves[0] + halves[1];
    sum32[at] = d * static_cast<float>(q32[at]);
    for (size_t i = 0; i < kGroup; i += 4) hwy::CopyBytes<4>(codes_of_group + i, q + (g * kGroup + i) * n);
  }
}

void SubtractGroups(const float* HWY_RESTRICT x, const Activations& rounded, size_t t, float* HWY_RESTRICT rest) {
  const TokenTile tile = TileOfToken(rounded.num_tokens, t);
  const size_t at = t - tile.first, n = tile.num, K = rounded.K;
  const int8_t* q = rounded.q + tile.first * K + 4 * at;
  const float* scales = rounded.scale + tile.first * K / Activations::kGroup + at;
  const hn::FixedTag<float, 4> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  for (size_t k = 0; k < K; k += 4) {
    const auto codes = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(di8, q + k * n)));
    const auto scale = hn::Set(df, scales[k / Activations::kGroup * n]);
    hn::StoreU(hn::NegMulAdd(codes, scale, hn::LoadU(df, x + k)), df, rest + k);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(RoundToken);
HWY_EXPORT(RoundGroups);
HWY_EXPORT(SubtractGroups);
HWY_EXPORT(TileOfToken);

float RoundToken(float* x, size_t K) { return HWY_DYNAMIC_DISPATCH(RoundToken)(x, K); }

TokenTile TileOf(size_t num_tokens, size_t t) { return HWY_DYNAMIC_DISPATCH(TileOfToken)(num_tokens, t); }

void ActivationBuffer::Reserve(size_t num_tokens, size_t K) {
  const size_t num = num_tokens * K;
  if (q_.size() < num) q_.resize(num);
  for (hwy::AlignedVector<float>* buffer : {&scale_, &sum32_}) {
    if (buffer->size() < num / 32) buffer->resize(num / 32);
  }
  if (q32_.size() < num / 32) q32_.resize(num / 32);
  if (sum16_.size() < num / 16) sum16_.resize(num / 16);
  if (q16_.size() < num / 16) q16_.resize(num / 16);
}

void ActivationBuffer::Round(const float* x, size_t t, size_t num_tokens, size_t K, const float* token_scale) {
  HWY_DYNAMIC_DISPATCH(RoundGroups)
  (x, K, token_scale, num_tokens, t, q_.data(), scale_.data(), sum16_.data(), sum32_.data(), q16_.data(), q32_.data());
}

void ActivationBuffer::Subtract(const float* x, size_t t, size_t num_tokens, size_t K, float* rest) const {
  HWY_DYNAMIC_DISPATCH(SubtractGroups)(x, View(num_tokens, K), t, rest);
}

Activations ActivationBuffer::View(size_t num_tokens, size_t K) const {
  return {num_tokens, K, q_.data(), scale_.data(), sum16_.data(), sum32_.data(), q16_.data(), q32_.data()};
}

}  // namespace lowbit
#endif  // HWY_ONCE
