#include "src/kernels/attention.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/attention.cc"
// clang-format off
#include "hwy/foreach_target.h"  // must come before the others
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
// clang-format on

#ifndef LOWBIT_KERNELS_ATTENTION_STATE_
#define LOWBIT_KERNELS_ATTENTION_STATE_
namespace lowbit {

// What Attention() was called with.
struct AttentionCall {
  const KvLayout& layout;
  AttentionScores how;
  size_t num_heads;
  size_t layer;
  size_t window;
  const float* q;
  float* out;
};

// The result for some keys, for each row of a tile: weights are exp(score - most), where most is the largest score.
struct AttentionState {
  float* most;    // [rows]
  float* sums;    // [rows][16], of weights: lane i has those of keys i, i + lanes, ...
  float* values;  // [rows][padded_dim], the sum of weight times value

  static size_t Floats(const KvLayout& layout, size_t rows) {
    return (rows + 15) / 16 * 16 + rows * (16 + layout.PaddedDim());
  }

  AttentionState(float* memory, size_t rows)
      : most(memory), sums(memory + (rows + 15) / 16 * 16), values(sums + 16 * rows) {}
};

// Memory of a task.
struct AttentionScratch {
  float* scores;  // [rows][64]
  AttentionState span, total;

  static size_t Floats(const KvLayout& layout, size_t rows) {
    return KvLayout::kPageTokens * rows + 2 * AttentionState::Floats(layout, rows);
  }

  AttentionScratch(const KvLayout& layout, float* memory, size_t rows)
      : scores(memory),
        span(scores + KvLayout::kPageTokens * rows, rows),
        total(scores + KvLayout::kPageTokens * rows + AttentionState::Floats(layout, rows), rows) {}
};

// The rows of a tile.
struct AttentionRows {
  size_t num;
  const float* q[AttentionTile::kMaxRows];
  float* out[AttentionTile::kMaxRows];
  size_t first_key[AttentionTile::kMaxRows];  // ascending
  size_t num_keys[AttentionTile::kMaxRows];   // ascending

  AttentionRows(const AttentionCall& call, const AttentionTile& tile) : num(tile.num_rows) {
    const size_t group = call.num_heads / call.layout.num_kv_heads;
    for (size_t r = 0; r < num; ++r) {
      const size_t token = (tile.first_row + r) / group, head = tile.kv_head * group + (tile.first_row + r) % group;
      const size_t at = ((tile.run_token + token) * call.num_heads + head) * call.layout.head_dim;
      q[r] = call.q + at;
      out[r] = call.out + at;
      num_keys[r] = tile.run.first_position + token + 1;
      first_key[r] = FirstKey(call.window, num_keys[r]);
    }
  }

  static size_t FirstKey(size_t window, size_t num_keys) {
    return window == 0 || num_keys <= window ? 0 : num_keys - window;
  }
};

}  // namespace lowbit
#endif  // LOWBIT_KERNELS_ATTENTION_STATE_

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
constexpr size_t kPage = KvLayout::kPageTokens;
constexpr size_t kSpan = Attention::kSpanTokens;
constexpr float kLowest = std::numeric_limits<float>::lowest();

// Rows whose accumulators are in registers together.
constexpr size_t kMicroRows = 6;

// Vectors per row: x86 without AVX-512 has 16 registers, others 32.
template <size_t kRows>
constexpr size_t RowVectors() {
  return HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3 && kRows > 2 ? 2 : 4;
}

HWY_INLINE VF LoadElements(DF df, const float* p) { return hn::LoadU(df, p); }
HWY_INLINE VF LoadElements(DF df, const hwy::float16_t* p) {
  return hn::PromoteTo(df, hn::LoadU(hn::Rebind<hwy::float16_t, DF>(), p));
}

// The right side of a product: columns [begin, end), whole vectors, of num rows.
template <typename T>
struct Panel {
  const T* matrix;
  size_t stride;
  size_t num;
  size_t begin;
  size_t end;
};

