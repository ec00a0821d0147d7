// Unpacking rows side by side (panel.h). The words of a file's layout are transposed, so that a lane has a row, and
// unpacked there. A format's codec (format-inl.h) can provide
//
//   template <class Sink>
//   static void UnpackRows(PackedRows& rows, size_t num_blocks, Sink& sink);
//
// for up to 256 weights of each row. It should read them from the first byte on: the CPU's own prefetchers follow, and Q6_K
// in memory takes three quarters of the time of another order. Otherwise its Unpack is called row by row, and the codes are
// transposed. A sink is
//
//   struct Sink {
//     void Quad(WordsV codes, size_t quad);       // four codes of each row, of the weights from 4 * quad on
//     void Levels(WordsV levels, size_t quad);    // the same for codes of PanelKind::kSigned
//     void Scale(FloatsV scale, size_t group);    // of each row, for the weights from PanelKind::group * group on
//     void Minimum(FloatsV minimum, size_t group);
//   };
#if defined(LOWBIT_FORMATS_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_PANEL_INL_H_
#undef LOWBIT_FORMATS_PANEL_INL_H_
#else
#define LOWBIT_FORMATS_PANEL_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "src/formats/format-inl.h"
#include "src/formats/panel.h"

// Sanitizers take minutes for unrolled code.
#if defined(LOWBIT_SANITIZED)
#undef HWY_UNROLL
#define HWY_UNROLL(factor)
#endif

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

using PanelWords = hn::CappedTag<uint32_t, Panel::kMaxRows>;
using PanelBytes = hn::Repartition<uint8_t, PanelWords>;
using PanelLevels = hn::RebindToSigned<PanelBytes>;
using PanelFloats = hn::RebindToFloat<PanelWords>;
using PanelInts = hn::RebindToSigned<PanelWords>;
using WordsV = hn::Vec<PanelWords>;
using FloatsV = hn::Vec<PanelFloats>;
using IntsV = hn::Vec<PanelInts>;

HWY_INLINE size_t LanesOfPanel() { return hn::Lanes(PanelWords()); }

// Whether products of bytes take unsigned codes: VNNI does.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
constexpr bool kUnsignedCodes = true;
#else
constexpr bool kUnsignedCodes = false;
#endif

// -------------------------------------------------------------------------------------------------------------------
// Reading

// Blocks of 16 bytes, `stride` apart. On Zen 4, joining halves takes three quarters of the time of inserting blocks into
// 64 bytes, because instructions of 32 bytes are half as long.
template <class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const uint8_t* from, size_t stride) {
  if constexpr (HWY_MAX_LANES_D(D) > 4) {
    const hn::Half<D> half;
    constexpr size_t kBlocks = HWY_MAX_LANES_D(D) / 8;
    return hn::Combine(d, LoadBlocks(half, from + kBlocks * stride, stride), LoadBlocks(half, from, stride));
  } else {
    return hn::BitCast(d, hn::LoadU(hn::Repartition<uint8_t, D>(), from));
  }
}

