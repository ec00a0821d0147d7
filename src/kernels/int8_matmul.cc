#include "src/kernels/int8_matmul.h"

#include <algorithm>
#include <cstring>

#include "src/formats/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/int8_matmul.cc"
// clang-format off
#include "hwy/foreach_target.h"  // must come before the others
#include "hwy/highway.h"
#include "src/formats/few_tokens-inl.h"
#include "src/kernels/int8_tile-inl.h"
#include "src/kernels/token_tiles-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {

// Vectors of rows in a strip.
constexpr size_t kStripVectors = 2;

// Tokens whose sums a thread keeps: whole tiles, and not less than the engine's chunk.
constexpr size_t kMostTokens = 516;

size_t StripRows() { return kStripVectors * LanesOfPanel(); }

int Bias(const PanelKind& kind) {
  if (kind.top == PanelKind::kSigned) return kUnsignedCodes ? kind.bias : 0;
  return kind.bias;
}

// One piece of up to Panel::kMaxK columns of a strip, and its tokens.
struct Piece {
  const Panel* panels;
  size_t num_vectors;
  size_t num_groups;
  size_t k;
  size_t first_token, num_tokens;
  TileSums sums;  // from its first token on
  Prefetcher* ahead;
};

template <class Kind, size_t kVectors, size_t kTokens>
HWY_INLINE void Tile(const Piece& piece, const Activations& x, const int32_t* starts, size_t token) {
  constexpr size_t kScales = Kind::kTwoScales ? 2 : 1;
  const size_t at = token * x.K + piece.k * kTokens, group = at / 32;
  const float* x_sums = Kind::kTwoScales ? x.sum16 : x.sum32;
  MultiplyTile<Kind, kVectors, kTokens>(piece.panels, piece.num_groups, x.q + at, x.scale + group,
                                        x_sums + group * kScales, starts + group * kScales,
                                        piece.sums.At(token - piece.first_token), *piece.ahead);
}

template <class Kind, size_t kVectors>
HWY_NOINLINE void Tiles(const Piece& piece, const Activations& x, const int32_t* starts) {
  const size_t end = piece.first_token + piece.num_tokens;
  size_t t = piece.first_token;
  if constexpr (kTileTokens >= 6) {
    for (; t + 6 <= end; t += 6) Tile<Kind, kVectors, 6>(piece, x, starts, t);
    for (; t + 4 <= end; t += 4) Tile<Kind, kVectors, 4>(piece, x, starts, t);
  }
  for (; t + 2 <= end; t += 2) Tile<Kind, kVectors, 2>(piece, x, starts, t);
  for (; t < end; ++t) Tile<Kind, kVectors, 1>(piece, x, starts, t);
}

template <class Kind>
HWY_INLINE void AnyVectors(const Piece& piece, const Activations& x, const int32_t* starts) {
  if (piece.num_vectors == kStripVectors) {
    Tiles<Kind, kStripVectors>(piece, x, starts);
  } else {
    Tiles<Kind, 1>(piece, x, starts);
  }
}

template <int kRun>
HWY_INLINE void AnyScales(const PanelKind& kind, const Piece& piece, const Activations& x, const int32_t* starts) {
  const bool two_scales = kind.group == 16;
  if (two_scales && kind.has_minima) AnyVectors<TileKind<kRun, true, true>>(piece, x, starts);
  if (two_scales && !kind.has_minima) AnyVectors<TileKind<kRun, true, false>>(piece, x, starts);
  if (!two_scales && kind.has_minima) AnyVectors<TileKind<kRun, false, true>>(piece, x, starts);
  if (!two_scales && !kind.has_minima) AnyVectors<TileKind<kRun, false, false>>(piece, x, starts);
}

void MultiplyPiece(const PanelKind& kind, const Piece& piece, const Activations& x, const int32_t* starts) {
#if LOWBIT_PAIRS_OF_BYTES
  if (kind.top == PanelKind::kSigned) return AnyScales<kSignedRun>(kind, piece, x, starts);
  if (kind.top > 63) return AnyScales<1>(kind, piece, x, starts);
  if (kind.top > 15) return AnyScales<2>(kind, piece, x, starts);
  AnyScales<8>(kind, piece, x, starts);
#else
  AnyScales<1>(kind, piece, x, starts);
#endif
}

