// Unpacking of IQ3_XXS and IQ3_S, for integer products and for decoding. A format provides
//
//   struct Layout {
//     static constexpr size_t kBlockBytes;
//     static uint32_t Value(const uint8_t* block, size_t j, size_t k);  // the four values of point k of group j
//     static void UnpackScales(const uint8_t* block, float* scales);    // of the eight groups
//     static void UnpackSigns(const uint8_t* block, uint32_t* signs);   // bit i: weight i of the group is negative
//   };
//
// Cost for 32 weights: eight loads of four values, six instructions to join them, and six for each vector of bytes.
#if defined(LOWBIT_FORMATS_IQ3_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ3_DECODE_INL_H_
#undef LOWBIT_FORMATS_IQ3_DECODE_INL_H_
#else
#define LOWBIT_FORMATS_IQ3_DECODE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/decode-inl.h"
#include "src/formats/format-inl.h"
#include "src/formats/iq/grid_rows-inl.h"
#include "src/formats/iq/iq3.h"
#include "src/formats/iq/signs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq3 {

#if LOWBIT_GRID_ROWS
// A group of each row: four points in each of two words, and the signs.
template <size_t kNum, class Sink>
HWY_INLINE void UnpackGroup(const GridBytes<kNum>& grid, const uint8_t (&levels)[kIq3Levels], const WordsV* words,
                            const grid_rows::HighBits<kNum>& high, WordsV signs, size_t group, Sink& sink) {
  alignas(16) uint8_t values[16];  // plus 128
  for (size_t i = 0; i < kIq3Levels; ++i) {
    values[i] = static_cast<uint8_t>(128 + levels[i]);
    values[8 + i] = static_cast<uint8_t>(128 - levels[i]);
  }
  const hn::Vec<PanelBytes> points[2] = {hn::BitCast(PanelBytes(), words[0]), hn::BitCast(PanelBytes(), words[1])};
  grid_rows::UnpackFours(grid, points, high, signs, [&](auto fields, size_t n) HWY_ATTR {
    sink.Quad(hn::BitCast(PanelWords(), grid_rows::LookUp16(values, fields)), 8 * group + n);
  });
}
#endif  // LOWBIT_GRID_ROWS

template <class Layout>
struct Codec {
  static constexpr size_t kBlock = 256, kBlockBytes = Layout::kBlockBytes, kGroup = kIq3Group;
  static constexpr bool kSigned = true, kHasMinima = false;
  static constexpr int kBias = 0, kTop = 127;

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    Layout::UnpackRows(rows, sink);
  }
#endif  // LOWBIT_GRID_ROWS

  static HWY_INLINE uint64_t TwoPoints(const uint8_t* block, size_t j, size_t k) {
    return Layout::Value(block, j, k) | static_cast<uint64_t>(Layout::Value(block, j, k + 1)) << 32;
  }

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<uint8_t, 32> d;
    const hn::RebindToSigned<decltype(d)> di8;
    const hn::Repartition<uint32_t, decltype(d)> du32;
    const hn::Repartition<uint64_t, decltype(d)> du64;
    const hn::FixedTag<uint64_t, 2> du128;
    alignas(32) static constexpr uint8_t kEighth[32] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                                        2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
    const auto sign_mask = hn::BitCast(d, hn::Set(du64, 0x8040201008040201u));
    HWY_ALIGN uint32_t signs[kIq3Groups];
    Layout::UnpackScales(block, u.scale);
    Layout::UnpackSigns(block, signs);
    for (size_t j = 0; j < kIq3Groups; ++j) {
      const auto sign_bytes = hn::BitCast(d, hn::Set(du32, signs[j]));
      for (size_t i = 0; i < kIq3Group; i += hn::Lanes(d)) {
        const size_t k = i / kIq3Dims;
        auto values =
            hn::ResizeBitCast(d, hn::Dup128VecFromValues(du128, TwoPoints(block, j, k), TwoPoints(block, j, k + 2)));
        if constexpr (HWY_MAX_LANES_D(decltype(d)) == 32) {
          const auto high = hn::Dup128VecFromValues(du128, TwoPoints(block, j, k + 4), TwoPoints(block, j, k + 6));
          values = hn::ConcatLowerLower(d, hn::ResizeBitCast(d, high), values);
        }
        const auto sign = hn::And(hn::TableLookupBytes(sign_bytes, hn::Load(d, kEighth + i)), sign_mask);
        const auto minus = hn::BitCast(d, hn::Neg(hn::BitCast(di8, values)));
        hn::Store(hn::IfThenElse(hn::Eq(sign, sign_mask), minus, values), d, u.code + j * kIq3Group + i);
      }
    }
  }
};

}  // namespace iq3
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ3_DECODE_INL_H_
