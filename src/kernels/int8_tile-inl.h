// The product of a few panels of weights (src/formats/panel.h) with a few tokens.
#if defined(LOWBIT_KERNELS_INT8_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_KERNELS_INT8_TILE_INL_H_
#undef LOWBIT_KERNELS_INT8_TILE_INL_H_
#else
#define LOWBIT_KERNELS_INT8_TILE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "hwy/highway.h"
#include "src/formats/panel-inl.h"

// x86 without VNNI multiplies pairs of bytes to 16 bits, which hold the sum of a few products.
#undef LOWBIT_PAIRS_OF_BYTES
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
#define LOWBIT_PAIRS_OF_BYTES 1
#else
#define LOWBIT_PAIRS_OF_BYTES 0
#endif

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

constexpr int kSignedRun = 0;

// kRun: how many pairs of products of a code and an activation fit in 16 bits; kSignedRun: codes are signed, and one
// does. Only used with LOWBIT_PAIRS_OF_BYTES. kTwoScales: 16 weights share a scale, else 32.
template <int kRunOf, bool kTwoScalesOf, bool kMinimaOf>
struct TileKind {
  static constexpr int kRun = kRunOf;
  static constexpr bool kTwoScales = kTwoScalesOf, kMinima = kMinimaOf;
};

// Adds the products of kQuads quads of codes and of activations to the sums: codes[i][v] with x[t][i].
template <class Kind, size_t kQuads, size_t kVectors, size_t kTokens>
HWY_INLINE void AddQuads(const Panel* HWY_RESTRICT panels, size_t quad, const int8_t* HWY_RESTRICT q,
                         IntsV (&sums)[kTokens][kVectors]) {
  const PanelInts di32;
  const PanelBytes du8;
  const PanelLevels di8;
  const size_t at = quad * 4 * LanesOfPanel();
  const auto four = [&](size_t t, size_t i) HWY_ATTR {
    int32_t bytes;
    hwy::CopyBytes<4>(q + ((quad + i) * kTokens + t) * 4, &bytes);
    return hn::BitCast(di8, hn::Set(di32, bytes));
  };
#if LOWBIT_PAIRS_OF_BYTES
  constexpr size_t kRun = Kind::kRun == kSignedRun ? 1 : HWY_MIN(size_t{Kind::kRun}, kQuads);
  const hn::RepartitionToWide<PanelLevels> di16;
  for (size_t first = 0; first < kQuads; first += kRun) {
    hn::Vec<decltype(di16)> pairs[kTokens][kVectors];
    HWY_UNROLL(8)
    for (size_t i = first; i < first + kRun; ++i) {
      for (size_t t = 0; t < kTokens; ++t) {
        const auto x = four(t, i);
        for (size_t v = 0; v < kVectors; ++v) {
          auto codes = hn::Load(du8, panels[v].codes + at + i * 4 * LanesOfPanel());
          auto factors = x;
          if constexpr (Kind::kRun == kSignedRun) {
            // abs(-128) is -128, which is 128 as an unsigned byte.
            const auto levels = hn::BitCast(di8, codes);
            codes = hn::BitCast(du8, hn::Abs(levels));
            factors = hn::IfNegativeThenNegOrUndefIfZero(levels, x);
          }
          const auto products = hn::SatWidenMulPairwiseAdd(di16, codes, factors);
          pairs[t][v] = i == first ? products : hn::Add(pairs[t][v], products);
        }
      }
    }
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t v = 0; v < kVectors; ++v) {
        sums[t][v] = hn::Add(sums[t][v], hn::WidenMulPairwiseAdd(di32, pairs[t][v], hn::Set(di16, 1)));
      }
    }
  }
#else
  using Codes = hn::Vec<std::conditional_t<kUnsignedCodes, PanelBytes, PanelLevels> >;
  HWY_UNROLL(8)
  for (size_t i = 0; i < kQuads; ++i) {
    Codes codes[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      const auto bytes = hn::Load(du8, panels[v].codes + at + i * 4 * LanesOfPanel());
      codes[v] = hn::BitCast(hn::DFromV<Codes>(), bytes);
    }
    for (size_t t = 0; t < kTokens; ++t) {
      const auto x = four(t, i);
      for (size_t v = 0; v < kVectors; ++v) sums[t][v] = hn::SumOfMulQuadAccumulate(di32, codes[v], x, sums[t][v]);
    }
  }
