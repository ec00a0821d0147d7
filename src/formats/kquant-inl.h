// Code that the super-block formats Q2_K to Q6_K share: batches of super-blocks for the searches of search-inl.h, the
// second rounding of codes, packing of two-bit codes.
//
// An encoding batch has as many super-blocks of 256 weights as a vector has lanes. It is transposed: lane =
// super-block. Group j of every super-block is fitted at once, then the scales of all super-blocks, then the codes.
// Lanes after the last super-block repeat it. A format provides an encoder:
//
//   struct Encoder {
//     static constexpr size_t kBlockBytes;
//     // Fits x[i * N + lane]; columns is null, or has each lane's importances. Writes the codes to words (layout of
//     // search-inl.h), and everything except the codes to the first num blocks at out.
//     static void Fit(SearchTag df, const float* x, const float* const* columns, size_t num, uint32_t* words,
//                     uint8_t* out);
//     static void Pack(const uint8_t* codes, uint8_t* block);  // the 256 codes of a block
//     static void Reference(const float* x, const float* importance, uint8_t* block);  // one super-block
//   };
#if defined(LOWBIT_FORMATS_KQUANT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_FORMATS_KQUANT_INL_H_
#undef LOWBIT_FORMATS_KQUANT_INL_H_
#else
#define LOWBIT_FORMATS_KQUANT_INL_H_
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hwy/highway.h"
#include "src/formats/block-inl.h"
#include "src/formats/search/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

constexpr size_t kSuper = 256;

// Lane j of vector i becomes lane i of vector j.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void TransposeTile(D d, V (&v)[4]) {
  const V ac = hn::InterleaveLower(d, v[0], v[2]), be = hn::InterleaveLower(d, v[1], v[3]);
  const V ac2 = hn::InterleaveUpper(d, v[0], v[2]), be2 = hn::InterleaveUpper(d, v[1], v[3]);
  v[0] = hn::InterleaveLower(d, ac, be);
  v[1] = hn::InterleaveUpper(d, ac, be);
  v[2] = hn::InterleaveLower(d, ac2, be2);
  v[3] = hn::InterleaveUpper(d, ac2, be2);
}

// Transposes num weights (a multiple of 4) of each of the Lanes(SearchTag) rows to out[i * N + row].
HWY_INLINE void Transpose(const float* const* rows, size_t first, size_t num, float* HWY_RESTRICT out) {
  const hn::FixedTag<float, 4> d;
  const size_t N = hn::Lanes(SearchTag());
  for (size_t r = 0; r < N; r += 4) {
    for (size_t i = 0; i < num; i += 4) {
      hn::Vec<decltype(d)> tile[4];
      for (size_t j = 0; j < 4; ++j) tile[j] = hn::LoadU(d, rows[r + j] + first + i);
      TransposeTile(d, tile);
      for (size_t j = 0; j < 4; ++j) hn::StoreU(tile[j], d, out + (i + j) * N + r);
    }
  }
}

// The inverse for codes: num words (a multiple of 4) of each lane, in order.
HWY_INLINE void TransposeBack(const uint32_t* HWY_RESTRICT words, size_t num, uint32_t* HWY_RESTRICT out) {
  const hn::FixedTag<uint32_t, 4> d;
  const size_t N = hn::Lanes(SearchTag());
  for (size_t lane = 0; lane < N; lane += 4) {
    for (size_t i = 0; i < num; i += 4) {
      hn::Vec<decltype(d)> tile[4];
      for (size_t j = 0; j < 4; ++j) tile[j] = hn::LoadU(d, words + (i + j) * N + lane);
      TransposeTile(d, tile);
      for (size_t j = 0; j < 4; ++j) hn::StoreU(tile[j], d, out + (lane + j) * num + i);
    }
  }
}

template <size_t kNum>
HWY_INLINE bool AllFinite(const float* x) {
  const SearchTag df;
  auto finite = hn::Eq(hn::Zero(df), hn::Zero(df));
  for (size_t i = 0; i < kNum; i += hn::Lanes(df)) finite = hn::And(finite, hn::IsFinite(hn::LoadU(df, x + i)));
  return hn::AllTrue(df, finite);
}