// The bytes [at, at + bytes) of the rows from `first` on. Rows that do not exist are zero bytes, which are weights without
// NaN.
HWY_INLINE PackedRows Rows(const Matrix& weights, size_t first, size_t num_rows, size_t at, size_t bytes) {
  const uint8_t* data = weights.Row(first) + at;
  const size_t R = LanesOfPanel();
  if (HWY_LIKELY(num_rows >= R)) return {data, weights.RowBytes(), data};
  thread_local hwy::AlignedVector<uint8_t> copy;
  copy.assign(R * bytes, 0);
  for (size_t r = 0; r < num_rows; ++r) std::memcpy(copy.data() + r * bytes, data + r * weights.RowBytes(), bytes);
  return {copy.data(), bytes, copy.data()};
}

// Rows are prefetched this many bytes before they are multiplied, at least: less than the memory's latency allows stalls,
// and more than 64 KiB for two threads leaves the caches too early.
constexpr size_t kLeadBytes = 16384;

// The same in rows, whole strips of `num`.
HWY_INLINE size_t LeadRows(const Matrix& weights, size_t num) {
  return (kLeadBytes / HWY_MAX(size_t{1}, num * weights.RowBytes()) + 1) * num;
}

// Where to prefetch from while the `num` rows from `first` on are multiplied: at later rows, if they exist.
HWY_INLINE const uint8_t* Ahead(const Matrix& weights, size_t first, size_t num) {
  const size_t later = first + LeadRows(weights, num);
  return weights.Row(later + num <= weights.N ? later : first);
}

void PrefetchFirstRows(const Matrix& weights, size_t first) {
  const size_t end = HWY_MIN(weights.N, first + LeadRows(weights, StripRows()));
  for (const uint8_t* p = weights.Row(first); p < weights.Row(end); p += 64) PrefetchToL2(p);
}

// Rows of one strip, tokens [first, first + num). sums: room for num * StripRows().
void MultiplyStrip(const Matrix& weights, size_t first_row, size_t num_rows, const Activations& x,
                   const int32_t* starts, size_t first, size_t num, float* sums, float* out, size_t out_stride) {
  HWY_ALIGN static constexpr float kZeros[kStripVectors * Panel::kMaxRows] = {};
  Panel panels[kStripVectors];
  const Format& format = *weights.format;
  const size_t R = LanesOfPanel(), num_vectors = HWY_MIN(kStripVectors, (num_rows + R - 1) / R);
  const size_t num_tiles = NumTiles(num);
  const bool is_whole = num_rows == num_vectors * R;  // otherwise there are lanes without a row
  Prefetcher ahead(Ahead(weights, first_row, StripRows()));
  for (size_t k = 0; k < weights.K; k += Panel::kMaxK) {
    const size_t num_k = HWY_MIN(Panel::kMaxK, weights.K - k), num_groups = num_k / 32;
    const size_t at = format.RowBytes(k), bytes = format.RowBytes(num_k);
    for (size_t v = 0; v < num_vectors; ++v) {
      const PackedRows rows = Rows(weights, first_row + v * R, num_rows - v * R, at, bytes);
      format.unpack_panel(rows, num_k / format.block_size, panels[v]);
    }
    TileSums of_tiles{sums, StripRows(), sums, StripRows()};
    if (k == 0) of_tiles.from = kZeros, of_tiles.from_stride = 0;
    if (is_whole && k + num_k == weights.K) of_tiles.to = out, of_tiles.to_stride = out_stride;
    ahead.Begin(num_vectors * R * bytes, num_tiles * num_groups);
    MultiplyPiece(format.panel, {panels, num_vectors, num_groups, k, first, num, of_tiles, &ahead}, x, starts);
  }
  for (size_t t = 0; t < num && !is_whole; ++t) {
    std::memcpy(out + t * out_stride, sums + t * StripRows(), num_rows * sizeof(float));
  }
}

