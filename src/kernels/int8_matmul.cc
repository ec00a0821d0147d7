#include "src/kernels/int8_matmul.h"

#include <algorithm>
#include <cstring>

#include "src/formats/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/int8_matmul.cc"
// clang-format off
#include "hwy/foreach_target.h"  // must come before the others
#include "hwy/highway.h"
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

// One piece of up to Panel::kMaxK columns.
struct Piece {
  const Panel* panels;
  size_t num_vectors;
  size_t num_groups;
  size_t k;
};

template <class Kind, size_t kVectors, size_t kTokens>
HWY_INLINE void Tile(const Piece& piece, const Activations& x, const int32_t* starts, size_t token, float* sums) {
  constexpr size_t kScales = Kind::kTwoScales ? 2 : 1;
  const size_t at = token * x.K + piece.k * kTokens, group = at / 32;
  const float* x_sums = Kind::kTwoScales ? x.sum16 : x.sum32;
  MultiplyTile<Kind, kVectors, kTokens>(piece.panels, piece.num_groups, x.q + at, x.scale + group,
                                        x_sums + group * kScales, starts + group * kScales, sums + token * StripRows(),
                                        StripRows());
}

template <class Kind, size_t kVectors>
HWY_NOINLINE void Tiles(const Piece& piece, const Activations& x, const int32_t* starts, size_t first, size_t num,
                        float* sums) {
  const size_t end = first + num;
  sums -= first * StripRows();
  size_t t = first;
  if constexpr (kTileTokens >= 6) {
    for (; t + 6 <= end; t += 6) Tile<Kind, kVectors, 6>(piece, x, starts, t, sums);
    for (; t + 4 <= end; t += 4) Tile<Kind, kVectors, 4>(piece, x, starts, t, sums);
  }
  for (; t + 2 <= end; t += 2) Tile<Kind, kVectors, 2>(piece, x, starts, t, sums);
  for (; t < end; ++t) Tile<Kind, kVectors, 1>(piece, x, starts, t, sums);
}

template <class Kind>
HWY_INLINE void AnyVectors(const Piece& piece, const Activations& x, const int32_t* starts, size_t first, size_t num,
                           float* sums) {
  if (piece.num_vectors == kStripVectors) {
    Tiles<Kind, kStripVectors>(piece, x, starts, first, num, sums);
  } else {
    Tiles<Kind, 1>(piece, x, starts, first, num, sums);
  }
}

template <int kRun>
HWY_INLINE void AnyScales(const PanelKind& kind, const Piece& piece, const Activations& x, const int32_t* starts,
                          size_t first, size_t num, float* sums) {
  const bool two_scales = kind.group == 16;
  if (two_scales && kind.has_minima) AnyVectors<TileKind<kRun, true, true>>(piece, x, starts, first, num, sums);
  if (two_scales && !kind.has_minima) AnyVectors<TileKind<kRun, true, false>>(piece, x, starts, first, num, sums);
  if (!two_scales && kind.has_minima) AnyVectors<TileKind<kRun, false, true>>(piece, x, starts, first, num, sums);
  if (!two_scales && !kind.has_minima) AnyVectors<TileKind<kRun, false, false>>(piece, x, starts, first, num, sums);
}

void MultiplyPiece(const PanelKind& kind, const Piece& piece, const Activations& x, const int32_t* starts, size_t first,
                   size_t num, float* sums) {
#if LOWBIT_PAIRS_OF_BYTES
  if (kind.top == PanelKind::kSigned) return AnyScales<kSignedRun>(kind, piece, x, starts, first, num, sums);
  if (kind.top > 63) return AnyScales<1>(kind, piece, x, starts, first, num, sums);
  if (kind.top > 15) return AnyScales<2>(kind, piece, x, starts, first, num, sums);
  AnyScales<8>(kind, piece, x, starts, first, num, sums);
#else
  AnyScales<1>(kind, piece, x, starts, first, num, sums);
#endif
}

