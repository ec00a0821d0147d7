#include "src/kernels/attention.h"

#include <algorithm>

#include "hwy/aligned_allocator.h"
#include "src/formats/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/attention.cc"
// clang-format off
#include "hwy/foreach_target.h"  // must come before the others
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
constexpr size_t kPage = KvLayout::kPageTokens;

HWY_INLINE VF LoadElements(DF df, const float* p) { return hn::LoadU(df, p); }
HWY_INLINE VF LoadElements(DF df, const hwy::float16_t* p) {
  return hn::PromoteTo(df, hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), p));
}

// acc[r][v] += coefficient(r, j) * matrix[j][v * lanes ...] for j in [0, num): kRows x 4 vectors in registers. Used
// with keys (j: dimension, lanes: keys) and with values (j: keys, lanes: dimensions).
template <size_t kRows, typename T, class Coefficient>
HWY_INLINE void Accumulate(const T* HWY_RESTRICT matrix, size_t stride, size_t num, size_t num_vectors,
                           Coefficient coefficient, VF (&acc)[kRows][4]) {
  const DF df;
  const size_t N = hn::Lanes(df);
  if (num_vectors == 4) {
    for (size_t j = 0; j < num; ++j) {
      VF m[4];
      for (size_t v = 0; v < 4; ++v) m[v] = LoadElements(df, matrix + j * stride + v * N);
      for (size_t r = 0; r < kRows; ++r) {
        const VF c = hn::Set(df, coefficient(r, j));
        for (size_t v = 0; v < 4; ++v) acc[r][v] = hn::MulAdd(c, m[v], acc[r][v]);
      }
    }
    return;
  }
  for (size_t j = 0; j < num; ++j) {
    for (size_t v = 0; v < num_vectors; ++v) {
      const VF m = LoadElements(df, matrix + j * stride + v * N);
      for (size_t r = 0; r < kRows; ++r) acc[r][v] = hn::MulAdd(hn::Set(df, coefficient(r, j)), m, acc[r][v]);
    }
  }
}

template <size_t kRows>
HWY_INLINE void ZeroRows(VF (&acc)[kRows][4]) {
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < 4; ++v) acc[r][v] = hn::Zero(DF());
  }
}

// scores[r][j] = q[r] . key j, for all keys of num_pages pages.
template <size_t kRows, typename T>
HWY_INLINE void Scores(const KvLayout& layout, const float* const* q, uint8_t* const* pages, size_t num_pages,
                       size_t head_offset, float* scores, size_t scores_stride) {
  const DF df;
  const size_t N = hn::Lanes(df);
  const size_t vectors = HWY_MIN(size_t{4}, kPage / N);
  for (size_t p = 0; p < num_pages; ++p) {
    const T* keys = reinterpret_cast<const T*>(pages[p]) + head_offset;
    for (size_t j = 0; j < kPage; j += vectors * N) {
      VF acc[kRows][4];
      ZeroRows(acc);
      Accumulate<kRows>(keys + j, kPage, layout.head_dim, vectors, [&](size_t r, size_t d) { return q[r][d]; }, acc);
      for (size_t r = 0; r < kRows; ++r) {
        for (size_t v = 0; v < vectors; ++v) {
          hn::StoreU(acc[r][v], df, scores + r * scores_stride + p * kPage + j + v * N);
        }
      }
    }
  }
}

// scores[i] = cap * tanh(scores[i] * scale / cap), whole vectors.
HWY_INLINE void SoftCapScores(float* scores, size_t num, AttentionScores how) {
  const DF df;
  const VF factor = hn::Set(df, how.scale / how.cap), cap = hn::Set(df, how.cap);
  for (size_t i = 0; i < num; i += hn::Lanes(df)) {
    hn::StoreU(hn::Mul(cap, hn::Tanh(df, hn::Mul(hn::LoadU(df, scores + i), factor))), df, scores + i);
  }
}