// Word i, from byte at + 4 * i on, of all rows in words[i].
HWY_INLINE void TransposeWords(const uint8_t* from, size_t stride, WordsV (&words)[4]) {
  const PanelWords d;
  // Block b of vector i is row 4 * b + i.
  WordsV rows[4];
  for (size_t i = 0; i < 4; ++i) rows[i] = LoadBlocks(d, from + i * stride, 4 * stride);
  const hn::Repartition<uint64_t, PanelWords> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, rows[0], rows[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, rows[2], rows[3]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, rows[0], rows[1]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, rows[2], rows[3]));
  words[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  words[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  words[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  words[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}

// There are more buffers for lines on their way to the L2 cache than to the L1 cache (Zen 4 has 24 of those, which is
// half of what memory delivers).
HWY_INLINE void PrefetchToL2(const uint8_t* p) {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  __builtin_prefetch(p, /*rw=*/0, /*locality=*/2);
#else
  hwy::Prefetch(p);
#endif
}

// Keeps the compiler from collecting prefetches in one place.
HWY_INLINE void KeepOrder() {
#if HWY_COMPILER_GCC || HWY_COMPILER_CLANG
  asm volatile("");
#endif
}

HWY_INLINE void PrefetchAhead(PackedRows& rows, size_t num_bytes) {
  KeepOrder();
  for (size_t i = 0; i < num_bytes; i += 64) PrefetchToL2(rows.ahead + i);
  rows.ahead += num_bytes;
  KeepOrder();
}

// The 16 bytes of each row from `at` on. Prefetching in small portions, spread over the work, halves the time: a burst
// fills the buffers of outstanding misses, and the loads of the current rows wait.
HWY_INLINE void LoadWords(PackedRows& rows, size_t at, WordsV (&words)[4]) {
  PrefetchAhead(rows, 16 * LanesOfPanel());
  TransposeWords(rows.data + at, rows.stride, words);
}

// The float16 in bits 0-15 of each word.
HWY_INLINE FloatsV LowHalves(WordsV words) {
  const hn::Rebind<uint16_t, PanelWords> d16;
  const hn::Rebind<hwy::float16_t, PanelWords> dh;
  return PromoteHalves(PanelFloats(), hn::BitCast(dh, hn::TruncateTo(d16, words)));
}

using PanelPairs = hn::Rebind<uint16_t, PanelWords>;

// The two bytes of each row from `at` on. They are joined in general registers: a vector load after narrower stores
// would wait until all of them reach the cache.
HWY_INLINE hn::Vec<PanelPairs> LoadPairs(PackedRows& rows, size_t at) {
  const PanelPairs d;
  PrefetchAhead(rows, 2 * LanesOfPanel());
  uint64_t joined[Panel::kMaxRows / 4] = {};
  HWY_UNROLL(16)
  for (size_t r = 0; r < HWY_MAX_LANES_D(PanelPairs); ++r) {
    uint16_t pair;
    hwy::CopyBytes<2>(rows.data + at + r * rows.stride, &pair);
    joined[r / 4] |= uint64_t{pair} << (16 * (r % 4));
  }
  // Lanes are set one by one: from a list of values, compilers make vectors earlier, and shift there.
  const hn::FixedTag<uint64_t, 2> two;
  auto first = hn::Set(two, joined[0]);
  if constexpr (HWY_MAX_LANES_D(PanelPairs) > 4) first = hn::InsertLane(first, 1, joined[1]);
  auto pairs = hn::ResizeBitCast(d, first);
  if constexpr (HWY_MAX_LANES_D(PanelPairs) == 16) {
    const auto second = hn::InsertLane(hn::Set(two, joined[2]), 1, joined[3]);
    pairs = hn::InsertBlock<1>(pairs, hn::ResizeBitCast(hn::BlockDFromD<PanelPairs>(), second));
  }
  return pairs;
}

// The float16 at byte `at` of each row.
HWY_INLINE FloatsV LoadHalfOfRows(PackedRows& rows, size_t at) {
  const hn::Rebind<hwy::float16_t, PanelWords> dh;
  return PromoteHalves(PanelFloats(), hn::BitCast(dh, LoadPairs(rows, at)));
}

// -------------------------------------------------------------------------------------------------------------------
// Parts of codecs

// Byte j of each of four words, four times.
HWY_ALIGN constexpr uint8_t kRepeatByte[4][16] = {{0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12},
                                                  {1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13, 13},
                                                  {2, 2, 2, 2, 6, 6, 6, 6, 10, 10, 10, 10, 14, 14, 14, 14},
                                                  {3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15, 15, 15, 15}};

HWY_INLINE hn::Vec<PanelBytes> RepeatByte(WordsV words, size_t j) {
  return hn::TableLookupBytes(hn::BitCast(PanelBytes(), words), hn::LoadDup128(PanelBytes(), kRepeatByte[j]));
}

// For byte i of each word: whether bit 4 * n + i of the word is set.
HWY_INLINE hn::Mask<PanelBytes> QuadBits(WordsV words, size_t n) {
  const auto bits = hn::Set(PanelWords(), n % 2 ? 0x80402010 : 0x08040201);
  return hn::TestBit(RepeatByte(words, n / 2), hn::BitCast(PanelBytes(), bits));
}

// finish(factor * (byte j of each word + kAdd), j) for the four bytes.
template <int kAdd, class Finish>
HWY_INLINE void MultiplyBytes(FloatsV factor, WordsV bytes, Finish finish) {
  const auto low = hn::Set(PanelWords(), 0xFF);
  const WordsV codes[4] = {hn::And(bytes, low), hn::And(hn::ShiftRight<8>(bytes), low),
                           hn::And(hn::ShiftRight<16>(bytes), low), hn::ShiftRight<24>(bytes)};
  for (size_t j = 0; j < 4; ++j) {
    auto number = hn::BitCast(PanelInts(), codes[j]);
    if constexpr (kAdd != 0) number = hn::Add(number, hn::Set(PanelInts(), kAdd));
    finish(hn::Mul(factor, hn::ConvertTo(PanelFloats(), number)), j);
  }
}

// The scales, or minima, of four groups from `group` on.
template <int kAdd = 0, class Sink>
HWY_INLINE void StoreScales(FloatsV factor, WordsV bytes, size_t group, Sink& sink) {
  MultiplyBytes<kAdd>(factor, bytes, [&](FloatsV value, size_t j) HWY_ATTR { sink.Scale(value, group + j); });
}

// factor * (2 * code + 1), for the first `num` codes of kBits in each word.
template <size_t kBits, class Sink>
HWY_INLINE void StoreOddScales(FloatsV factor, WordsV codes, size_t num, size_t group, Sink& sink) {
  const PanelWords d;
  HWY_UNROLL(8)
  for (size_t j = 0; j < num; ++j) {
    const auto twice = hn::And(hn::Add(codes, codes), hn::Set(d, (2u << kBits) - 2));
    const auto odd = hn::BitCast(PanelInts(), hn::Or(twice, hn::Set(d, 1)));
    sink.Scale(hn::Mul(factor, hn::ConvertTo(PanelFloats(), odd)), group + j);
    codes = hn::ShiftRight<kBits>(codes);
  }
}

template <class Sink>
HWY_INLINE void StoreMinima(FloatsV factor, WordsV bytes, size_t group, Sink& sink) {
  MultiplyBytes<0>(factor, bytes, [&](FloatsV value, size_t j) HWY_ATTR { sink.Minimum(value, group + j); });
}

// 64 bytes of each row from `at` on with the two-bit codes of PackTwoBits (kquant-inl.h). finish(codes, quad) gets them.
template <class Finish>
HWY_INLINE void UnpackTwoBitRows(PackedRows& rows, size_t at, Finish finish) {
  const auto two = hn::Set(PanelWords(), 0x03030303);
  HWY_UNROLL(4)
  for (size_t k = 0; k < 4; ++k) {
    WordsV words[4];
    LoadWords(rows, at + 16 * k, words);
    HWY_UNROLL(4)
    for (size_t i = 0; i < 4; ++i) {
      const size_t quad = k / 2 * 32 + k % 2 * 4 + i;
      finish(hn::And(words[i], two), quad);
      finish(hn::And(hn::ShiftRight<2>(words[i]), two), quad + 8);
      finish(hn::And(hn::ShiftRight<4>(words[i]), two), quad + 16);
      finish(hn::And(hn::ShiftRight<6>(words[i]), two), quad + 24);
    }
  }
}

// 16 bytes of each row from `at` on with the 32 four-bit codes of a group: 0 to 15 in the low bits, then the others.
// finish(codes, quad) gets them.
template <class Finish>
HWY_INLINE void UnpackNibbleRows(PackedRows& rows, size_t at, size_t group, Finish finish) {
  const auto four = hn::Set(PanelWords(), 0x0F0F0F0F);
  WordsV words[4];
  LoadWords(rows, at, words);
  HWY_UNROLL(4)
  for (size_t i = 0; i < 4; ++i) {
    finish(hn::And(words[i], four), 8 * group + i);
    finish(hn::And(hn::ShiftRight<4>(words[i]), four), 8 * group + 4 + i);
  }
}

// The same for codes that stand for one of 16 levels, signed bytes.
template <class Sink>
HWY_INLINE void UnpackLevelRows(PackedRows& rows, size_t at, size_t group, const int8_t* levels, Sink& sink) {
  const auto table = hn::LoadDup128(PanelBytes(), reinterpret_cast<const uint8_t*>(levels));
  UnpackNibbleRows(rows, at, group, [&](WordsV codes, size_t quad) HWY_ATTR {
    const auto values = hn::TableLookupBytes(table, hn::BitCast(PanelBytes(), codes));
    sink.Levels(hn::BitCast(PanelWords(), values), quad);
  });
}

// -------------------------------------------------------------------------------------------------------------------
// Any codec

template <class Codec>
constexpr PanelKind PanelKindOf() {
  constexpr uint32_t kGroup = Codec::kGroup < 32 ? 16 : 32;
  if (Codec::kSigned) return {PanelKind::kSigned, 128, Codec::kHasMinima, kGroup};
  return {Codec::kTop, Codec::kBias, Codec::kHasMinima, kGroup};
}

// Rows are unpacked one by one, and the results transposed.
template <class Codec, class Sink>
HWY_INLINE void TransposeUnpacked(PackedRows& rows, size_t num_blocks, Sink& sink) {
  constexpr size_t kGroup = PanelKindOf<Codec>().group;
  Unpacked unpacked[Panel::kMaxRows];
  for (size_t r = 0; r < LanesOfPanel(); ++r) {
    PrefetchAhead(rows, num_blocks * Codec::kBlockBytes);
    Codec::Unpack(rows.data + r * rows.stride, num_blocks, unpacked[r]);
  }
  const size_t num_k = num_blocks * Codec::kBlock;
  WordsV words[4];
  for (size_t k = 0; k < num_k; k += 16) {
    TransposeWords(unpacked[0].code + k, sizeof(Unpacked), words);
    for (size_t i = 0; i < 4; ++i) {
      if constexpr (Codec::kSigned) {
        sink.Levels(words[i], k / 4 + i);
      } else {
        sink.Quad(words[i], k / 4 + i);
      }
    }
  }
  for (size_t g = 0; g < num_k / kGroup; g += 4) {
    TransposeWords(reinterpret_cast<const uint8_t*>(unpacked[0].scale + g), sizeof(Unpacked), words);
    for (size_t i = 0; i < 4; ++i) sink.Scale(hn::BitCast(PanelFloats(), words[i]), g + i);
    if constexpr (Codec::kHasMinima) {
      TransposeWords(reinterpret_cast<const uint8_t*>(unpacked[0].minimum + g), sizeof(Unpacked), words);
      for (size_t i = 0; i < 4; ++i) sink.Minimum(hn::BitCast(PanelFloats(), words[i]), g + i);
    }
  }
}

template <class Codec, class Sink, class = void>
struct RowUnpacker {
  static HWY_INLINE void Call(PackedRows& rows, size_t num_blocks, Sink& sink) {
    TransposeUnpacked<Codec>(rows, num_blocks, sink);
  }
};

template <class Codec, class Sink>
struct RowUnpacker<Codec, Sink, decltype(&Codec::template UnpackRows<Sink>, void())> {
  static HWY_INLINE void Call(PackedRows& rows, size_t num_blocks, Sink& sink) {
    Codec::UnpackRows(rows, num_blocks, sink);
  }
};

struct PanelSink {
  Panel& panel;

  HWY_INLINE void Quad(WordsV codes, size_t quad) {
    hn::Store(hn::BitCast(PanelBytes(), codes), PanelBytes(), panel.codes + quad * 4 * LanesOfPanel());
  }
  HWY_INLINE void Levels(WordsV levels, size_t quad) {
    Quad(kUnsignedCodes ? hn::Xor(levels, hn::Set(PanelWords(), 0x80808080)) : levels, quad);
  }
  HWY_INLINE void Scale(FloatsV scale, size_t group) {
    hn::Store(scale, PanelFloats(), panel.scales + group * LanesOfPanel());
  }
  HWY_INLINE void Minimum(FloatsV minimum, size_t group) {
    hn::Store(minimum, PanelFloats(), panel.minima + group * LanesOfPanel());
  }
};

// Format::unpack_panel for a codec.
template <class Codec>
void UnpackPanel(PackedRows rows, size_t num_blocks, Panel& panel) {
  PanelSink sink{panel};
  RowUnpacker<Codec, PanelSink>::Call(rows, num_blocks, sink);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_PANEL_INL_H_
