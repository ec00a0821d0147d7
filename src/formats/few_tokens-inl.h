// Products of rows with one or two tokens: the codes that a codec unpacks (panel-inl.h) are multiplied in registers.
#if defined(LOWBIT_FORMATS_FEW_TOKENS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_FEW_TOKENS_INL_H_
#undef LOWBIT_FORMATS_FEW_TOKENS_INL_H_
#else
#define LOWBIT_FORMATS_FEW_TOKENS_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <type_traits>

#include "hwy/highway.h"
#include "src/formats/activations.h"
#include "src/formats/panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// Adds the products of four codes and four activations to each lane. On x86 without VNNI, the instruction adds pairs of
// products in 16 bits, which hold two products of a code up to 127.
template <bool kSigned>
HWY_INLINE IntsV AddQuad(WordsV codes, hn::Vec<PanelLevels> x, IntsV sum) {
  const PanelInts di32;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
  const hn::RepartitionToWide<PanelLevels> di16;
  auto bytes = hn::BitCast(PanelBytes(), codes);
  if constexpr (kSigned) {
    // abs(-128) is -128, which is 128 as an unsigned byte.
    const auto levels = hn::BitCast(PanelLevels(), codes);
    bytes = hn::BitCast(PanelBytes(), hn::Abs(levels));
    x = hn::IfNegativeThenNegOrUndefIfZero(levels, x);
  }
  const auto pairs = hn::SatWidenMulPairwiseAdd(di16, bytes, x);
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di32, pairs, hn::Set(di16, 1)));
#else
  using Codes = std::conditional_t<kUnsignedCodes, PanelBytes, PanelLevels>;
  return hn::SumOfMulQuadAccumulate(di32, hn::BitCast(Codes(), codes), x, sum);
#endif
}

// Two tokens have twice as many sums, for which AVX2 lacks registers.
constexpr size_t kMostFewTokens = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM_A64 ? 2 : 1;

// The activations of a quad of a token, in every lane.
HWY_INLINE hn::Vec<PanelLevels> LoadQuad(const int8_t* x, size_t quad) {
  int32_t four;
  hwy::CopyBytes<4>(x + 4 * quad, &four);
  return hn::BitCast(PanelLevels(), hn::Set(PanelInts(), four));
}

// Integer products of 256 weights of each row with a tile of tokens, and the scales. Codecs unroll their loops, so that Quad
// is called with constants and the sums stay in registers.
template <class Codec, size_t kTokens>
struct FewTokensSink {
  static constexpr PanelKind kKind = PanelKindOf<Codec>();
  static constexpr size_t kGroups = Panel::kMaxK / kKind.group, kQuads = kKind.group / 4;

  FewTokensSink(const int8_t* activations, const int32_t* starts) : x(activations) {
    for (size_t g = 0; g < kGroups; ++g) {
      for (size_t t = 0; t < kTokens; ++t) sums[t][g] = hn::Set(PanelInts(), starts[g * kTokens + t]);
    }
  }

  HWY_INLINE void Quad(WordsV codes, size_t quad) { Add<false>(codes, quad); }
  HWY_INLINE void Levels(WordsV levels, size_t quad) {
    if constexpr (kUnsignedCodes) levels = hn::Xor(levels, hn::Set(PanelWords(), 0x80808080));
    Add<!kUnsignedCodes>(levels, quad);
  }
  HWY_INLINE void Scale(FloatsV scale, size_t group) { scales[group] = scale; }
  HWY_INLINE void Minimum(FloatsV minimum, size_t group) { minima[group] = minimum; }

  template <bool kSigned>
  HWY_INLINE void Add(WordsV codes, size_t quad) {
    for (size_t t = 0; t < kTokens; ++t) {
      IntsV& sum = sums[t][quad / kQuads];
      sum = AddQuad<kSigned>(codes, LoadQuad(x, quad * kTokens + t), sum);
    }
  }

  const int8_t* x;
  IntsV sums[kTokens][kGroups];
  FloatsV scales[kGroups];
  FloatsV minima[kKind.has_minima ? kGroups : 1];
};

// Adds one group of 32 to the sum of token t. sums(i), scales(i) and minima(i) are those of its one or two parts. The
// additions are those of MultiplyTile (src/kernels/int8_tile-inl.h).
template <class Codec, size_t kTokens, class Sums, class Scales, class Minima>
HWY_INLINE FloatsV AddGroup(const Activations& x, size_t group, size_t t, Sums sums, Scales scales, Minima minima,
                            FloatsV sum) {
  constexpr PanelKind kKind = PanelKindOf<Codec>();
  constexpr size_t kParts = 32 / kKind.group;
  const PanelFloats df;
  FloatsV product = hn::Mul(hn::ConvertTo(df, sums(0)), scales(0));
  if constexpr (kParts == 2) product = hn::MulAdd(hn::ConvertTo(df, sums(1)), scales(1), product);
  sum = hn::MulAdd(product, hn::Set(df, x.scale[group * kTokens + t]), sum);
  if constexpr (kKind.has_minima) {
    const float* x_sums = (kParts == 2 ? x.sum16 : x.sum32) + group * kParts * kTokens + t;
    for (size_t i = 0; i < kParts; ++i) sum = hn::NegMulAdd(minima(i), hn::Set(df, x_sums[i * kTokens]), sum);
  }
  return sum;
}