// Pointers to the weights and importances of as many super-blocks as there are lanes. Lanes after the last super-block
// repeat it.
template <size_t kBlock>
struct Batch {
  size_t num;
  const float* rows[kMaxGroups];
  const float* columns[kMaxGroups];
  const float* const* importances;  // columns, or null without importances

  Batch(const float* weights, const float* importance, size_t first, size_t total, size_t per_row)
      : num(HWY_MIN(hn::Lanes(SearchTag()), total - first)), importances(importance ? columns : nullptr) {
    for (size_t lane = 0; lane < hn::Lanes(SearchTag()); ++lane) {
      const size_t block = first + HWY_MIN(lane, num - 1);
      rows[lane] = weights + block * kBlock;
      columns[lane] = importance ? importance + block % per_row * kBlock : nullptr;
    }
  }
};

// Format::encode. The searches expect finite weights; super-blocks with NaN or infinity go to Encoder::Reference.
// kBlock: some formats have smaller blocks instead of super-blocks.
template <class Encoder, size_t kBlock = kSuper>
void EncodeSuperBlocks(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
  const SearchTag df;
  const size_t N = hn::Lanes(df);
  const size_t per_row = K / kBlock, total = num_rows * per_row;
  HWY_ALIGN float x[kBlock * kMaxGroups];
  HWY_ALIGN uint32_t words[kBlock / 4 * kMaxGroups], codes[kBlock / 4 * kMaxGroups];
  for (size_t first = 0; first < total; first += N, out += N * Encoder::kBlockBytes) {
    const Batch<kBlock> batch(weights, importance, first, total, per_row);
    Transpose(batch.rows, 0, kBlock, x);
    Encoder::Fit(df, x, batch.importances, batch.num, words, out);
    TransposeBack(words, kBlock / 4, codes);
    for (size_t lane = 0; lane < batch.num; ++lane) {
      uint8_t* block = out + lane * Encoder::kBlockBytes;
      Encoder::Pack(reinterpret_cast<const uint8_t*>(codes + lane * kBlock / 4), block);
      if (HWY_UNLIKELY(!AllFinite<kBlock>(batch.rows[lane]))) {
        Encoder::Reference(batch.rows[lane], batch.columns[lane], block);
      }
    }
  }
}

// A float16 number, broadcast to every lane.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V BroadcastHalf(DF df, const uint8_t* from) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  const hn::Rebind<uint16_t, DF> du16;
  uint16_t bits;
  memcpy(&bits, from, 2);
  return PromoteHalves(df, hn::BitCast(dh, hn::Set(du16, bits)));
}

// Sum of squares of the weights [0, kNum), in order.
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE V SumOfSquares(DF df, const float* x) {
  V sum = hn::Zero(df);
  for (size_t i = 0; i < kNum * hn::Lanes(df); i += hn::Lanes(df)) {
    const V xi = hn::Load(df, x + i);
    sum = hn::Add(sum, hn::Mul(xi, xi));
  }
  return sum;
}

template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE V SumInOrder(DF df, const float* x) {
  V sum = hn::Zero(df);
  for (size_t i = 0; i < kNum * hn::Lanes(df); i += hn::Lanes(df)) sum = hn::Add(sum, hn::Load(df, x + i));
  return sum;
}

// w = importance * sqrt(variance + x^2) for kNum weights of the group that starts at column `first`.
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE void WeighByImportance(DF df, const float* HWY_RESTRICT x, const float* const* columns, size_t first,
                                  V variance, float* HWY_RESTRICT w) {
  Transpose(columns, first, kNum, w);
  for (size_t i = 0; i < kNum * hn::Lanes(df); i += hn::Lanes(df)) {
    const V xi = hn::Load(df, x + i);
    hn::Store(hn::Mul(hn::Load(df, w + i), hn::Sqrt(hn::Add(variance, hn::Mul(xi, xi)))), df, w + i);
  }
}

