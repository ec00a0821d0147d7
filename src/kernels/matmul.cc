#include "src/kernels/matmul.h"

#include <algorithm>
#include <type_traits>

#include "src/base/error.h"
#include "src/base/threads.h"
#include "src/io/text.h"
#include "src/kernels/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/matmul.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Inner products of kRows rows with kTokens tokens, K across the lanes. The order of additions in a product is the same
// for every tile shape. At 4 x 4: 16 accumulators, 8 loads and 16 multiply-adds per step.
template <size_t kRows, size_t kTokens, typename T>
HWY_INLINE void Tile(const T* HWY_RESTRICT rows, const T* HWY_RESTRICT x, size_t K, float* HWY_RESTRICT out,
                     size_t out_stride) {
  const hn::ScalableTag<T> d;
  const hn::Repartition<float, decltype(d)> df;
  const size_t N = hn::Lanes(d);
  hn::Vec<decltype(df)> sums[kRows][kTokens];
  // Highway's bf16 product may add every other term to a second sum.
  hn::Vec<decltype(df)> odd[kRows][kTokens];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t t = 0; t < kTokens; ++t) sums[r][t] = odd[r][t] = hn::Zero(df);
  }
  const auto step = [&](auto load) HWY_ATTR {
    hn::Vec<decltype(d)> w[kRows];
    for (size_t r = 0; r < kRows; ++r) w[r] = load(rows + r * K);
    for (size_t t = 0; t < kTokens; ++t) {
      const auto v = load(x + t * K);
      for (size_t r = 0; r < kRows; ++r) {
        if constexpr (std::is_same_v<T, float>) {
          sums[r][t] = hn::MulAdd(w[r], v, sums[r][t]);
        } else {
          sums[r][t] = hn::ReorderWidenMulAccumulate(df, w[r], v, sums[r][t], odd[r][t]);
        }
      }
    }
  };
  size_t k = 0;
  for (; k + N <= K; k += N) step([&](const T* p) HWY_ATTR { return hn::LoadU(d, p + k); });
  if (k < K) step([&](const T* p) HWY_ATTR { return hn::LoadN(d, p + k, K - k); });
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t r = 0; r < kRows; ++r) out[t * out_stride + r] = hn::ReduceSum(df, hn::Add(sums[r][t], odd[r][t]));
  }
}

template <size_t kRows, typename T>
HWY_INLINE void RowsTimesTokens(const T* rows, const T* x, size_t num_tokens, size_t K, float* out, size_t out_stride) {
  size_t t = 0;
  for (; t + 4 <= num_tokens; t += 4) Tile<kRows, 4>(rows, x + t * K, K, out + t * out_stride, out_stride);
  for (; t < num_tokens; ++t) Tile<kRows, 1>(rows, x + t * K, K, out + t * out_stride, out_stride);
}

// Multiplies a panel of rows with all tokens. Four rows (8 to 64 KiB) stay in the L1 cache.
template <typename T>
HWY_INLINE void PanelTimesTokens(const T* panel, size_t num_rows, const T* x, size_t num_tokens, size_t K, float* out,
                                 size_t out_stride) {
  size_t r = 0;
  for (; r + 4 <= num_rows; r += 4) RowsTimesTokens<4>(panel + r * K, x, num_tokens, K, out + r, out_stride);
  for (; r < num_rows; ++r) RowsTimesTokens<1>(panel + r * K, x, num_tokens, K, out + r, out_stride);
}

void PanelF32(const float* panel, size_t num_rows, const float* x, size_t num_tokens, size_t K, float* out,
              size_t out_stride) {
  PanelTimesTokens(panel, num_rows, x, num_tokens, K, out, out_stride);
}

void PanelBf16(const hwy::bfloat16_t* panel, size_t num_rows, const hwy::bfloat16_t* x, size_t num_tokens, size_t K,
               float* out, size_t out_stride) {
  PanelTimesTokens(panel, num_rows, x, num_tokens, K, out, out_stride);
}