// scores[first, end) become exp((s - max) * scale); all others of [0, padded) become zero. Returns 1 / their sum. The
// lane that adds a score depends only on its place in its page, so the other rows of a tile do not change the sum.
HWY_INLINE float Softmax(float* scores, size_t first, size_t end, size_t padded, float scale) {
  const DF df;
  const size_t N = hn::Lanes(df);
  float max = scores[first];
  size_t i = first;
  if (end - first >= N) {
    VF most = hn::LoadU(df, scores + i);
    for (; i + N <= end; i += N) most = hn::Max(most, hn::LoadU(df, scores + i));
    max = hn::ReduceMax(df, most);
  }
  for (; i < end; ++i) max = HWY_MAX(max, scores[i]);
  VF sum = hn::Zero(df);
  const VF vmax = hn::Set(df, max), vscale = hn::Set(df, scale);
  const size_t begin = first / N * N;
  std::fill(scores, scores + begin, 0.0f);
  for (i = begin; i < end; i += N) {  // pages are whole vectors, so this never leaves the row
    const VF x = hn::Mul(hn::Sub(hn::LoadU(df, scores + i), vmax), vscale);
    VF e = hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(df, x));  // Highway's Exp(NaN) is 0, which would hide it
    if (i < first) e = hn::IfThenZeroElse(hn::FirstN(df, first - i), e);
    if (i + N > end) e = hn::IfThenElseZero(hn::FirstN(df, end - i), e);
    hn::StoreU(e, df, scores + i);
    sum = hn::Add(sum, e);
  }
  if (i < padded) std::fill(scores + i, scores + padded, 0.0f);
  return 1.0f / hn::ReduceSum(df, sum);
}

// out[r] = factor[r] * sum over keys of scores[r][j] * value j.
template <size_t kRows, typename T>
HWY_INLINE void WeightedValues(const KvLayout& layout, const float* scores, size_t scores_stride, uint8_t* const* pages,
                               size_t num_keys, size_t head_offset, const float* factor, float* const* out) {
  const DF df;
  const size_t N = hn::Lanes(df);
  const size_t dim = layout.PaddedDim();
  for (size_t d = 0; d < dim; d += 4 * N) {
    const size_t vectors = HWY_MIN(size_t{4}, (dim - d) / N);
    VF acc[kRows][4];
    ZeroRows(acc);
    for (size_t j = 0; j < num_keys; j += kPage) {
      const T* values = reinterpret_cast<const T*>(pages[j / kPage]) + head_offset + kPage * layout.head_dim;
      Accumulate<kRows>(
          values + d, dim, HWY_MIN(kPage, num_keys - j), vectors,
          [&](size_t r, size_t i) { return scores[r * scores_stride + j + i]; }, acc);
    }
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t v = 0; v < vectors && d + v * N < layout.head_dim; ++v) {
        const size_t at = d + v * N;
        hn::StoreN(hn::Mul(acc[r][v], hn::Set(df, factor[r])), df, out[r] + at, HWY_MIN(N, layout.head_dim - at));
      }
    }
  }
}

template <typename T>
HWY_INLINE void AttendTile(const KvLayout& layout, size_t layer, AttentionScores how, const AttentionTile& tile,
                           float* scores) {
  constexpr size_t kRows = 4;
  const size_t base = tile.FirstKey();
  const size_t num_keys = tile.EndKey() - base;
  const size_t num_pages = (num_keys + kPage - 1) / kPage;
  const size_t stride = num_pages * kPage;
  uint8_t* const* pages = tile.pages + base / kPage;
  const size_t offset = layout.HeadOffset(layer, tile.kv_head);
  float factor[AttentionTile::kMaxRows];
  size_t r = 0;
  for (; r + kRows <= tile.num_rows; r += kRows) {
    Scores<kRows, T>(layout, tile.q + r, pages, num_pages, offset, scores + r * stride, stride);
  }
  for (; r < tile.num_rows; ++r) {
    Scores<1, T>(layout, tile.q + r, pages, num_pages, offset, scores + r * stride, stride);
  }
  if (how.cap != 0) SoftCapScores(scores, tile.num_rows * stride, how);
  for (r = 0; r < tile.num_rows; ++r) {
    factor[r] = Softmax(scores + r * stride, tile.first_key[r] - base, tile.num_keys[r] - base, stride,
                        how.cap != 0 ? 1.0f : how.scale);
  }
  r = 0;
  for (; r + kRows <= tile.num_rows; r += kRows) {
    WeightedValues<kRows, T>(layout, scores + r * stride, stride, pages, num_keys, offset, factor + r, tile.out + r);
  }
  for (; r < tile.num_rows; ++r) {
    WeightedValues<1, T>(layout, scores + r * stride, stride, pages, num_keys, offset, factor + r, tile.out + r);
  }
}