// out[r][c] = factor[r] * out[r][c] + sum over j of left[r][j] * panel[j][c], added in the order of j. Without factor:
// only the sum.
template <size_t kRows, size_t kVectors, typename T>
HWY_INLINE void MultiplyVectors(const Panel<T>& panel, size_t c, const float* const* left, const float* factor,
                                float* const* out) {
  const DF df;
  const size_t N = hn::Lanes(df);
  VF acc[kRows][kVectors];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) {
      acc[r][v] = factor ? hn::Mul(hn::Set(df, factor[r]), hn::LoadU(df, out[r] + c + v * N)) : hn::Zero(df);
    }
  }
  const T* HWY_RESTRICT row = panel.matrix + c;
  for (size_t j = 0; j < panel.num; ++j, row += panel.stride) {
    VF m[kVectors];
    for (size_t v = 0; v < kVectors; ++v) m[v] = LoadElements(df, row + v * N);
    for (size_t r = 0; r < kRows; ++r) {
      const VF a = hn::Set(df, left[r][j]);
      for (size_t v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(a, m[v], acc[r][v]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(acc[r][v], df, out[r] + c + v * N);
  }
}

template <size_t kRows, typename T>
HWY_NOINLINE void MultiplyRows(const Panel<T>& panel, const float* const* left, const float* factor,
                               float* const* out) {
  const size_t N = hn::Lanes(DF());
  constexpr size_t kVectors = RowVectors<kRows>();
  size_t c = panel.begin;
  for (; c + kVectors * N <= panel.end; c += kVectors * N) {
    MultiplyVectors<kRows, kVectors>(panel, c, left, factor, out);
  }
  for (; c < panel.end; c += N) MultiplyVectors<kRows, 1>(panel, c, left, factor, out);
}

template <typename T>
void Multiply(size_t rows, const Panel<T>& panel, const float* const* left, const float* factor, float* const* out) {
  static_assert(kMicroRows == 6);
  constexpr decltype(&MultiplyRows<1, T>) kFunctions[kMicroRows] = {MultiplyRows<1, T>, MultiplyRows<2, T>,
                                                                    MultiplyRows<3, T>, MultiplyRows<4, T>,
                                                                    MultiplyRows<5, T>, MultiplyRows<6, T>};
  kFunctions[rows - 1](panel, left, factor, out);
}

// Calls f(first, num) for parts of [first, end) of nearly equal sizes up to kMicroRows.
template <class F>
HWY_INLINE void ForMicroRows(size_t first, size_t end, F f) {
  for (size_t parts = (end - first + kMicroRows - 1) / kMicroRows; parts != 0; --parts) {
    const size_t num = (end - first + parts - 1) / parts;
    f(first, num);
    first += num;
  }
}

// 2^x for x <= 0, exactly 1 for 0, and 0 below the least normal float. The polynomial's relative error is 2^-28.
HWY_INLINE VF Exp2(DF df, VF x) {
  const hn::RebindToSigned<DF> di;
  const VF whole = hn::Round(x);
  const VF f = hn::Sub(x, whole);
  VF p = hn::Set(df, 0.00015353361959569156f);
  for (const float c : {0.0013398873852565885f, 0.00961843691766262f, 0.055503323674201965f, 0.24022647738456726f,
                        0.6931471824645996f, 1.0f}) {
    p = hn::MulAdd(p, f, hn::Set(df, c));
  }
  const VF power = hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(df, -126.0f)), hn::Mul(p, power));
}

// x in lanes [begin, end) of the row whose lane `at` is x's first, else `other`.
HWY_INLINE VF InRange(DF df, VF x, size_t at, size_t begin, size_t end, float other) {
  if (at < begin) x = hn::IfThenElse(hn::FirstN(df, begin - at), hn::Set(df, other), x);
  if (at + hn::Lanes(df) > end) x = hn::IfThenElse(hn::FirstN(df, end - at), x, hn::Set(df, other));
  return x;
}

// How scores become weights: exp(score - most) = 2^((score - most) * factor).
struct Weighting {
  float cap_factor, cap;
  float factor;

  explicit Weighting(AttentionScores how) : cap_factor(how.scale / how.cap), cap(how.cap) {
    constexpr float kLog2E = 1.44269504f;
    factor = how.cap != 0 ? kLog2E : HWY_MIN(how.scale * kLog2E, std::numeric_limits<float>::max());
  }
};

