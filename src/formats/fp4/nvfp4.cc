// NVFP4: 64 weights in 36 bytes, 4.5 bits per weight. Four groups of 16.
//
//   byte 0-3   scale[4]     unsigned, four bits of exponent e and three of mantissa m: (1 + m / 8) * 2^(e - 7),
//                           for e = 0: m * 2^-9; 0 and 127 are 0
//   byte 4-35  nibbles[32]  byte 8 * g + j, g in [0, 4), j in [0, 8): code 16 * g + j in bits 0-3,
//                           code 16 * g + 8 + j in bits 4-7
//
//   w[i] = scale[i / 16] * value[code[i]]
//   value = 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the same with a minus; code 8 is 0
//
// Importances are not used. Source: ggml-common.h (block_nvfp4), quantize_row_nvfp4_ref, dequantize_row_nvfp4,
// ggml-impl.h (ggml_fp32_to_ue4m3, ggml_ue4m3_to_fp32).

// Fit: ScaleCode in this file, Codes in fp4/fp4-inl.h.
// Packing: Codec::EncodeBlock in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/fp4/nvfp4.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/fp4/fp4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace nvfp4 {

constexpr size_t kGroups = 4, kGroupSize = 16;

// The code of a scale, rounded to nearest, ties up. Above 248, where the exponent would be 15, the scale is 448.
inline uint8_t ScaleCode(float scale) {
  if (!(scale > 0.0f)) return 0;
  const int32_t bits = hwy::BitCastScalar<int32_t>(HWY_MIN(scale, 448.0f));
  if (bits >> 23 <= 120) return static_cast<uint8_t>(HWY_MIN(7, static_cast<int>(scale * 512.0f + 0.5f)));
  // Exponent and mantissa as one number: a mantissa that rounds up to 8 increments the exponent.
  const int code = ((bits >> 19) + 1) / 2 - (120 << 3);
  return static_cast<uint8_t>(code < 15 << 3 ? code : 126);
}

// Half the scales of codes.
template <class DF, class VU>
HWY_INLINE hn::Vec<DF> HalfScales(DF df, VU code) {
  const hn::RebindToUnsigned<DF> du32;
  const auto bits = hn::ShiftLeft<20>(hn::And(code, hn::Set(du32, 127)));
  const auto normal = hn::BitCast(df, hn::Add(bits, hn::Set(du32, 119u << 23)));
  // Denormals: the implicit one is added and subtracted again.
  const auto bias = hn::Set(du32, 120u << 23);
  const auto small = hn::Sub(hn::BitCast(df, hn::Add(bits, bias)), hn::BitCast(df, bias));
  const auto is_small = hn::RebindMask(df, hn::Lt(bits, hn::Set(du32, 1u << 23)));
  return hn::IfThenZeroElse(hn::RebindMask(df, hn::Eq(code, hn::Set(du32, 127))),
                            hn::IfThenElse(is_small, small, normal));
}

// Those of a block.
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> HalfScales(const uint8_t* codes) {
  const auto bytes = hn::LoadU(hn::FixedTag<uint8_t, 4>(), codes);
  return HalfScales(hn::FixedTag<float, 4>(), hn::PromoteTo(hn::FixedTag<uint32_t, 4>(), bytes));
}