void RoundToBf16(const float* HWY_RESTRICT in, size_t num, hwy::bfloat16_t* HWY_RESTRICT out) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<hwy::bfloat16_t, decltype(df)> dbf;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= num; i += N) hn::StoreU(hn::DemoteTo(dbf, hn::LoadU(df, in + i)), dbf, out + i);
  if (i < num) hn::StoreN(hn::DemoteTo(dbf, hn::LoadN(df, in + i, num - i)), dbf, out + i, num - i);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lowbit {
HWY_EXPORT(PanelF32);
HWY_EXPORT(PanelBf16);
HWY_EXPORT(RoundToBf16);

namespace {

// From this many tokens on, "auto" rounds float weights to bfloat16.
constexpr size_t kMinBf16Tokens = 9;

// Weights that need no decoding.
bool IsF32(const Format& format) {
  static const Format& f32 = GetFormat("F32");
  return &format == &f32;
}

bool IsBf16(const Format& format) {
  static const Format& bf16 = GetFormat("BF16");
  return &format == &bf16;
}

// Decoded rows of one panel: one buffer per thread, reused by later calls.
template <typename T>
T* ThreadBuffer(size_t num) {
  thread_local hwy::AlignedVector<T> buffer;
  if (buffer.size() < num) buffer.resize(num);
  return buffer.data();
}

const float* DecodeF32(const Matrix& w, size_t first, size_t num_rows) {
  if (IsF32(*w.format)) return reinterpret_cast<const float*>(w.Row(first));
  float* panel = ThreadBuffer<float>(num_rows * w.K);
  w.format->decode(w.Row(first), num_rows * w.K / w.format->block_size, panel);
  return panel;
}

const hwy::bfloat16_t* DecodeBf16(const Matrix& w, size_t first, size_t num_rows) {
  if (IsBf16(*w.format)) return reinterpret_cast<const hwy::bfloat16_t*>(w.Row(first));
  hwy::bfloat16_t* panel = ThreadBuffer<hwy::bfloat16_t>(num_rows * w.K);
  float* row = ThreadBuffer<float>(w.K);
  for (size_t r = 0; r < num_rows; ++r) {
    w.format->decode(w.Row(first + r), w.K / w.format->block_size, row);
    HWY_DYNAMIC_DISPATCH(RoundToBf16)(row, w.K, panel + r * w.K);
  }
  return panel;
}

Compute Resolve(Compute compute, const Format& format, size_t num_tokens) {
  const bool is_packed = format.unpack_panel != nullptr;
  if (compute == Compute::kAuto) {
    if (is_packed) return Compute::kInt8;
    compute = num_tokens < kMinBf16Tokens ? Compute::kF32 : Compute::kBf16;
  }
  const bool float_as_int8 = compute == Compute::kInt8 && !is_packed;
  const bool rounds_f32 = compute == Compute::kBf16 && IsF32(format);
  return float_as_int8 || rounds_f32 ? Compute::kF32 : compute;
}

// Rows per task: few enough to balance the work, enough to amortise the loop overhead.
size_t RowsPerTask(const Matrix& w, Compute how, size_t num_threads) {
  if (how != Compute::kInt8) return 32;
  const size_t strip = StripRows();
  return std::clamp<size_t>(w.N / (num_threads * 4) / strip, 1, 8) * strip;
}

// A product and the tasks [first_task, next part's first_task) that compute it.
struct Part {
  const Product* product;
  Compute how;
  const int32_t* starts;
  size_t rows_per_task;
  size_t first_task;
};

}  // namespace

Compute ParseCompute(const std::string& name) {
  if (name == "auto") return Compute::kAuto;
  if (name == "int8") return Compute::kInt8;
  if (name == "bf16") return Compute::kBf16;
  if (name == "f32") return Compute::kF32;
  throw InputError("compute:").Expected("auto, int8, bf16 or f32").Found(Quoted(name));
}

void Matmul::operator()(const float* x, size_t num_tokens, const std::vector<Product>& products, bool round_tokens) {
  if (num_tokens == 0 || products.empty()) return;
  const size_t K = products[0].weights.K;
  const float* token_scales = nullptr;
  if (round_tokens) {
    if (codes_.size() < num_tokens * K) codes_.resize(num_tokens * K);
    if (token_scales_.size() < num_tokens) token_scales_.resize(num_tokens);
    RoundTokens(x, num_tokens, K, num_threads_, codes_.data(), token_scales_.data());
    x = codes_.data();
    token_scales = token_scales_.data();
  }
  std::vector<Part> parts;
  size_t num_tasks = 0;
  Activations int8{};
  bool need_bf16 = false;
  if (starts_.size() < products.size()) starts_.resize(products.size());
  for (size_t i = 0; i < products.size(); ++i) {
    const Product& p = products[i];
    const Format& format = *p.weights.format;
    const Compute how = Resolve(compute_, format, num_tokens);
    const int32_t* starts = nullptr;
    if (how == Compute::kInt8) {
      if (int8.q == nullptr) int8 = int8_.Quantize(x, num_tokens, K, num_threads_, token_scales);
      const bool same = i != 0 && parts.back().starts && products[i - 1].weights.format == &format;
      starts = same ? parts.back().starts : starts_[i].Compute(format, int8);
    }
    need_bf16 |= how == Compute::kBf16;
    const size_t rows = RowsPerTask(p.weights, how, num_threads_);
    parts.push_back({&p, how, starts, rows, num_tasks});
    num_tasks += (p.weights.N + rows - 1) / rows;
  }
  if (need_bf16) {
    if (bf16_.size() < num_tokens * K) bf16_.resize(num_tokens * K);
    HWY_DYNAMIC_DISPATCH(RoundToBf16)(x, num_tokens * K, bf16_.data());
  }
  ParallelFor(num_tasks, num_threads_, [&](size_t task) {
    size_t i = parts.size() - 1;
    while (parts[i].first_task > task) --i;
    const Matrix& w = parts[i].product->weights;
    const size_t first = (task - parts[i].first_task) * parts[i].rows_per_task;
    const size_t num_rows = std::min(parts[i].rows_per_task, w.N - first);
    float* out = parts[i].product->out + first;
    const size_t stride = parts[i].product->out_stride;
    if (parts[i].how == Compute::kInt8) {
      MultiplyInt8(w, first, num_rows, int8, parts[i].starts, out, stride);
      return;
    }
    if (parts[i].how == Compute::kBf16) {
      HWY_DYNAMIC_DISPATCH(PanelBf16)(DecodeBf16(w, first, num_rows), num_rows, bf16_.data(), num_tokens, K, out,
                                      stride);
    } else {
      HWY_DYNAMIC_DISPATCH(PanelF32)(DecodeF32(w, first, num_rows), num_rows, x, num_tokens, K, out, stride);
    }
    for (size_t t = 0; round_tokens && t < num_tokens; ++t) ScaleBy(out + t * stride, token_scales[t], num_rows);
  });
}

}  // namespace lowbit
#endif  // HWY_ONCE