// Caps scores [begin, end) of a row and returns the largest, or `most` if that is larger.
HWY_INLINE float CapAndFindMost(float* scores, size_t begin, size_t end, const Weighting& how, float most) {
  const DF df;
  const size_t N = hn::Lanes(df);
  VF largest = hn::Set(df, most);
  for (size_t i = begin / N * N; i < end; i += N) {
    VF x = hn::LoadU(df, scores + i);
    if (how.cap != 0) {
      x = hn::Mul(hn::Set(df, how.cap), hn::Tanh(df, hn::Mul(x, hn::Set(df, how.cap_factor))));
      hn::StoreU(x, df, scores + i);
    }
    largest = hn::Max(InRange(df, x, i, begin, end, kLowest), largest);
  }
  return hn::ReduceMax(df, largest);
}

// Scores [begin, end) of a row become weights, the others zero. `sums`: see AttentionState; first multiplied by scale.
HWY_INLINE void Weigh(float* scores, size_t begin, size_t end, const Weighting& how, float most, float scale,
                      float* sums) {
  const DF df;
  const size_t N = hn::Lanes(df);
  const VF vmost = hn::Set(df, most), factor = hn::Set(df, how.factor);
  VF sum = hn::Mul(hn::LoadU(df, sums), hn::Set(df, scale));
  size_t i = 0;
  for (; i + N <= begin; i += N) hn::StoreU(hn::Zero(df), df, scores + i);
  for (; i < end; i += N) {
    const VF e = Exp2(df, hn::Mul(hn::Sub(hn::LoadU(df, scores + i), vmost), factor));
    const VF weights = InRange(df, e, i, begin, end, 0.0f);
    hn::StoreU(weights, df, scores + i);
    sum = hn::Add(sum, weights);
  }
  for (; i < kPage; i += N) hn::StoreU(hn::Zero(df), df, scores + i);
  hn::StoreU(sum, df, sums);
}

// factors[i] = exp(differences[i]), whole vectors.
HWY_INLINE void Factors(float* differences, size_t num, const Weighting& how) {
  const DF df;
  for (size_t i = 0; i < num; i += hn::Lanes(df)) {
    hn::StoreU(Exp2(df, hn::Mul(hn::LoadU(df, differences + i), hn::Set(df, how.factor))), df, differences + i);
  }
}

// No keys.
void Clear(const AttentionState& state, size_t rows, size_t dim) {
  std::fill_n(state.most, rows, kLowest);
  std::fill_n(state.sums, 16 * rows, 0.0f);
  std::fill_n(state.values, dim * rows, 0.0f);
}

// Adds the keys of a page.
template <typename T>
HWY_INLINE void AddPage(const KvLayout& layout, const Weighting& how, const AttentionRows& rows, size_t page,
                        const T* keys, const AttentionScratch& scratch, const AttentionState& state) {
  const size_t N = hn::Lanes(DF());
  const size_t dim = layout.PaddedDim(), start = page * kPage;
  // Rows with keys in the page, and their keys.
  size_t low = 0, high = rows.num;
  while (low < high && rows.num_keys[low] <= start) ++low;
  while (low < high && rows.first_key[high - 1] >= start + kPage) --high;
  if (low == high) return;
  const auto begin = [&](size_t r) { return HWY_MAX(rows.first_key[r], start) - start; };
  const auto end = [&](size_t r) { return HWY_MIN(rows.num_keys[r] - start, kPage); };
  const size_t first = begin(low), last = end(high - 1);
  const size_t first_column = first / N * N, last_column = (last + N - 1) / N * N;
  const T* values = keys + kPage * layout.head_dim;

  float* scores[AttentionTile::kMaxRows];
  float* sums[AttentionTile::kMaxRows];
  for (size_t r = low; r < high; ++r) {
    scores[r] = scratch.scores + r * kPage;
    sums[r] = state.values + r * dim;
  }
  ForMicroRows(low, high, [&](size_t r, size_t num) HWY_ATTR {
    const Panel<T> panel{keys, kPage, layout.head_dim, first_column, last_column};
    Multiply(num, panel, rows.q + r, nullptr, scores + r);
  });

  HWY_ALIGN float factors[AttentionTile::kMaxRows + 16] = {};
  for (size_t r = low; r < high; ++r) {
    const float most = CapAndFindMost(scores[r], begin(r), end(r), how, state.most[r]);
    factors[r] = state.most[r] - most;
    state.most[r] = most;
  }
  Factors(factors, high, how);
  for (size_t r = low; r < high; ++r) {
    Weigh(scores[r], begin(r), end(r), how, state.most[r], factors[r], state.sums + 16 * r);
  }

  ForMicroRows(low, high, [&](size_t r, size_t num) HWY_ATTR {
    const size_t from = begin(r), to = end(r + num - 1);
    const float* weights[kMicroRows];
    for (size_t i = 0; i < num; ++i) weights[i] = scores[r + i] + from;
    const Panel<T> panel{values + from * dim, dim, to - from, 0, dim};
    Multiply(num, panel, weights, factors + r, sums + r);
  });
}