#endif
}

// Where sums of tokens are read from and written to: of row r of vector v at t * stride + v * R + r.
struct TileSums {
  const float* from;
  size_t from_stride;
  float* to;
  size_t to_stride;

  TileSums At(size_t token) const {
    return {from + token * from_stride, from_stride, to + token * to_stride, to_stride};
  }
};

// Loads bytes that are needed later, some in each of a number of steps.
class Prefetcher {
 public:
  explicit Prefetcher(const uint8_t* begin) : at_(begin), end_(begin) {}

  // The next bytes, in num_steps steps.
  void Begin(size_t num_bytes, size_t num_steps) {
    at_ = end_;
    end_ += num_bytes;
    step_ = (num_bytes / 64 / num_steps + 1) * 64;
  }

  HWY_INLINE void Step() {
    const uint8_t* end = HWY_MIN(at_ + step_, end_);
    for (; at_ < end; at_ += 64) PrefetchToL2(at_);
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
  size_t step_ = 0;
};

// Adds the products of num_groups groups of 32 weights, of kVectors panels. q, scale, x_sums and starts are those of a tile
// (src/formats/activations.h), from the first group on. Each group is a step of `ahead`.
template <class Kind, size_t kVectors, size_t kTokens>
HWY_INLINE void MultiplyTile(const Panel* HWY_RESTRICT panels, size_t num_groups, const int8_t* HWY_RESTRICT q,
                             const float* HWY_RESTRICT scale, const float* HWY_RESTRICT x_sums,
                             const int32_t* HWY_RESTRICT starts, const TileSums& tile, Prefetcher& ahead) {
  const PanelFloats df;
  const size_t R = LanesOfPanel();
  constexpr size_t kScales = Kind::kTwoScales ? 2 : 1, kQuads = 8 / kScales;
  FloatsV sums[kTokens][kVectors];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectors; ++v) sums[t][v] = hn::Load(df, tile.from + t * tile.from_stride + v * R);
  }
  for (size_t g = 0; g < num_groups; ++g) {
    ahead.Step();
    FloatsV products[kTokens][kVectors];
    for (size_t s = 0; s < kScales; ++s) {
      const size_t scale_at = g * kScales + s;
      IntsV ints[kTokens][kVectors];
      for (size_t t = 0; t < kTokens; ++t) {
        for (size_t v = 0; v < kVectors; ++v) {
          ints[t][v] = hn::Set(PanelInts(), starts[scale_at * kTokens + t]);
        }
      }
      AddQuads<Kind, kQuads>(panels, g * 8 + s * kQuads, q, ints);
      for (size_t v = 0; v < kVectors; ++v) {
        const FloatsV weight_scale = hn::Load(df, panels[v].scales + scale_at * R);
        for (size_t t = 0; t < kTokens; ++t) {
          const FloatsV product = hn::ConvertTo(df, ints[t][v]);
          products[t][v] = s == 0 ? hn::Mul(product, weight_scale) : hn::MulAdd(product, weight_scale, products[t][v]);
        }
      }
    }
    for (size_t t = 0; t < kTokens; ++t) {
      const FloatsV x_scale = hn::Set(df, scale[g * kTokens + t]);
      for (size_t v = 0; v < kVectors; ++v) sums[t][v] = hn::MulAdd(products[t][v], x_scale, sums[t][v]);
    }
    if constexpr (Kind::kMinima) {
      for (size_t s = 0; s < kScales; ++s) {
        const size_t scale_at = g * kScales + s;
        for (size_t v = 0; v < kVectors; ++v) {
          const FloatsV minimum = hn::Load(df, panels[v].minima + scale_at * R);
          for (size_t t = 0; t < kTokens; ++t) {
            const FloatsV x_sum = hn::Set(df, x_sums[scale_at * kTokens + t]);
            sums[t][v] = hn::NegMulAdd(minimum, x_sum, sums[t][v]);
          }
        }
      }
    }
  }
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(sums[t][v], df, tile.to + t * tile.to_stride + v * R);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_KERNELS_INT8_TILE_INL_H_