struct Codec {
  static constexpr size_t kNibblesAt = 4;
  static constexpr size_t kBlock = 64, kBlockBytes = 36, kGroup = kGroupSize;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* block) {
    HWY_ALIGN float scales[kGroups];
    HWY_ALIGN uint8_t codes[kBlock];
    float largest[kGroups];
    for (size_t g = 0; g < kGroups; ++g) {
      largest[g] = MaxMagnitude<kGroupSize>(x + g * kGroupSize);
      block[g] = ScaleCode(largest[g] / 6.0f);
    }
    // With a scale of zero all codes are 0, the same as with a scale so large that every weight rounds to 0.
    const hn::FixedTag<float, 4> df;
    const auto scale = HalfScales(block);
    hn::Store(hn::IfThenElse(hn::Eq(scale, hn::Zero(df)), hn::Inf(df), scale), df, scales);
    fp4::Codes<kBlock, kGroupSize>(x, scales, codes);
    for (size_t g = 0; g < kGroups; ++g) {
      // Also true for NaN and infinity. The largest scale is 448 * 6.
      if (HWY_UNLIKELY(!(largest[g] < 8192.0f))) block[g] = ReferenceGroup(x + g * kGroupSize, codes + g * kGroupSize);
    }
    // In words of eight codes: even words become low nibbles, odd words high nibbles.
    const hn::FixedTag<uint8_t, 16> d;
    const hn::Repartition<uint64_t, decltype(d)> d64;
    for (size_t i = 0; i < kBlock; i += 32) {
      const auto a = hn::BitCast(d64, hn::Load(d, codes + i)), b = hn::BitCast(d64, hn::Load(d, codes + i + 16));
      const auto low = hn::BitCast(d, hn::InterleaveLower(d64, a, b)),
                 high = hn::BitCast(d, hn::InterleaveUpper(d64, a, b));
      hn::StoreU(hn::Or(low, hn::ShiftLeft<4>(high)), d, block + kNibblesAt + i / 2);
    }
  }

  // Scalar reference of a group: writes the codes, returns the code of the scale.
  static HWY_NOINLINE uint8_t ReferenceGroup(const float* x, uint8_t* codes) {
    float largest = 0.0f;
    for (size_t i = 0; i < kGroupSize; ++i) {
      if (largest < std::fabs(x[i])) largest = std::fabs(x[i]);
    }
    const uint8_t scale_codes[4] = {ScaleCode(largest / 6.0f)};
    const float scale = hn::GetLane(HalfScales(scale_codes));
    for (size_t i = 0; i < kGroupSize; ++i) codes[i] = fp4::ReferenceCode(x[i], scale);
    return scale_codes[0];
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    const auto four = hn::Set(PanelWords(), 0x0F0F0F0F);
    HWY_UNROLL(4)
    for (size_t b = 0; b < Panel::kMaxK / kBlock; ++b, rows.Skip(kBlockBytes)) {
      if (HWY_UNLIKELY(b >= num_blocks)) break;
      WordsV words[4];
      LoadWords(rows, 0, words);
      WordsV codes = words[0];
      HWY_UNROLL(4)
      for (size_t g = 0; g < kGroups; ++g, codes = hn::ShiftRight<8>(codes)) {
        sink.Scale(HalfScales(PanelFloats(), hn::And(codes, hn::Set(PanelWords(), 0xFF))), kGroups * b + g);
      }
      HWY_UNROLL(8)
      for (size_t i = 0; i < 8; ++i) {  // two words for a group: its first eight codes in the low bits, then the others
        if (i % 4 == 0) LoadWords(rows, kNibblesAt + 4 * i, words);
        const auto levels = [&](WordsV nibbles) HWY_ATTR {
          return hn::BitCast(PanelWords(), fp4::Levels(PanelBytes(), hn::BitCast(PanelBytes(), nibbles)));
        };
        const size_t quad = 16 * b + i / 2 * 4 + i % 2;
        sink.Levels(levels(hn::And(words[i % 4], four)), quad);
        sink.Levels(levels(hn::And(hn::ShiftRight<4>(words[i % 4]), four)), quad + 2);
      }
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    const hn::FixedTag<uint8_t, 16> d;
    const hn::Repartition<uint64_t, decltype(d)> d64;
    for (size_t b = 0; b < num_blocks; ++b, blocks += kBlockBytes) {
      hn::Store(HalfScales(blocks), hn::FixedTag<float, 4>(), u.scale + kGroups * b);
      for (size_t i = 0; i < kBlock; i += 32) {
        const auto nibbles = hn::LoadU(d, blocks + kNibblesAt + i / 2);
        const auto low = hn::BitCast(d64, fp4::Levels(d, hn::And(nibbles, hn::Set(d, 15))));
        const auto high = hn::BitCast(d64, fp4::Levels(d, hn::ShiftRight<4>(nibbles)));
        const auto first = hn::InterleaveLower(d64, low, high), second = hn::InterleaveUpper(d64, low, high);
        StorePair(hn::BitCast(d, first), hn::BitCast(d, second), u.code + kBlock * b + i);
      }
    }
  }
};

using Functions = BlockFormat<Codec>;

}  // namespace nvfp4
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(nvfp4::Functions, "NVFP4", /*ggml_type=*/40, /*block_size=*/64, /*block_bytes=*/36,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
