// Decoding of IQ1_S and IQ1_M: the code that both share. A format provides a layout:
//
//   struct Layout {
//     static constexpr size_t kBlockBytes, kGroupSize;
//     static void Scales(const uint8_t* block, float* scale);  // d * (2 * scale + 1) for each group
//     // The points of the weights from 32 * g on, for k in [0, 4): grid index, plus 2048 if the shift is -1/8.
//     static void Points(const uint8_t* block, size_t g, uint32_t* points);
//   };
//
// All values are in eighths: a coordinate plus its shift is an integer from -9 to 9. Dividing a scale by 8 is exact, so
// products round as in the reference.
#if defined(LOWBIT_FORMATS_IQ1_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_IQ1_DECODE_INL_H_
#undef LOWBIT_FORMATS_IQ1_DECODE_INL_H_
#else
#define LOWBIT_FORMATS_IQ1_DECODE_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/iq/grid_rows-inl.h"
#include "src/formats/iq/iq1.h"
#include "src/formats/kquant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace iq1 {

constexpr float kEighth = 0.125f;
constexpr int kCentre = 9;  // Unpack's code minus kCentre is a coordinate plus its shift, in eighths

// Format::decode. Eight weights are one table entry, which is widened, converted, shifted and scaled.
template <class Layout>
HWY_INLINE void DecodePoints(const uint8_t* HWY_RESTRICT blocks, size_t num_blocks, float* HWY_RESTRICT out) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<uint8_t, decltype(df)> du8;
  // Looked up: a branch per point would often be mispredicted.
  constexpr float kShifts[2] = {2.0f - kCentre, 0.0f - kCentre};
  for (size_t b = 0; b < num_blocks; ++b, blocks += Layout::kBlockBytes, out += kSuper) {
    float scales[kSuper / Layout::kGroupSize];
    Layout::Scales(blocks, scales);
    for (size_t i = 0; i < kSuper; i += 32) {
      uint32_t points[4];
      Layout::Points(blocks, i / 32, points);
      for (size_t k = 0; k < 4; ++k) {
        const auto scale = hn::Set(df, scales[(i + 8 * k) / Layout::kGroupSize] * kEighth);
        const auto shift = hn::Set(df, kShifts[points[k] / kIq1GridSize]);
        const auto* row = reinterpret_cast<const uint8_t*>(&kIq1Rows[points[k] % kIq1GridSize]);
        for (size_t n = 0; n < 8; n += hn::Lanes(df)) {
          const auto level = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(du8, row + n)));
          hn::StoreU(hn::Mul(scale, hn::Add(level, shift)), df, out + i + 8 * k + n);
        }
      }
    }
  }
}

#if LOWBIT_GRID_ROWS
// Two groups of 32 weights of each row: four points each. Bits 0-2 of each byte of high_bytes are bits 8-10 of a
// point's index; the shift is -1/8 where `down` is true.
template <class Sink>
HWY_INLINE void UnpackGroups(const WordsV* words, const hn::Vec<PanelBytes> (&high_bytes)[2],
                             const hn::Mask<PanelBytes> (&down)[2], size_t group, Sink& sink) {
  const PanelBytes d;
  hn::Vec<PanelBytes> points[2];
  grid_rows::HighBits<kIq1GridSize> high;
  WordsV up[2];
  for (size_t i = 0; i < 2; ++i) {
    points[i] = hn::BitCast(d, words[i]);
    high[i][0] = hn::TestBit(high_bytes[i], hn::Set(d, 1));
    high[i][1] = hn::TestBit(high_bytes[i], hn::Set(d, 2));
    high[i][2] = hn::TestBit(high_bytes[i], hn::Set(d, 4));
    up[i] = hn::BitCast(PanelWords(), hn::IfThenZeroElse(down[i], hn::Set(d, 2)));
  }
  grid_rows::UnpackEights(kIq1Bytes, points, high, [&](auto levels, size_t n) HWY_ATTR {
    const auto eighths = grid_rows::LookUp8(0x0010080000100800, levels);
    sink.Quad(hn::BitCast(PanelWords(), hn::Add(eighths, RepeatByte(up[n / 8], n % 8 / 2))), 8 * group + n);
  });
}
#endif  // LOWBIT_GRID_ROWS

// Codes are eight times the level, plus 2 if the shift is 1/8.
template <class Layout>
struct Codec {
  static constexpr size_t kBlock = kSuper, kBlockBytes = Layout::kBlockBytes, kGroup = Layout::kGroupSize;
  static constexpr bool kSigned = false, kHasMinima = false;
  static constexpr int kBias = kCentre, kTop = 2 * kCentre;

#if LOWBIT_GRID_ROWS
  template <class Sink>
  static HWY_INLINE void UnpackRows(PackedRows& rows, size_t /*num_blocks*/, Sink& sink) {
    Layout::UnpackRows(rows, sink);
  }
#endif  // LOWBIT_GRID_ROWS

  static HWY_INLINE void Unpack(const uint8_t* block, size_t /*num_blocks*/, Unpacked& u) {
    const hn::CappedTag<float, 8> df;
    const hn::CappedTag<uint64_t, 2> du64;
    constexpr size_t kGroups = kSuper / kGroup;
    constexpr uint64_t kUp = 0x0202020202020202;
    Layout::Scales(block, u.scale);
    for (size_t j = 0; j < kGroups; j += hn::Lanes(df)) {
      hn::Store(hn::Mul(hn::Load(df, u.scale + j), hn::Set(df, kEighth)), df, u.scale + j);
    }
    auto* code = reinterpret_cast<uint64_t*>(u.code);
    for (size_t i = 0; i < kSuper / 8; i += 4) {
      uint32_t points[4];
      Layout::Points(block, i / 4, points);
      for (size_t k = 0; k < 4; k += 2) {
        // Pairs are joined in registers, for the wider loads that follow.
        const auto row = [&](uint32_t point)
                             HWY_ATTR { return kIq1Rows[point % kIq1GridSize] + (point >= kIq1GridSize ? 0 : kUp); };
        hn::Store(hn::Dup128VecFromValues(du64, row(points[k]), row(points[k + 1])), du64, code + i + k);
      }
    }
  }
};

}  // namespace iq1
}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_IQ1_DECODE_INL_H_
