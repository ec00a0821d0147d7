// Shared by formats that encode blocks one by one: Q8_0, Q8_1, Q8_K, TQ1_0, TQ2_0, MXFP4, NVFP4, Q2_0. The scale
// follows from the largest magnitude, and each weight is rounded once. A format provides a codec (format-inl.h) that
// also has
//
//   static constexpr int kBias;                             // subtracted from a code before scaling
//   static void EncodeBlock(const float* x, uint8_t* out);  // kBlock weights
//
// and registers BlockFormat<Codec>.
#if defined(LOWBIT_FORMATS_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_BLOCK_INL_H_
#undef LOWBIT_FORMATS_BLOCK_INL_H_
#else
#define LOWBIT_FORMATS_BLOCK_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include <cmath>

#include "hwy/highway.h"
#include "src/formats/decode-inl.h"
#include "src/formats/format-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

template <class Codec>
struct BlockFormat {
  static void Encode(const float* weights, const float* /*importance*/, size_t num_rows, size_t K, uint8_t* out) {
    for (size_t b = 0; b < num_rows * K / Codec::kBlock; ++b) {
      Codec::EncodeBlock(weights + b * Codec::kBlock, out + b * Codec::kBlockBytes);
    }
  }

  static void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {
    DecodeUnpacked<Codec>(blocks, num_blocks, out);
  }

  static constexpr PanelKind PanelOf() { return PanelKindOf<Codec>(); }

  static void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) { UnpackPanel<Codec>(rows, num_blocks, panel); }

  static void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {
    MultiplyFew<Codec>(rows, K, x, starts, sums);
  }

  static void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {
    UnpackLevels<Codec>(blocks, num_blocks, levels, scales, minima);
  }
};

// The largest magnitude of kNum weights. The order of comparisons has no effect, so the weights go across the lanes.
// Magnitudes are compared as integers, which have the order of the floats. Infinity and NaN are the largest, so the
// result is not finite if any weight is not.
template <size_t kNum>
HWY_INLINE float MaxMagnitude(const float* x) {
  const hn::CappedTag<float, HWY_MIN(kNum, size_t{16})> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const size_t N = hn::Lanes(df);
  auto bits = hn::BitCast(di32, hn::Abs(hn::LoadU(df, x)));
  for (size_t i = N; i < kNum; i += N) bits = hn::Max(bits, hn::BitCast(di32, hn::Abs(hn::LoadU(df, x + i))));
  return hwy::BitCastScalar<float>(hn::ReduceMax(di32, bits));
}

// Narrows four vectors of integers in [-128, 127] to one vector of bytes, in order.
template <class DI32, class V = hn::Vec<DI32>, class DI8 = hn::Repartition<int8_t, DI32>>
HWY_INLINE hn::Vec<DI8> JoinBytes(DI32 /*di32*/, V a, V b, V c, V d) {
  const hn::RepartitionToNarrow<DI32> di16;
  return hn::OrderedDemote2To(DI8(), hn::OrderedDemote2To(di16, a, b), hn::OrderedDemote2To(di16, c, d));
}

// out[i] = x[i] * multiplier, rounded half away from zero as by C's roundf, plus bias. The result must fit a signed
// byte. The number added before truncation is the largest float below 0.5: the sum is rounded too, and with this number
// the result is right for every value below 2^23. Returns the sum of the bytes.
template <size_t kNum>
HWY_INLINE int RoundToBytes(const float* x, float multiplier, int bias, uint8_t* out) {
  const hn::CappedTag<float, HWY_MIN(kNum / 4, size_t{16})> df;
  const hn::RebindToSigned<decltype(df)> di32;
  const hn::Repartition<int8_t, decltype(df)> di8;
  const size_t N = hn::Lanes(df);
  const auto factor = hn::Set(df, multiplier), below_half = hn::Set(df, 0.5f - 0x1p-25f);
  const auto round = [&](const float* from) HWY_ATTR {
    const auto v = hn::Mul(hn::LoadU(df, from), factor);
    return hn::ConvertInRangeTo(di32, hn::Add(v, hn::CopySign(below_half, v)));
  };
  auto sum = hn::Zero(di32);
  for (size_t i = 0; i < kNum; i += 4 * N) {
    const auto a = round(x + i), b = round(x + i + N), c = round(x + i + 2 * N), d = round(x + i + 3 * N);
    sum = hn::Add(sum, hn::Add(hn::Add(a, b), hn::Add(c, d)));
    const auto bytes = hn::Add(JoinBytes(di32, a, b, c, d), hn::Set(di8, static_cast<int8_t>(bias)));
    hn::StoreU(bytes, di8, reinterpret_cast<int8_t*>(out + i));
  }
  return hn::ReduceSum(di32, sum);
}

// RoundBlock's results besides the codes.
struct Rounded {
  float d;
  int sum;  // sum of the codes without the bias
};

// Scalar reference of RoundBlock; also handles NaN and infinity. The maximum drops a NaN unless it is last. On x86,
// infinity and NaN convert to integers whose low byte is 0.
HWY_NOINLINE inline Rounded ReferenceRoundBlock(const float* x, size_t num, float top, int bias, uint8_t* codes) {
  float max = 0.0f;
  for (size_t i = 0; i < num; ++i) {
    const float magnitude = std::fabs(x[i]);
    max = max > magnitude ? max : magnitude;
  }
  const float d = max / top, inverse = d != 0.0f ? 1.0f / d : 0.0f;
  int sum = 0;
  for (size_t i = 0; i < num; ++i) {
    const float rounded = std::round(x[i] * inverse);
    const int8_t code = static_cast<int8_t>(std::fabs(rounded) < 0x1p31f ? static_cast<int>(rounded) : 0);
    codes[i] = static_cast<uint8_t>(code + bias);
    sum += code;
  }
  return {d, sum};
}

// The first weight with this magnitude, which must exist. The result has the weight's sign, also for zero.
HWY_INLINE float FirstWithMagnitude(const float* x, float magnitude) {
  const hn::CappedTag<float, 16> df;
  for (size_t i = 0;; i += hn::Lanes(df)) {
    const auto equal = hn::Eq(hn::Abs(hn::LoadU(df, x + i)), hn::Set(df, magnitude));
    if (!hn::AllFalse(df, equal)) return x[i + hn::FindKnownFirstTrue(df, equal)];
  }
}

// 1 / d as the encoders use it: 0 if d is 0 or 1 / d overflows. In these cases the reference's products are infinite or
// NaN, and their integers have a low byte of 0.
HWY_INLINE float Inverse(float d) {
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  return inverse <= hwy::HighestValue<float>() ? inverse : 0.0f;
}

// Codes of kNum weights: x / d rounded half away from zero, plus bias, with d = max|x| / top.
template <size_t kNum>
HWY_INLINE Rounded RoundBlock(const float* x, float top, int bias, uint8_t* codes) {
  const float max = MaxMagnitude<kNum>(x);
  if (HWY_UNLIKELY(!hwy::ScalarIsFinite(max))) return ReferenceRoundBlock(x, kNum, top, bias, codes);
  const float d = max / top;
  return {d, RoundToBytes<kNum>(x, Inverse(d), bias, codes)};
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_BLOCK_INL_H_
