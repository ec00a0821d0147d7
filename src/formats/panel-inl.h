// Unpacking rows to panels (panel.h). The words of a file's layout are transposed, so that a lane has a row, and unpacked
// there. A format's codec (format-inl.h) can provide
//
//   static void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel);
//
// for up to 256 weights of each row. Otherwise its Unpack is called row by row, and the codes are transposed.
#if defined(LOWBIT_FORMATS_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_PANEL_INL_H_
#undef LOWBIT_FORMATS_PANEL_INL_H_
#else
#define LOWBIT_FORMATS_PANEL_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/highway.h"
#include "src/formats/format-inl.h"
#include "src/formats/panel.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using PanelWords = hn::CappedTag<uint32_t, Panel::kMaxRows>;
using PanelBytes = hn::Repartition<uint8_t, PanelWords>;
using PanelFloats = hn::RebindToFloat<PanelWords>;
using PanelInts = hn::RebindToSigned<PanelWords>;
using WordsV = hn::Vec<PanelWords>;
using FloatsV = hn::Vec<PanelFloats>;

HWY_INLINE size_t LanesOfPanel() { return hn::Lanes(PanelWords()); }

// Whether products of bytes take unsigned codes: VNNI does.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
constexpr bool kUnsignedCodes = true;
#else
constexpr bool kUnsignedCodes = false;
#endif

