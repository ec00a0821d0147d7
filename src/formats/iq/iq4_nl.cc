// IQ4_NL: 32 weights in 18 bytes, 4.5 bits per weight. The levels are not evenly spaced.
//
//   byte 0-1    d            float16
//   byte 2-17   nibbles[16]  byte j: code j in bits 0-3, code j + 16 in bits 4-7
//
//   w[i] = d * level[code[i]],
//   level = -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
//
// Source: ggml-common.h (block_iq4_nl, kvalues_iq4nl), quantize_row_iq4_nl_impl, dequantize_row_iq4_nl.

// Fit: Encoder::Fit in this file, FitScale in iq/iq4-inl.h; scalar reference: Encoder::Reference in this file.
// Packing: Encoder::Pack in this file, PackNibbles in iq/iq4-inl.h.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/iq/iq4_nl.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/iq/iq4-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq4_nl {

using iq4::kGroupSize;
constexpr size_t kNibblesAt = 2;

struct Encoder {
  static constexpr size_t kBlock = kGroupSize, kBlockBytes = 18;

  static HWY_INLINE void Pack(const uint8_t* codes, uint8_t* block) { iq4::PackNibbles(codes, block + kNibblesAt); }

  static HWY_NOINLINE void Reference(const float* x, const float* importance, uint8_t* block) {
    uint8_t codes[kBlock];
    float w[kBlock], sum_x2 = 0.0f;
    for (size_t i = 0; i < kBlock; ++i) sum_x2 += x[i] * x[i];
    const float variance = sum_x2 * (2.0f / kBlock);
    for (size_t i = 0; i < kBlock; ++i) {
      w[i] = importance ? importance[i] * std::sqrt(variance + x[i] * x[i]) : x[i] * x[i];
    }
    const float scale = iq4::ReferenceScale(x, w);
    const float multiplier = scale != 0.0f ? 1.0f / scale : 0.0f;
    StoreHalf(scale, block);
    for (size_t i = 0; i < kBlock; ++i) codes[i] = iq4::ReferenceCode(multiplier * x[i]);
    Pack(codes, block);
  }

  static HWY_NOINLINE void Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words,
                               uint8_t* out) {
    using V = hn::Vec<SearchTag>;
    HWY_ALIGN float w[kBlock * kMaxGroups];
    const V sum_x2 = columns ? SumOfSquares<kBlock>(df, x) : hn::Zero(df);
    iq4::WeighErrors(df, x, columns, 0, hn::Mul(sum_x2, hn::Set(df, 2.0f / kBlock)), w);
    const V scale = iq4::FitScale(df, x, w);
    StoreHalves(df, scale, num, kBlockBytes, out);
    iq4::StoreNearest(df, x, iq4::InverseOrZero(df, scale), words);
  }
};

void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
  EncodeSuperBlocks<Encoder, kGroupSize>(weights, importance, num_rows, K, out);
}

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  for (size_t b = 0; b < num_blocks; ++b, blocks += Encoder::kBlockBytes, out += kGroupSize) {
    iq4::DecodeGroup(blocks + kNibblesAt, LoadHalf(blocks), out);
  }
}

struct Codec {
  static constexpr size_t kBlock = Encoder::kBlock, kBlockBytes = Encoder::kBlockBytes, kGroup = kGroupSize;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    HWY_UNROLL(8)
    for (size_t b = 0; b < num_blocks; ++b, rows.Skip(kBlockBytes)) {
      sink.Scale(LoadHalfOfRows(rows, 0), b);
      UnpackLevelRows(rows, kNibblesAt, b, iq4::kLevels, sink);
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    LoadHalves(blocks, kBlockBytes, num_blocks, u.scale);
    for (size_t b = 0; b < num_blocks; ++b) {
      iq4::UnpackLevels(blocks + b * kBlockBytes + kNibblesAt, u.code + b * kBlock);
    }
  }
};

constexpr PanelKind PanelOf() { return PanelKindOf<Codec>(); }

void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) { UnpackPanel<Codec>(rows, num_blocks, panel); }

void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {
  MultiplyFew<Codec>(rows, K, x, starts, sums);
}

void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {
  UnpackLevels<Codec>(blocks, num_blocks, levels, scales, minima);
}

}  // namespace iq4_nl
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(iq4_nl, "IQ4_NL", /*ggml_type=*/20, /*block_size=*/32, /*block_bytes=*/18,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
