// TQ1_0: 256 weights in 54 bytes, 1.6875 bits per weight: -d, 0 or d. A byte has five ternary codes. It is the fraction
// code[0] / 3 + code[1] / 9 + ... times 256, rounded up. The integer part of 3^(n + 1) * byte / 256 has code[n] as its
// last ternary digit.
//
//   byte 0-31   first[32]   byte m, n in [0, 5): code 32 * n + m
//   byte 32-47  second[16]  byte m, n in [0, 5): code 160 + 16 * n + m
//   byte 48-51  third[4]    byte m, n in [0, 4): code 240 + 4 * n + m
//   byte 52-53  d           float16: the largest magnitude
//
//   w[i] = d * (code[i] - 1)
//
// Importances are not used. Source: ggml-common.h (block_tq1_0), quantize_row_tq1_0_ref, dequantize_row_tq1_0.

// Fit: RoundBlock in block-inl.h.
// Packing: Codec::EncodeBlock in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/ternary/tq1_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace tq1_0 {

template <class V>
HWY_INLINE V Triple(V v) {
  return hn::Add(v, hn::Add(v, v));
}

// Packs num (at most 5) codes into each of Lanes(d) bytes. Codes of the same byte are `stride` apart.
template <class D>
HWY_INLINE void PackTrits(D d, const uint8_t* codes, size_t stride, size_t num, uint8_t* out) {
  auto digits = hn::Zero(d);
  for (size_t n = 0; n < 5; ++n) {
    digits = Triple(digits);
    if (n < num) digits = hn::Add(digits, hn::LoadU(d, codes + n * stride));
  }
  // (256 * digits + 242) / 243 of every other byte. Multiplying by 8631 / 2^21 is exact for all 243 numbers.
  const hn::RepartitionToWide<D> d16;
  const auto upper = hn::Set(d16, 0xFF00), round_up = hn::Set(d16, 242), inverse = hn::Set(d16, 8631);
  const auto pairs = hn::BitCast(d16, digits);
  const auto even = hn::Add(hn::ShiftLeft<8>(pairs), round_up), odd = hn::Add(hn::And(pairs, upper), round_up);
  const auto low = hn::ShiftRight<5>(hn::MulHigh(even, inverse)), high = hn::ShiftRight<5>(hn::MulHigh(odd, inverse));
  hn::StoreU(hn::BitCast(d, hn::Or(low, hn::ShiftLeft<8>(high))), d, out);
}

// The integer part of 3 / 256 times each byte.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V FirstTrit(D d, V fraction) {
  const auto not_zero = hn::Ge(fraction, hn::Set(d, 86)), is_two = hn::Ge(fraction, hn::Set(d, 171));
  return hn::IfThenElse(is_two, hn::Set(d, 2), hn::IfThenElseZero(not_zero, hn::Set(d, 1)));
}

struct Codec {
  static constexpr size_t kSecondAt = 32, kThirdAt = 48, kDAt = 52;
  static constexpr size_t kBlock = 256, kBlockBytes = 54, kGroup = 256;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = 1, kTop = 2;

  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* block) {
    HWY_ALIGN uint8_t codes[kBlock];
    StoreHalf(RoundBlock<kBlock>(x, 1.0f, kBias, codes).d, block + kDAt);
    const hn::CappedTag<uint8_t, 32> d;
    for (size_t m = 0; m < 32; m += hn::Lanes(d)) PackTrits(d, codes + m, 32, 5, block + m);
    PackTrits(hn::FixedTag<uint8_t, 16>(), codes + 160, 16, 5, block + kSecondAt);
    PackTrits(hn::FixedTag<uint8_t, 4>(), codes + 240, 4, 4, block + kThirdAt);
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    // `num` quads from four bytes of each row, `step` quads apart.
    const auto unpack = [&](WordsV word, size_t num, size_t quad, size_t step) HWY_ATTR {
      auto fraction = hn::BitCast(PanelBytes(), word);
      HWY_UNROLL(5)
      for (size_t n = 0; n < num; ++n, fraction = Triple(fraction)) {
        sink.Quad(hn::BitCast(PanelWords(), FirstTrit(PanelBytes(), fraction)), quad + n * step);
      }
    };
    WordsV words[4];
    HWY_UNROLL(2)
    for (size_t k = 0; k < 2; ++k) {
      LoadWords(rows, 16 * k, words);
      HWY_UNROLL(4)
      for (size_t i = 0; i < 4; ++i) unpack(words[i], 5, 4 * k + i, 8);
    }
    LoadWords(rows, kSecondAt, words);
    HWY_UNROLL(4)
    for (size_t i = 0; i < 4; ++i) unpack(words[i], 5, 40 + i, 4);
    LoadWords(rows, kDAt - 14, words);  // d is in the upper half of the last word
    const FloatsV scale = LowHalves(hn::ShiftRight<16>(words[3]));
    for (size_t g = 0; g < kBlock / 32; ++g) sink.Scale(scale, g);
    unpack(hn::Or(hn::ShiftRight<16>(words[2]), hn::ShiftLeft<16>(words[3])), 4, 60, 1);
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t num_blocks, Unpacked& u) {
    UnpackScales<Codec>(block + kDAt, num_blocks, u);
    const hn::CappedTag<uint8_t, 32> d;
    for (size_t m = 0; m < 32; m += hn::Lanes(d)) {
      auto fraction = hn::LoadU(d, block + m);
      for (size_t n = 0; n < 5; ++n, fraction = Triple(fraction)) {
        hn::Store(FirstTrit(d, fraction), d, u.code + 32 * n + m);
      }
    }
    const hn::FixedTag<uint8_t, 16> d16;
    const hn::Repartition<uint32_t, decltype(d16)> du32;
    uint32_t third;
    hwy::CopyBytes<4>(block + kThirdAt, &third);
    auto fraction = hn::LoadU(d16, block + kSecondAt), last = hn::BitCast(d16, hn::Set(du32, third));
    for (size_t n = 1; n < 4; ++n) last = hn::IfThenElse(hn::FirstN(d16, 4 * n), last, Triple(last));
    for (size_t n = 0; n < 6; n += 2) {
      const auto next = n == 4 ? last : Triple(fraction);
      StorePair(FirstTrit(d16, fraction), FirstTrit(d16, next), u.code + 160 + 16 * n);
      fraction = Triple(next);
    }
  }
};

using Functions = BlockFormat<Codec>;

}  // namespace tq1_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(tq1_0::Functions, "TQ1_0", /*ggml_type=*/34, /*block_size=*/256, /*block_bytes=*/54,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
