// MXFP4: 32 weights in 17 bytes, 4.25 bits per weight.
//
//   byte 0     e            exponent of the scale 2^(e - 127)
//   byte 1-16  nibbles[16]  byte j: code j in bits 0-3, code j + 16 in bits 4-7
//
//   w[i] = 2^(e - 127) * value[code[i]]
//   value = 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the same with a minus; code 8 is 0
//
// Importances are not used. Source: ggml-common.h (block_mxfp4), quantize_row_mxfp4_ref, dequantize_row_mxfp4; OCP
// Microscaling Formats (MX) 1.0.

// Fit: Exponent in this file, Codes in fp4/fp4-inl.h.
// Packing: Codec::EncodeBlock in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/fp4/mxfp4.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/fp4/fp4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace mxfp4 {

// The exponent for a block's largest magnitude: floor(log2(largest)) - 2 + 127 in one byte, which wraps below 2^-125.
// log2 rounded to float is already the next integer for the last few numbers before a power of two.
inline uint8_t Exponent(float largest) {
  if (largest == 0.0f) return 0;
  const int32_t bits = hwy::BitCastScalar<int32_t>(largest);
  int exponent = (bits >> 23) - 127;
  if (HWY_UNLIKELY(exponent == -127 || (bits & 0x7FFF80) == 0x7FFF80)) {
    exponent = static_cast<int>(std::floor(static_cast<float>(std::log2(double{largest}))));
  }
  return static_cast<uint8_t>(exponent - 2 + 127);
}

// Half the scale: 2^(e - 128).
inline float HalfScale(uint8_t e) {
  return hwy::BitCastScalar<float>(e < 2 ? uint32_t{0x00200000} << e : static_cast<uint32_t>(e - 1) << 23);
}

// The same for a vector.
template <class DF, class DU32 = hn::RebindToUnsigned<DF>>
HWY_INLINE hn::Vec<DF> HalfScales(DF df, hn::Vec<DU32> e) {
  const DU32 d;
  const auto normal = hn::ShiftLeft<23>(hn::Sub(e, hn::Set(d, 1)));
  const auto denormal = hn::ShiftLeft<21>(hn::Add(e, hn::Set(d, 1)));  // for e = 0 and 1
  return hn::BitCast(df, hn::IfThenElse(hn::Lt(e, hn::Set(d, 2)), denormal, normal));
}

struct Codec {
  static constexpr size_t kNibblesAt = 1;
  static constexpr size_t kBlock = 32, kBlockBytes = 17, kGroup = 32;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

  // Scalar reference of the codes, for NaN and infinity. Returns the exponent.
  static HWY_NOINLINE uint8_t ReferenceCodes(const float* x, uint8_t* codes) {
    float largest = 0.0f;
    for (size_t i = 0; i < kBlock; ++i) {
      if (largest < std::fabs(x[i])) largest = std::fabs(x[i]);
    }
    // On x86, infinity converts to an integer whose low byte is 0.
    const uint8_t e = hwy::ScalarIsFinite(largest) ? Exponent(largest) : 0;
    for (size_t i = 0; i < kBlock; ++i) codes[i] = fp4::ReferenceCode(x[i], HalfScale(e));
    return e;
  }

  static HWY_INLINE void EncodeBlock(const float* x, uint8_t* block) {
    HWY_ALIGN uint8_t codes[kBlock];
    const float largest = MaxMagnitude<kBlock>(x);
    if (HWY_UNLIKELY(!hwy::ScalarIsFinite(largest))) {
      block[0] = ReferenceCodes(x, codes);
    } else {
      block[0] = Exponent(largest);
      const float scale = HalfScale(block[0]);
      fp4::Codes<kBlock, kBlock>(x, &scale, codes);
    }
    const hn::FixedTag<uint8_t, 16> d;
    const auto high = hn::ShiftLeft<4>(hn::Load(d, codes + 16));
    hn::StoreU(hn::Or(hn::Load(d, codes), high), d, block + kNibblesAt);
  }

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    HWY_UNROLL(8)
    for (size_t b = 0; b < Panel::kMaxK / kBlock; ++b, rows.Skip(kBlockBytes)) {
      if (HWY_UNLIKELY(b >= num_blocks)) break;
      const WordsV pairs = hn::PromoteTo(PanelWords(), LoadPairs(rows, 0));
      sink.Scale(HalfScales(PanelFloats(), hn::And(pairs, hn::Set(PanelWords(), 0xFF))), b);
      UnpackLevelRows(rows, kNibblesAt, b, fp4::kLevels, sink);
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    const hn::FixedTag<uint8_t, 16> d;
    HWY_ALIGN uint64_t exponents = 0;
    for (size_t b = 0; b < num_blocks; ++b, blocks += kBlockBytes) {
      exponents |= uint64_t{blocks[0]} << (8 * b);
      const auto nibbles = hn::LoadU(d, blocks + kNibblesAt);
      const auto low = fp4::Levels(d, hn::And(nibbles, hn::Set(d, 15)));
      StorePair(low, fp4::Levels(d, hn::ShiftRight<4>(nibbles)), u.code + b * kBlock);
    }
    const hn::CappedTag<float, 8> df;
    const hn::RebindToUnsigned<decltype(df)> du32;
    const hn::Rebind<uint8_t, decltype(df)> du8;
    for (size_t j = 0; j < 8; j += hn::Lanes(df)) {
      const auto e = hn::PromoteTo(du32, hn::LoadU(du8, reinterpret_cast<const uint8_t*>(&exponents) + j));
      hn::Store(HalfScales(df, e), df, u.scale + j);
    }
  }
};

using Functions = BlockFormat<Codec>;

}  // namespace mxfp4
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(mxfp4::Functions, "MXFP4", /*ggml_type=*/39, /*block_size=*/32, /*block_bytes=*/17,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