void MultiplyFewTokens(const Matrix& weights, size_t first_row, size_t num_rows, const Activations& x,
                       const int32_t* starts, float* out, size_t out_stride) {
  const size_t R = LanesOfPanel(), end = first_row + num_rows, bytes = weights.RowBytes();
  for (size_t n = first_row; n < end; n += R) {
    HWY_ALIGN float sums[kMostFewTokens * Panel::kMaxRows] = {};
    PackedRows rows = Rows(weights, n, end - n, 0, bytes);
    rows.ahead = Ahead(weights, n, R);
    weights.format->multiply_few(rows, weights.K, x, starts, sums);
    for (size_t t = 0; t < x.num_tokens; ++t) {
      std::memcpy(out + t * out_stride + n - first_row, sums + t * R, HWY_MIN(R, end - n) * sizeof(float));
    }
  }
}

void MultiplyRows(const Matrix& weights, size_t first_row, size_t num_rows, const Activations& x, const int32_t* starts,
                  float* out, size_t out_stride) {
  if (x.num_tokens <= kMostFewTokens) {
    return MultiplyFewTokens(weights, first_row, num_rows, x, starts, out, out_stride);
  }
  thread_local hwy::AlignedVector<float> sums;
  const size_t S = StripRows();
  if (sums.size() < HWY_MIN(kMostTokens, x.num_tokens) * S) sums.resize(HWY_MIN(kMostTokens, x.num_tokens) * S);
  for (size_t t = 0; t < x.num_tokens; t += kMostTokens) {
    const size_t num = HWY_MIN(kMostTokens, x.num_tokens - t);
    for (size_t n = 0; n < num_rows; n += S) {
      MultiplyStrip(weights, first_row + n, HWY_MIN(S, num_rows - n), x, starts, t, num, sums.data(),
                    out + t * out_stride + n, out_stride);
    }
  }
}

void ComputeStarts(int32_t bias, const int32_t* sums, size_t num_tokens, size_t groups, size_t t, int32_t* starts) {
  const TokenTile tile = TileOfToken(num_tokens, t);
  const size_t first = tile.first * groups + t - tile.first;
  for (size_t i = first; i < first + groups * tile.num; i += tile.num) starts[i] = -bias * sums[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(StripRows);
HWY_EXPORT(Bias);
HWY_EXPORT(MultiplyRows);
HWY_EXPORT(ComputeStarts);
HWY_EXPORT(PrefetchFirstRows);

size_t StripRows() { return HWY_DYNAMIC_DISPATCH(StripRows)(); }

void GroupStarts::Reserve(const Format& format, const Activations& x) {
  const size_t num = x.num_tokens * x.K / format.panel.group;
  if (starts_.size() < num) starts_.resize(num);
}

void GroupStarts::Compute(const Format& format, const Activations& x, size_t t) {
  const int32_t bias = HWY_DYNAMIC_DISPATCH(Bias)(format.panel);
  const int32_t* sums = format.panel.group == 16 ? x.q16 : x.q32;
  HWY_DYNAMIC_DISPATCH(ComputeStarts)(bias, sums, x.num_tokens, x.K / format.panel.group, t, starts_.data());
}

void PrefetchFirstRows(const Matrix& weights, size_t first) { HWY_DYNAMIC_DISPATCH(PrefetchFirstRows)(weights, first); }

void MultiplyInt8(const Matrix& weights, size_t first, size_t num_rows, const Activations& x, const int32_t* starts,
                  float* out, size_t out_stride) {
  if (weights.K == 0) {
    for (size_t t = 0; t < x.num_tokens; ++t) std::fill_n(out + t * out_stride, num_rows, 0.0f);
    return;
  }
  HWY_DYNAMIC_DISPATCH(MultiplyRows)(weights, first, num_rows, x, starts, out, out_stride);
}

}  // namespace lowbit
#endif  // HWY_ONCE