// The bytes [at, at + bytes) of the rows from `first` on. Rows that do not exist are zero bytes, which are weights without
// NaN.
HWY_INLINE PackedRows Rows(const Matrix& weights, size_t first, size_t num_rows, size_t at, size_t bytes,
                           const uint8_t* ahead) {
  const uint8_t* data = weights.Row(first) + at;
  const size_t R = LanesOfPanel();
  if (HWY_LIKELY(num_rows >= R)) return {data, weights.RowBytes(), ahead};
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
  return (kLeadBytes / (num * weights.RowBytes()) + 1) * num;
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

// Rows of one strip, all tokens.
void MultiplyStrip(const Matrix& weights, size_t first_row, size_t num_rows, const Activations& x,
                   const int32_t* starts, size_t first, size_t num, float* sums) {
  Panel panels[kStripVectors];
  const Format& format = *weights.format;
  const size_t R = LanesOfPanel(), num_vectors = HWY_MIN(kStripVectors, (num_rows + R - 1) / R);
  std::memset(sums, 0, num * StripRows() * sizeof(float));
  const uint8_t* ahead = Ahead(weights, first_row, StripRows());
  for (size_t k = 0; k < weights.K; k += Panel::kMaxK) {
    const size_t num_k = HWY_MIN(Panel::kMaxK, weights.K - k);
    const size_t at = format.RowBytes(k), bytes = format.RowBytes(num_k);
    for (size_t v = 0; v < num_vectors; ++v, ahead += R * bytes) {
      const PackedRows rows = Rows(weights, first_row + v * R, num_rows - v * R, at, bytes, ahead);
      format.unpack_panel(rows, num_k / format.block_size, panels[v]);
    }
    MultiplyPiece(format.panel, {panels, num_vectors, num_k / 32, k}, x, starts, first, num, sums);
  }
}

void MultiplyOneToken(const Matrix& weights, size_t first_row, size_t num_rows, const Activations& x,
                      const int32_t* starts, float* out) {
  const size_t R = LanesOfPanel(), end = first_row + num_rows, bytes = weights.RowBytes();
  for (size_t n = first_row; n < end; n += R) {
    HWY_ALIGN float sums[Panel::kMaxRows] = {};
    const PackedRows rows = Rows(weights, n, end - n, 0, bytes, Ahead(weights, n, R));
    weights.format->multiply_one(rows, weights.K, x, starts, sums);
    std::memcpy(out + n - first_row, sums, HWY_MIN(R, end - n) * sizeof(float));
  }
}

void MultiplyRows(const Matrix& weights, size_t first_row, size_t num_rows, const Activations& x, const int32_t* starts,
                  float* out, size_t out_stride) {
  if (x.num_tokens == 1) return MultiplyOneToken(weights, first_row, num_rows, x, starts, out);
  thread_local hwy::AlignedVector<float> sums;
  const size_t S = StripRows();
  if (sums.size() < HWY_MIN(kMostTokens, x.num_tokens) * S) sums.resize(HWY_MIN(kMostTokens, x.num_tokens) * S);
  for (size_t t = 0; t < x.num_tokens; t += kMostTokens) {
    const size_t num = HWY_MIN(kMostTokens, x.num_tokens - t);
    for (size_t n = 0; n < num_rows; n += S) {
      const size_t rows = HWY_MIN(S, num_rows - n);
      MultiplyStrip(weights, first_row + n, rows, x, starts, t, num, sums.data());
      for (size_t i = 0; i < num; ++i) {
        std::memcpy(out + (t + i) * out_stride + n, sums.data() + i * S, rows * sizeof(float));
      }
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

void PrefetchFirstRows(const Matrix& weights, size_t first) {
  HWY_DYNAMIC_DISPATCH(PrefetchFirstRows)(weights, first);
}

void MultiplyInt8(const Matrix& weights, size_t first, size_t num_rows, const Activations& x, const int32_t* starts,
                  float* out, size_t out_stride) {
  HWY_DYNAMIC_DISPATCH(MultiplyRows)(weights, first, num_rows, x, starts, out, out_stride);
}

}  // namespace lowbit
#endif  // HWY_ONCE
