#include "src/kernels/activations.h"

#include <algorithm>

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

// Combines neighbouring lanes of v[0 .. num), with `combine` a sum or a maximum: v[0 .. num / 2) have the results in order.
template <class D, class V, class Combine>
HWY_INLINE void CombineNeighbours(D d, V* v, size_t num, Combine combine) {
  HWY_UNROLL(16)
  for (size_t i = 0; i < num / 2; ++i) {
    v[i] = combine(hn::ConcatEven(d, v[2 * i + 1], v[2 * i]), hn::ConcatOdd(d, v[2 * i + 1], v[2 * i]));
  }
}

// Rounds token t of num_tokens. If `given` is not null, x has codes and *given is their scale. The other pointers are those
// of Activations. 16 groups at a time: the numbers of a group are in a lane.
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
  const hn::Repartition<int8_t, decltype(df)> bytes;
  using Ints = hn::Vec<decltype(di32)>;
  constexpr size_t N = HWY_MAX_LANES_D(decltype(df)), kGroup = Activations::kGroup, kGroups = 16;
  constexpr size_t kVectors = kGroups / N;  // of a number for each group
  const auto max = [](Ints a, Ints b) HWY_ATTR { return hn::Max(a, b); };
  const auto add = [](Ints a, Ints b) HWY_ATTR { return hn::Add(a, b); };
  HWY_ALIGN int8_t codes[kGroups * kGroup] = {};
  HWY_ALIGN float scales[kGroups], inverses[kGroups];
  HWY_ALIGN int32_t int_sums[2 * kGroups];
  for (size_t first = 0; first < K / kGroup; first += kGroups, x += kGroups * kGroup) {
    const size_t num = HWY_MIN(kGroups, K / kGroup - first);
    if (given) {
      std::fill_n(scales, kGroups, *given);
      std::fill_n(inverses, kGroups, 1.0f);
    } else {
      // Magnitudes are compared as integers, where NaN is the largest: the scale of its group, and so the product,
      // becomes NaN.
      Ints magnitudes[kGroups];
      for (size_t g = 0; g < kGroups; ++g) {
        magnitudes[g] = hn::Zero(di32);
        for (size_t i = 0; i < kGroup && g < num; i += N) {
          const auto magnitude = hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + g * kGroup + i)));
          magnitudes[g] = hn::Max(magnitudes[g], magnitude);
        }
      }
      HWY_UNROLL(4)
      for (size_t left = kGroups; left > kVectors; left /= 2) CombineNeighbours(di32, magnitudes, left, max);
      for (size_t v = 0; v < kVectors; ++v) {
        const auto d = hn::Div(hn::BitCast(df, magnitudes[v]), hn::Set(df, 127.0f));
        // Below the smallest normal number the inverse would overflow; such a group is stored as zeros.
        const auto is_zero = hn::Lt(d, hn::Set(df, 1.17549435e-38f));
        hn::Store(hn::IfThenZeroElse(is_zero, d), df, scales + v * N);
        hn::Store(hn::IfThenZeroElse(is_zero, hn::Div(hn::Set(df, 1.0f), d)), df, inverses + v * N);
      }
    }
    for (size_t g = 0; g < num; ++g) {
      for (size_t i = 0; i < kGroup; i += N) {
        // Infinity and NaN become codes too, so that sums of codes do not overflow.
        const auto scaled = hn::Mul(hn::LoadU(df, x + g * kGroup + i), hn::Set(df, inverses[g]));
        hn::StoreU(hn::DemoteTo(di8, hn::NearestInt(scaled)), di8, codes + g * kGroup + i);
      }
      int8_t* to = q + (first + g) * kGroup * n;
      for (size_t i = 0; i < kGroup; i += 4) hwy::CopyBytes<4>(codes + g * kGroup + i, to + i * n);
    }
    // Sums of 4 codes, then of 16, then of 32.
    Ints sums[8 * kVectors];
    for (size_t i = 0; i < 8 * kVectors; ++i) {
      const hn::RebindToUnsigned<decltype(bytes)> ones;
      sums[i] = hn::SumOfMulQuadAccumulate(di32, hn::Set(ones, 1), hn::Load(bytes, codes + 4 * N * i), hn::Zero(di32));
    }
    CombineNeighbours(di32, sums, 8 * kVectors, add);
    CombineNeighbours(di32, sums, 4 * kVectors, add);
    // Writes the sums of each group, or of each half, and their products with the scale.
    const auto store = [&](size_t num_of_group, int32_t* ints, float* floats) HWY_ATTR {
      for (size_t v = 0; v < num_of_group * kVectors; ++v) hn::Store(sums[v], di32, int_sums + v * N);
      for (size_t i = 0; i < num * num_of_group; ++i) {
        ints[i * n] = int_sums[i];
        floats[i * n] = scales[i / num_of_group] * static_cast<float>(int_sums[i]);
      }
    };
    store(2, q16 + first16 + 2 * first * n, sum16 + first16 + 2 * first * n);
    CombineNeighbours(di32, sums, 2 * kVectors, add);
    store(1, q32 + first32 + first * n, sum32 + first32 + first * n);
    for (size_t g = 0; g < num; ++g) scale[first32 + (first + g) * n] = scales[g];
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
