// Q1_0: 128 weights in 18 bytes, 1.125 bits per weight: -d or d.
//
//   byte 0-1   d         float16: the mean magnitude
//   byte 2-17  bits[16]  bit i % 8 of byte i / 8: 1 if weight i is not negative
//
//   w[i] = bit[i] ? d : -d
//
// Importances are not used. Source: ggml-common.h (block_q1_0), quantize_row_q1_0_ref, dequantize_row_q1_0.

// Fit and packing: Functions::Encode in this file.
// Product: Codec::Unpack in this file, UnpackPanel in panel-inl.h.

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/basic/q1_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/block-inl.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q1_0 {

// Byte i / 8 of four.
HWY_ALIGN constexpr uint8_t kByteOf[32] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                           2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};

struct Codec {
  static constexpr size_t kBitsAt = 2;
  static constexpr size_t kBlock = 128, kBlockBytes = 18, kGroup = 128;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = 1, kTop = 2;  // codes are 0 and 2

  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink) {
    const auto two = hn::Set(PanelBytes(), 2);
    HWY_UNROLL(2)
    for (size_t b = 0; b < Panel::kMaxK / kBlock; ++b, rows.Skip(kBlockBytes)) {
      if (HWY_UNLIKELY(b >= num_blocks)) break;
      const FloatsV scale = LoadHalfOfRows(rows, 0);
      WordsV words[4];
      LoadWords(rows, kBitsAt, words);
      HWY_UNROLL(4)
      for (size_t g = 0; g < 4; ++g) {
        sink.Scale(scale, 4 * b + g);
        HWY_UNROLL(8)
        for (size_t n = 0; n < 8; ++n) {
          const auto codes = hn::IfThenElseZero(QuadBits(words[g], n), two);
          sink.Quad(hn::BitCast(PanelWords(), codes), 8 * (4 * b + g) + n);
        }
      }
    }
  }

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    UnpackScales<Codec>(blocks, num_blocks, u);
    const hn::CappedTag<uint8_t, 32> d;
    const hn::Repartition<uint32_t, decltype(d)> d32;
    const hn::Repartition<uint64_t, decltype(d)> d64;
    const auto bit_of = hn::BitCast(d, hn::Set(d64, 0x8040201008040201)), two = hn::Set(d, 2);
    for (size_t b = 0; b < num_blocks; ++b) {
      for (size_t i = 0; i < kBlock; i += hn::Lanes(d)) {
        uint32_t word;
        hwy::CopyBytes<4>(blocks + b * kBlockBytes + kBitsAt + i / 32 * 4, &word);
        const auto bytes = hn::TableLookupBytes(hn::BitCast(d, hn::Set(d32, word)), hn::Load(d, kByteOf + i % 32));
        hn::Store(hn::IfThenElseZero(hn::TestBit(bytes, bit_of), two), d, u.code + b * kBlock + i);
      }
    }
  }
};

struct Functions : BlockFormat<Codec> {
  // The sum for the mean runs from the first weight to the last, so each lane has a block (kquant-inl.h).
  static void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
    constexpr size_t kBlock = Codec::kBlock, kBlockBytes = Codec::kBlockBytes;
    const SearchTag df;
    const size_t N = hn::Lanes(df), total = num_rows * K / kBlock;
    HWY_ALIGN float x[kBlock * kMaxGroups];
    for (size_t first = 0; first < total; first += N, out += N * kBlockBytes) {
      const size_t num = HWY_MIN(N, total - first);
      const float* blocks[kMaxGroups];
      for (size_t lane = 0; lane < N; ++lane) blocks[lane] = weights + (first + HWY_MIN(lane, num - 1)) * kBlock;
      Transpose(blocks, 0, kBlock, x);
      auto sum = hn::Zero(df);
      for (size_t i = 0; i < kBlock * N; i += N) sum = hn::Add(sum, hn::Abs(hn::Load(df, x + i)));
      StoreHalves(df, hn::Div(sum, hn::Set(df, float{kBlock})), num, kBlockBytes, out);
      for (size_t lane = 0; lane < num; ++lane) {
        uint64_t bits[kBlock / 64] = {};
        for (size_t i = 0; i < kBlock; i += N) {
          const auto positive = hn::Ge(hn::LoadU(df, blocks[lane] + i), hn::Zero(df));
          bits[i / 64] |= hn::BitsFromMask(df, positive) << i % 64;
        }
        hwy::CopyBytes<kBlock / 8>(bits, out + lane * kBlockBytes + Codec::kBitsAt);
      }
    }
  }
};

}  // namespace q1_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q1_0::Functions, "Q1_0", /*ggml_type=*/41, /*block_size=*/128, /*block_bytes=*/18,
                       /*needs_imatrix=*/false)
#endif  // HWY_ONCE
