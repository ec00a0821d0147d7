// Products of rows with one token: the codes that a codec unpacks (panel-inl.h) are multiplied in registers.
#if defined(LOWBIT_FORMATS_ONE_TOKEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_ONE_TOKEN_INL_H_
#undef LOWBIT_FORMATS_ONE_TOKEN_INL_H_
#else
#define LOWBIT_FORMATS_ONE_TOKEN_INL_H_
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

// Integer products of up to 256 weights of each row, and the scales. For the loops of codecs to unroll, and the sums to
// stay in registers, codecs call Quad with constants.
template <class Codec>
struct OneTokenSink {
  static constexpr PanelKind kKind = PanelKindOf<Codec>();
  static constexpr size_t kGroups = Panel::kMaxK / kKind.group, kQuads = kKind.group / 4;

  OneTokenSink(const int8_t* activations, const int32_t* starts, size_t num_groups) : x(activations) {
    for (size_t g = 0; g < kGroups; ++g) {
      sums[g] = hn::Set(PanelInts(), HWY_LIKELY(g < num_groups) ? starts[g] : 0);
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
    int32_t four;
    hwy::CopyBytes<4>(x + 4 * quad, &four);
    const auto factors = hn::BitCast(PanelLevels(), hn::Set(PanelInts(), four));
    sums[quad / kQuads] = AddQuad<kSigned>(codes, factors, sums[quad / kQuads]);
  }

  const int8_t* x;
  IntsV sums[kGroups];
  FloatsV scales[kGroups];
  FloatsV minima[kKind.has_minima ? kGroups : 1];
};

// Format::multiply_one for a codec. The additions are those of MultiplyTile (src/kernels/int8_tile-inl.h).
template <class Codec>
void MultiplyOne(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* HWY_RESTRICT out) {
  using Sink = OneTokenSink<Codec>;
  constexpr size_t kScales = 32 / Sink::kKind.group;
  const PanelFloats df;
  const float* x_sums = kScales == 2 ? x.sum16 : x.sum32;
  FloatsV sum = hn::Load(df, out);
  for (size_t k = 0; k < K; k += Panel::kMaxK) {
    const size_t num_groups = HWY_MIN(Panel::kMaxK, K - k) / 32, num_blocks = num_groups * 32 / Codec::kBlock;
    Sink sink(x.q + k, starts + k / Sink::kKind.group, num_groups * kScales);
    PackedRows piece = {rows.data + k / Codec::kBlock * Codec::kBlockBytes, rows.stride, rows.ahead};
    RowUnpacker<Codec, Sink>::Call(piece, num_blocks, sink);
    rows.ahead = piece.ahead;
    HWY_UNROLL(8)
    for (size_t g = 0; g < 8; ++g) {
      if (HWY_UNLIKELY(g >= num_groups)) break;
      const size_t s = g * kScales, at = k / 32 + g;
      FloatsV product = hn::Mul(hn::ConvertTo(df, sink.sums[s]), sink.scales[s]);
      if constexpr (kScales == 2) product = hn::MulAdd(hn::ConvertTo(df, sink.sums[s + 1]), sink.scales[s + 1], product);
      sum = hn::MulAdd(product, hn::Set(df, x.scale[at]), sum);
      if constexpr (Sink::kKind.has_minima) {
        for (size_t i = 0; i < kScales; ++i) {
          sum = hn::NegMulAdd(sink.minima[s + i], hn::Set(df, x_sums[at * kScales + i]), sum);
        }
      }
    }
  }
  hn::Store(sum, df, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_ONE_TOKEN_INL_H_