// The final codes of a group: nearest((x + offset) / scale), with scale and offset as stored. If the scale is 0, the
// codes of the search stay.
template <size_t kNum, class DF, class V = hn::Vec<DF>>
HWY_INLINE void RoundAgain(DF df, const float* HWY_RESTRICT x, V scale, V offset, int low, int high,
                           uint32_t* HWY_RESTRICT words) {
  const hn::RebindToSigned<DF> di;
  const hn::RebindToUnsigned<DF> du;
  const size_t N = hn::Lanes(df);
  const auto bias = hn::Set(di, low);
  const auto keep = hn::RebindMask(du, hn::Eq(scale, hn::Zero(df)));
  const bool any_kept = !hn::AllFalse(du, keep);
  for (size_t i = 0; i < kNum; i += 4) {
    const float* from = x + i * N;
    const auto c0 = NearestCode(df, hn::Div(hn::Add(hn::Load(df, from), offset), scale), low, high);
    const auto c1 = NearestCode(df, hn::Div(hn::Add(hn::Load(df, from + N), offset), scale), low, high);
    const auto c2 = NearestCode(df, hn::Div(hn::Add(hn::Load(df, from + 2 * N), offset), scale), low, high);
    const auto c3 = NearestCode(df, hn::Div(hn::Add(hn::Load(df, from + 3 * N), offset), scale), low, high);
    uint32_t* word = words + i / 4 * N;
    const auto old = hn::Load(du, word);
    StoreCodes(di, hn::Sub(c0, bias), hn::Sub(c1, bias), hn::Sub(c2, bias), hn::Sub(c3, bias), word);
    if (any_kept) hn::Store(hn::IfThenElse(keep, old, hn::Load(du, word)), du, word);
  }
}

// Stores one float16 number in each of the first num blocks, the first at `at`. Returns the stored values.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V StoreHalves(DF df, V v, size_t num, size_t block_bytes, uint8_t* at) {
  HWY_ALIGN float values[kMaxGroups];
  hn::Store(v, df, values);
  for (size_t lane = 0; lane < num; ++lane) {
    StoreHalf(values[lane], at + lane * block_bytes);
    values[lane] = LoadHalf(at + lane * block_bytes);
  }
  return hn::Load(df, values);
}

// Packs the lowest two bits of 256 codes in 64 bytes: code 128 * h + 32 * p + k in bits 2p and 2p + 1 of byte 32 * h +
// k.
HWY_INLINE void PackTwoBits(const uint8_t* codes, uint8_t* out) {
  const hn::CappedTag<uint8_t, 32> d;
  const auto mask = hn::Set(d, 3);
  for (size_t h = 0; h < 2; ++h) {
    for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
      auto packed = hn::Zero(d);
      for (size_t p = 4; p-- > 0;) {
        const auto code = hn::And(hn::LoadU(d, codes + 128 * h + 32 * p + k), mask);
        packed = hn::Or(hn::ShiftLeft<2>(packed), code);
      }
      hn::StoreU(packed, d, out + 32 * h + k);
    }
  }
}

// The inverse.
HWY_INLINE void UnpackTwoBits(const uint8_t* packed, uint8_t* codes) {
  const hn::CappedTag<uint8_t, 32> d;
  const auto mask = hn::Set(d, 3);
  for (size_t h = 0; h < 2; ++h) {
    for (size_t k = 0; k < 32; k += hn::Lanes(d)) {
      const auto four = hn::LoadU(d, packed + 32 * h + k);
      uint8_t* to = codes + 128 * h + k;
      hn::Store(hn::And(four, mask), d, to);
      hn::Store(hn::And(hn::ShiftRight<2>(four), mask), d, to + 32);
      hn::Store(hn::And(hn::ShiftRight<4>(four), mask), d, to + 64);
      hn::Store(hn::ShiftRight<6>(four), d, to + 96);
    }
  }
}

// The functions of a format with an Encoder as above and a codec as for BlockFormat.
template <class Encoder, class Codec>
struct SuperBlockFormat : BlockFormat<Codec> {
  static void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) {
    EncodeSuperBlocks<Encoder>(weights, importance, num_rows, K, out);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_FORMATS_KQUANT_INL_H_