void Attend(const KvLayout& layout, size_t layer, AttentionScores how, const AttentionTile& tile, float* scores) {
  if (layout.is_f32) {
    AttendTile<float>(layout, layer, how, tile, scores);
  } else {
    AttendTile<hwy::float16_t>(layout, layer, how, tile, scores);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(Attend);

namespace {

constexpr size_t kPage = KvLayout::kPageTokens;

template <typename T>
void StoreElements(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, const T* key, const T* value) {
  for (size_t h = 0; h < layout.num_kv_heads; ++h) {
    T* keys = reinterpret_cast<T*>(page) + layout.HeadOffset(layer, h);
    T* values = keys + kPage * layout.head_dim + slot * layout.PaddedDim();
    for (size_t d = 0; d < layout.head_dim; ++d) keys[d * kPage + slot] = key[h * layout.head_dim + d];
    std::copy_n(value + h * layout.head_dim, layout.head_dim, values);
  }
}

}  // namespace

void StoreKeyValue(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, const float* key,
                   const float* value) {
  if (layout.is_f32) {
    StoreElements(layout, page, slot, layer, key, value);
    return;
  }
  const size_t num = layout.num_kv_heads * layout.head_dim;
  static const Format& f16 = GetFormat("F16");
  thread_local std::vector<hwy::float16_t> halves;
  halves.resize(2 * num);
  f16.encode(key, nullptr, 1, num, reinterpret_cast<uint8_t*>(halves.data()));
  f16.encode(value, nullptr, 1, num, reinterpret_cast<uint8_t*>(halves.data() + num));
  StoreElements(layout, page, slot, layer, halves.data(), halves.data() + num);
}

void AttentionPlan::Plan(const KvLayout& layout, size_t num_heads, const std::vector<AttentionQuery>& queries) {
  const size_t group = num_heads / layout.num_kv_heads;
  tiles_.clear();
  for (size_t h = 0; h < layout.num_kv_heads; ++h) {
    AttentionTile tile{};
    tile.kv_head = h;
    for (size_t i = 0; i < queries.size(); ++i) {
      const AttentionQuery& query = queries[i];
      for (size_t g = 0; g < group; ++g) {
        if (tile.num_rows == AttentionTile::kMaxRows || (tile.num_rows != 0 && tile.pages != query.pages)) {
          tiles_.push_back(tile);
          tile.num_rows = 0;
        }
        tile.pages = query.pages;
        tile.q[tile.num_rows] = query.q + (h * group + g) * layout.head_dim;
        tile.out[tile.num_rows] = query.out + (h * group + g) * layout.head_dim;
        tile.first_key[tile.num_rows] = query.first_key;
        tile.num_keys[tile.num_rows++] = query.num_keys;
      }
    }
    if (tile.num_rows != 0) tiles_.push_back(tile);
  }
}

void AttentionPlan::Run(Worker& worker, const KvLayout& layout, size_t layer, AttentionScores how) const {
  worker.Share(tiles_.size(), [&](size_t i) {
    const AttentionTile& tile = tiles_[i];
    const size_t padded = (tile.EndKey() - tile.FirstKey() + kPage - 1) / kPage * kPage;
    thread_local hwy::AlignedVector<float> scores;
    if (scores.size() < tile.num_rows * padded) scores.resize(tile.num_rows * padded);
    HWY_DYNAMIC_DISPATCH(Attend)(layout, layer, how, tile, scores.data());
  });
}

}  // namespace lowbit
#endif  // HWY_ONCE