// The result for the keys of one span.
template <typename T>
void AttendSpan(const AttentionCall& call, const AttentionTile& tile, const AttentionRows& rows, size_t span,
                const AttentionScratch& scratch, const AttentionState& state) {
  Clear(state, rows.num, call.layout.PaddedDim());
  const Weighting how(call.how);
  const size_t first = HWY_MAX(rows.first_key[0], span * kSpan) / kPage;
  const size_t end = HWY_MIN(rows.num_keys[rows.num - 1], (span + 1) * kSpan);
  const size_t offset = call.layout.HeadOffset(call.layer, tile.kv_head);
  for (size_t page = first; page * kPage < end; ++page) {
    const T* keys = reinterpret_cast<const T*>(tile.run.pages[page]) + offset;
    AddPage<T>(call.layout, how, rows, page, keys, scratch, state);
  }
}

// to = before * to + added * from, whole vectors.
HWY_INLINE void AddScaled(float before, const float* from, float added, size_t num, float* to) {
  const DF df;
  const VF a = hn::Set(df, before), b = hn::Set(df, added);
  for (size_t i = 0; i < num; i += hn::Lanes(df)) {
    hn::StoreU(hn::MulAdd(b, hn::LoadU(df, from + i), hn::Mul(a, hn::LoadU(df, to + i))), df, to + i);
  }
}

// Adds the result for later keys. That of no keys changes nothing.
void AddState(const AttentionCall& call, size_t rows, const AttentionState& from, const AttentionState& to) {
  const size_t N = hn::Lanes(DF()), dim = call.layout.PaddedDim();
  HWY_ALIGN float before[AttentionTile::kMaxRows + 16] = {}, added[AttentionTile::kMaxRows + 16] = {};
  for (size_t r = 0; r < rows; ++r) {
    const float most = HWY_MAX(to.most[r], from.most[r]);
    before[r] = to.most[r] - most;
    added[r] = from.most[r] - most;
    to.most[r] = most;
  }
  const Weighting how(call.how);
  Factors(before, rows, how);
  Factors(added, rows, how);
  for (size_t r = 0; r < rows; ++r) {
    AddScaled(before[r], from.sums + 16 * r, added[r], N, to.sums + 16 * r);
    AddScaled(before[r], from.values + r * dim, added[r], dim, to.values + r * dim);
  }
}

// out = values / sum of weights.
void Finish(const AttentionCall& call, const AttentionRows& rows, const AttentionState& state) {
  const DF df;
  const size_t N = hn::Lanes(df), dim = call.layout.PaddedDim();
  for (size_t r = 0; r < rows.num; ++r) {
    const VF factor = hn::Set(df, 1.0f / hn::ReduceSum(df, hn::LoadU(df, state.sums + 16 * r)));
    for (size_t d = 0; d < call.layout.head_dim; d += N) {
      // Plus zero: the sign of a zero would tell whether other rows had more keys.
      const VF x = hn::MulAdd(factor, hn::LoadU(df, state.values + r * dim + d), hn::Zero(df));
      hn::StoreN(x, df, rows.out[r] + d, HWY_MIN(N, call.layout.head_dim - d));
    }
  }
}