// Bytes [at, at + 16) of each row: word i of all rows in words[i].
HWY_INLINE void LoadWords(PackedRows rows, size_t at, WordsV (&words)[4]) {
  const PanelWords d;
  const hn::BlockDFromD<PanelWords> block;
  // Block b of vector i is row 4 * b + i.
  WordsV pieces[4];
  const uint8_t* from = rows.data + at;
  const auto load = [&](size_t row) HWY_ATTR {
    return hn::BitCast(block, hn::LoadU(hn::FixedTag<uint8_t, 16>(), from + row * rows.stride));
  };
  for (size_t i = 0; i < 4; ++i) {
    pieces[i] = hn::ResizeBitCast(d, load(i));
#if HWY_MAX_BYTES >= 32
    if constexpr (HWY_MAX_LANES_D(PanelWords) >= 8) pieces[i] = hn::InsertBlock<1>(pieces[i], load(4 + i));
#endif
#if HWY_MAX_BYTES >= 64
    if constexpr (HWY_MAX_LANES_D(PanelWords) >= 16) {
      pieces[i] = hn::InsertBlock<2>(pieces[i], load(8 + i));
      pieces[i] = hn::InsertBlock<3>(pieces[i], load(12 + i));
    }
#endif
  }
  const hn::Repartition<uint64_t, PanelWords> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, pieces[0], pieces[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, pieces[2], pieces[3]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, pieces[0], pieces[1]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, pieces[2], pieces[3]));
  words[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  words[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  words[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  words[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}

// The float16 in bits 0-15 of each word.
HWY_INLINE FloatsV LowHalves(WordsV words) {
  const hn::Rebind<uint16_t, PanelWords> d16;
  const hn::Rebind<hwy::float16_t, PanelWords> dh;
  return PromoteHalves(PanelFloats(), hn::BitCast(dh, hn::TruncateTo(d16, words)));
}

// The float16 at byte `at` of each row.
HWY_INLINE FloatsV LoadPanelHalves(PackedRows rows, size_t at) {
  HWY_ALIGN uint32_t halves[Panel::kMaxRows];
  const uint8_t* from = rows.data + at;
  for (size_t r = 0; r < LanesOfPanel(); ++r) {
    uint16_t half;
    hwy::CopyBytes<2>(from + r * rows.stride, &half);
    halves[r] = half;
  }
  return LowHalves(hn::Load(PanelWords(), halves));
}

// Stores four codes of each row: those of the weights 4 * quad to 4 * quad + 3.
HWY_INLINE void StoreQuad(WordsV codes, size_t quad, Panel& panel) {
  hn::Store(hn::BitCast(PanelBytes(), codes), PanelBytes(), panel.codes + quad * 4 * LanesOfPanel());
}

HWY_INLINE void StoreGroup(FloatsV values, size_t group, float* to) {
  hn::Store(values, PanelFloats(), to + group * LanesOfPanel());
}

// The same for codes of PanelKind::kSigned.
HWY_INLINE void StoreLevels(WordsV levels, size_t quad, Panel& panel) {
  if constexpr (kUnsignedCodes) levels = hn::Xor(levels, hn::Set(PanelWords(), 0x80808080));
  StoreQuad(levels, quad, panel);
}

// The four bytes of each word are factors of the groups from `group` on: to[group + j] = factor * (byte j + kAdd).
template <int kAdd = 0>
HWY_INLINE void StoreByteGroups(FloatsV factor, WordsV bytes, size_t group, float* to) {
  const PanelInts di32;
  const auto store = [&](WordsV code, size_t j) HWY_ATTR {
    auto number = hn::BitCast(di32, code);
    if constexpr (kAdd != 0) number = hn::Add(number, hn::Set(di32, kAdd));
    StoreGroup(hn::Mul(factor, hn::ConvertTo(PanelFloats(), number)), group + j, to);
  };
  const auto low = hn::Set(PanelWords(), 0xFF);
  store(hn::And(bytes, low), 0);
  store(hn::And(hn::ShiftRight<8>(bytes), low), 1);
  store(hn::And(hn::ShiftRight<16>(bytes), low), 2);
  store(hn::ShiftRight<24>(bytes), 3);
}

// 64 bytes of each row from `at` on with the two-bit codes of PackTwoBits (kquant-inl.h). finish(codes, quad) stores them.
template <class Finish>
HWY_INLINE void UnpackTwoBitPanel(PackedRows rows, size_t at, Finish finish) {
  const auto two = hn::Set(PanelWords(), 0x03030303);
  for (size_t h = 0; h < 2; ++h) {
    for (size_t k = 0; k < 2; ++k) {
      WordsV words[4];
      LoadWords(rows, at + 32 * h + 16 * k, words);
      for (size_t i = 0; i < 4; ++i) {
        const size_t quad = 32 * h + 4 * k + i;
        finish(hn::And(words[i], two), quad);
        finish(hn::And(hn::ShiftRight<2>(words[i]), two), quad + 8);
        finish(hn::And(hn::ShiftRight<4>(words[i]), two), quad + 16);
        finish(hn::And(hn::ShiftRight<6>(words[i]), two), quad + 24);
      }
    }
  }
}

// 16 bytes of each row from `at` on with the 32 four-bit codes of a group: 0 to 15 in the low bits, then the others.
// finish(codes, quad) stores them.
template <class Finish>
HWY_INLINE void UnpackNibblePanel(PackedRows rows, size_t at, size_t group, Finish finish) {
  const auto four = hn::Set(PanelWords(), 0x0F0F0F0F);
  WordsV words[4];
  LoadWords(rows, at, words);
  for (size_t i = 0; i < 4; ++i) {
    finish(hn::And(words[i], four), 8 * group + i);
    finish(hn::And(hn::ShiftRight<4>(words[i]), four), 8 * group + 4 + i);
  }
}

// The same for codes that stand for one of 16 levels, signed bytes.
HWY_INLINE void UnpackLevelPanel(PackedRows rows, size_t at, size_t group, const int8_t* levels, Panel& panel) {
  const auto table = hn::LoadDup128(PanelBytes(), reinterpret_cast<const uint8_t*>(levels));
  UnpackNibblePanel(rows, at, group, [&](WordsV codes, size_t quad) HWY_ATTR {
    const auto values = hn::TableLookupBytes(table, hn::BitCast(PanelBytes(), codes));
    StoreLevels(hn::BitCast(PanelWords(), values), quad, panel);
  });
}

template <class Codec>
constexpr PanelKind PanelKindOf() {
  constexpr uint32_t kGroup = Codec::kGroup < 32 ? 16 : 32;
  if (Codec::kSigned) return {PanelKind::kSigned, 128, Codec::kHasMinima, kGroup};
  return {Codec::kTop, Codec::kBias, Codec::kHasMinima, kGroup};
}

// Any codec: rows are unpacked one by one, and the results transposed.
template <class Codec>
HWY_INLINE void TransposeUnpacked(PackedRows rows, size_t num_blocks, Panel& panel) {
  constexpr size_t kGroup = Codec::kGroup < 32 ? 16 : 32;
  Unpacked unpacked[Panel::kMaxRows];
  for (size_t r = 0; r < LanesOfPanel(); ++r) {
    Codec::Unpack(rows.data + r * rows.stride, num_blocks, unpacked[r]);
  }
  const size_t num_k = num_blocks * Codec::kBlock;
  WordsV words[4];
  const PackedRows codes = {unpacked[0].code, sizeof(Unpacked)};
  for (size_t k = 0; k < num_k; k += 16) {
    LoadWords(codes, k, words);
    for (size_t i = 0; i < 4; ++i) {
      if constexpr (Codec::kSigned) {
        StoreLevels(words[i], k / 4 + i, panel);
      } else {
        StoreQuad(words[i], k / 4 + i, panel);
      }
    }
  }
  const auto groups = [&](const float* from, float* to) HWY_ATTR {
    for (size_t g = 0; g < num_k / kGroup; g += 4) {
      LoadWords({reinterpret_cast<const uint8_t*>(from), sizeof(Unpacked)}, g * sizeof(float), words);
      for (size_t i = 0; i < 4; ++i) StoreGroup(hn::BitCast(PanelFloats(), words[i]), g + i, to);
    }
  };
  groups(unpacked[0].scale, panel.scales);
  if constexpr (Codec::kHasMinima) groups(unpacked[0].minimum, panel.minima);
}

template <class Codec, class = void>
struct PanelUnpacker {
  static HWY_INLINE void Call(PackedRows rows, size_t num_blocks, Panel& panel) {
    TransposeUnpacked<Codec>(rows, num_blocks, panel);
  }
};

template <class Codec>
struct PanelUnpacker<Codec, decltype(&Codec::ToPanel, void())> {
  static HWY_INLINE void Call(PackedRows rows, size_t num_blocks, Panel& panel) {
    Codec::ToPanel(rows, num_blocks, panel);
  }
};

// Format::unpack_panel for a codec.
template <class Codec>
void UnpackPanel(PackedRows rows, size_t num_blocks, Panel& panel) {
  PanelUnpacker<Codec>::Call(rows, num_blocks, panel);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_PANEL_INL_H_
