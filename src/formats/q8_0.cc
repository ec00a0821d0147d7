// Q8_0: 32 weights in 34 bytes, 8.5 bits a weight.
//
//   byte 0-1   d      float16
//   byte 2-33  q[32]  int8
//
//   w[i] = d * q[i]
//
// Importances are not used. Source: ggml-common.h (block_q8_0), quantize_row_q8_0_ref.

#include <cmath>

#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/formats/q8_0.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace q8_0 {

constexpr size_t kBlock = 32;
constexpr size_t kBlockBytes = 34;

// Scalar reference.
void ReferenceBlock(const float* x, uint8_t* out) {
  float max = 0.0f;
  for (size_t i = 0; i < kBlock; ++i) {
    const float magnitude = std::fabs(x[i]);
    max = max > magnitude ? max : magnitude;
  }
  const float d = max / 127.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  StoreHalf(d, out);
  for (size_t i = 0; i < kBlock; ++i) {
    const float q = std::round(x[i] * inverse);
    // 1 / d overflows for the smallest d. Converted to an integer, infinity and NaN have a low byte of 0 on x86.
    out[2 + i] = static_cast<uint8_t>(std::fabs(q) < 128.0f ? static_cast<int8_t>(q) : 0);
  }
}

// The maximum does not depend on the order, so a block's weights go across the lanes.
HWY_INLINE void EncodeBlock(const float* x, uint8_t* out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const size_t N = hn::Lanes(df);
  // As integers, magnitudes are in the order of the floats, with infinity and NaN above them.
  auto bits = hn::Zero(di32);
  for (size_t i = 0; i < kBlock; i += N) bits = hn::Max(bits, hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + i))));
  const int32_t max_bits = hn::ReduceMax(di32, bits);
  if (HWY_UNLIKELY(max_bits >= 0x7F800000)) return ReferenceBlock(x, out);
  const float d = hwy::BitCastScalar<float>(max_bits) / 127.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  StoreHalf(d, out);
  const auto scale = hn::Set(df, inverse);
  for (size_t i = 0; i < kBlock; i += N) {
    auto q = RoundHalfAway(df, hn::Mul(hn::LoadU(df, x + i), scale));
    q = hn::IfThenElseZero(hn::Lt(hn::Abs(q), hn::Set(df, 128.0f)), q);
    hn::StoreU(hn::DemoteTo(di8, hn::ConvertTo(di32, q)), di8, reinterpret_cast<int8_t*>(out + 2 + i));
  }
}

void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
  for (size_t b = 0; b < num_rows * K / kBlock; ++b) EncodeBlock(weights + b * kBlock, out + b * kBlockBytes);
}

void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  for (size_t b = 0; b < num_blocks; ++b, blocks += kBlockBytes, out += kBlock) {
    const auto d = hn::Set(df, LoadHalf(blocks));
    for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
      const auto q = hn::LoadU(di8, reinterpret_cast<const int8_t*>(blocks + 2 + i));
      hn::StoreU(hn::Mul(hn::ConvertTo(df, hn::PromoteTo(di32, q)), d), df, out + i);
    }
  }
}

struct Codec {
  static constexpr size_t kBlock = q8_0::kBlock, kBlockBytes = q8_0::kBlockBytes, kGroup = 32;
  static constexpr bool kSigned = true, kHasOffset = false;

  static HWY_INLINE void Unpack(const uint8_t* blocks, size_t num_blocks, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> du8;
    LoadHalves(blocks, kBlockBytes, num_blocks, u.scale);
    for (size_t b = 0; b < num_blocks; ++b) {
      for (size_t i = 0; i < kBlock; i += hn::Lanes(du8)) {
        hn::Store(hn::LoadU(du8, blocks + b * kBlockBytes + 2 + i), du8, u.code + b * kBlock + i);
      }
    }
  }
};

void Dot(const uint8_t* rows, size_t row_bytes, size_t num_rows, const Activations& x, float* out, size_t out_stride) {
  DotInt8<Codec>(rows, row_bytes, num_rows, x, out, out_stride);
}

}  // namespace q8_0
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
LOWBIT_REGISTER_FORMAT(q8_0, "Q8_0", /*ggml_type=*/8, /*block_size=*/32, /*block_bytes=*/34, /*needs_imatrix=*/false)
#endif  // HWY_ONCE