// The weights after the last 256 of a row, by way of a panel. Adds to out[t * R + row].
template <class Codec, size_t kTokens>
HWY_NOINLINE void MultiplyRest(PackedRows rows, size_t k, size_t K, const Activations& x, const int32_t* starts,
                               float* HWY_RESTRICT out) {
  constexpr PanelKind kKind = PanelKindOf<Codec>();
  constexpr size_t kParts = 32 / kKind.group, kQuads = kKind.group / 4;
  const size_t R = LanesOfPanel();
  Panel panel;
  UnpackPanel<Codec>(rows, (K - k) / Codec::kBlock, panel);
  const auto load = [&](const float* from) HWY_ATTR { return hn::Load(PanelFloats(), from); };
  for (size_t g = 0; g < (K - k) / 32; ++g) {
    for (size_t t = 0; t < kTokens; ++t) {
      IntsV sums[kParts];
      for (size_t i = 0; i < kParts; ++i) {
        sums[i] = hn::Set(PanelInts(), starts[(k / kKind.group + g * kParts + i) * kTokens + t]);
        for (size_t quad = (g * kParts + i) * kQuads; quad < (g * kParts + i + 1) * kQuads; ++quad) {
          const auto codes = hn::BitCast(PanelWords(), hn::Load(PanelBytes(), panel.codes + quad * 4 * R));
          const auto four = LoadQuad(x.q + k * kTokens, quad * kTokens + t);
          sums[i] = AddQuad < Codec::kSigned && !kUnsignedCodes > (codes, four, sums[i]);
        }
      }
      const FloatsV sum = AddGroup<Codec, kTokens>(
          x, k / 32 + g, t, [&](size_t i) HWY_ATTR { return sums[i]; },
          [&](size_t i) HWY_ATTR { return load(panel.scales + (g * kParts + i) * R); },
          [&](size_t i) HWY_ATTR { return load(panel.minima + (g * kParts + i) * R); }, load(out + t * R));
      hn::Store(sum, PanelFloats(), out + t * R);
    }
  }
}

template <class Codec, size_t kTokens>
HWY_NOINLINE void MultiplyTokens(PackedRows rows, size_t K, const Activations& x, const int32_t* starts,
                                 float* HWY_RESTRICT out) {
  using Sink = FewTokensSink<Codec, kTokens>;
  constexpr size_t kParts = 32 / Sink::kKind.group, kBlocks = Panel::kMaxK / Codec::kBlock;
  FloatsV sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = hn::Load(PanelFloats(), out + t * LanesOfPanel());
  size_t k = 0;
  for (; k + Panel::kMaxK <= K; k += Panel::kMaxK) {
    Sink sink(x.q + k * kTokens, starts + k / Sink::kKind.group * kTokens);
    PackedRows piece = rows;
    RowUnpacker<Codec, Sink>::Call(piece, kBlocks, sink);
    rows = {rows.data + kBlocks * Codec::kBlockBytes, rows.stride, piece.ahead};
    HWY_UNROLL(8)
    for (size_t g = 0; g < 8; ++g) {
      for (size_t t = 0; t < kTokens; ++t) {
        sums[t] = AddGroup<Codec, kTokens>(
            x, k / 32 + g, t, [&](size_t i) HWY_ATTR { return sink.sums[t][g * kParts + i]; },
            [&](size_t i) HWY_ATTR { return sink.scales[g * kParts + i]; },
            [&](size_t i) HWY_ATTR { return sink.minima[g * kParts + i]; }, sums[t]);
      }
    }
  }
  for (size_t t = 0; t < kTokens; ++t) hn::Store(sums[t], PanelFloats(), out + t * LanesOfPanel());
  if constexpr (kBlocks > 1) {
    if (k < K) MultiplyRest<Codec, kTokens>(rows, k, K, x, starts, out);
  }
}

// Format::multiply_few for a codec.
template <class Codec>
void MultiplyFew(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* HWY_RESTRICT out) {
  if constexpr (kMostFewTokens == 2) {
    if (x.num_tokens == 2) return MultiplyTokens<Codec, 2>(rows, K, x, starts, out);
  }
  MultiplyTokens<Codec, 1>(rows, K, x, starts, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_FEW_TOKENS_INL_H_