template <typename T>
void AttendTask(const AttentionCall& call, const AttentionTile& tile, const AttentionTask& task,
                std::atomic<size_t>& unfinished, float* partials, float* memory) {
  const AttentionRows rows(call, tile);
  const AttentionScratch scratch(call.layout, memory, rows.num);
  const auto partial = [&](size_t span) {
    const size_t floats = AttentionState::Floats(call.layout, rows.num);
    return AttentionState(partials + tile.partials + (span - tile.first_span) * floats, rows.num);
  };
  const bool shared = tile.num_tasks != 1;
  if (shared) {
    for (size_t span = task.first_span; span < task.end_span; ++span) {
      AttendSpan<T>(call, tile, rows, span, scratch, partial(span));
    }
    if (unfinished.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  }
  Clear(scratch.total, rows.num, call.layout.PaddedDim());
  for (size_t span = tile.first_span; span < tile.end_span; ++span) {
    if (!shared) AttendSpan<T>(call, tile, rows, span, scratch, scratch.span);
    AddState(call, rows.num, shared ? partial(span) : scratch.span, scratch.total);
  }
  Finish(call, rows, scratch.total);
}

void Attend(const AttentionCall& call, const AttentionTile& tile, const AttentionTask& task,
            std::atomic<size_t>& unfinished, float* partials, float* memory) {
  (call.layout.is_f32 ? AttendTask<float> : AttendTask<hwy::float16_t>)(call, tile, task, unfinished, partials, memory);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(Attend);

// Cuts the work into tiles, and tiles into tasks where there are too few tiles to keep all threads busy.
void Attention::Plan(size_t window, const std::vector<AttentionRun>& runs, size_t num_threads) {
  tiles_.clear();
  tasks_.clear();
  window_ = window;
  const size_t group = num_heads_ / layout_.num_kv_heads;
  size_t run_token = 0, total = 0;
  for (const AttentionRun& run : runs) {
    // Later tokens attend to more keys: they come first, so that threads end at the same time.
    for (size_t end = run.num_tokens * group; end != 0;) {
      AttentionTile tile{};
      tile.run = run;
      tile.run_token = run_token;
      tile.num_rows = (end - 1) % AttentionTile::kMaxRows + 1;
      const size_t num_keys = run.first_position + (end - 1) / group + 1;
      end -= tile.num_rows;
      tile.first_row = end;
      const size_t first_key = AttentionRows::FirstKey(window, run.first_position + end / group + 1);
      tile.first_span = first_key / kSpanTokens;
      tile.end_span = (num_keys - 1) / kSpanTokens + 1;
      tile.cost = (num_keys - first_key) * (tile.num_rows + 2);  // reading keys is worth a few rows
      for (tile.kv_head = 0; tile.kv_head < layout_.num_kv_heads; ++tile.kv_head) tiles_.push_back(tile);
      total += layout_.num_kv_heads * tile.cost;
    }
    run_token += run.num_tokens;
  }
  if (unfinished_.size() < tiles_.size()) unfinished_ = std::vector<std::atomic<size_t>>(tiles_.size());
  // Multiply-adds that are worth sharing: some 10 us.
  constexpr size_t kThreadWork = size_t{1} << 18;
  constexpr size_t kTasksPerThread = 8;
  num_threads = std::min(num_threads, 1 + total * layout_.head_dim / kThreadWork);
  const size_t share = num_threads == 1 ? total : total / (num_threads * kTasksPerThread) + 1;
  size_t num_partials = 0;
  for (size_t t = 0; t < tiles_.size(); ++t) {
    AttentionTile& tile = tiles_[t];
    const size_t spans = tile.end_span - tile.first_span;
    tile.num_tasks = std::min(spans, (tile.cost + share - 1) / share);
    tile.partials = num_partials;
    if (tile.num_tasks != 1) num_partials += spans * AttentionState::Floats(layout_, tile.num_rows);
    unfinished_[t].store(tile.num_tasks, std::memory_order_relaxed);
    for (size_t i = 0; i < tile.num_tasks; ++i) {
      tasks_.push_back(
          {t, tile.first_span + spans * i / tile.num_tasks, tile.first_span + spans * (i + 1) / tile.num_tasks});
    }
  }
  if (partials_.size() < num_partials) partials_.resize(num_partials);
}

void Attention::Run(Worker& worker, size_t layer, const float* q, float* out) {
  const AttentionCall call{layout_, how_, num_heads_, layer, window_, q, out};
  worker.Share(tasks_.size(), [&](size_t i) {
    const AttentionTile& tile = tiles_[tasks_[i].tile];
    thread_local hwy::AlignedVector<float> memory;
    const size_t floats = AttentionScratch::Floats(layout_, tile.num_rows);
    if (memory.size() < floats) memory.resize(floats);
    HWY_DYNAMIC_DISPATCH(Attend)(call, tile, tasks_[i], unfinished_[tasks_[i].tile], partials_.data(), memory.data());
  });
}

}  // namespace lowbit
#endif  // HWY_ONCE
