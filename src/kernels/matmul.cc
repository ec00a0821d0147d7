#include "src/kernels/matmul.h"

#include <algorithm>
#include <type_traits>

#include "src/base/error.h"
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

// A buffer of the thread, reused by later calls. Those that are in use at the same time have different slots.
template <typename T>
T* ThreadBuffer(size_t num, size_t slot = 0) {
  thread_local hwy::AlignedVector<T> buffers[2];
  hwy::AlignedVector<T>& buffer = buffers[slot];
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

bool IsInteger(Compute how) { return how == Compute::kInt8 || how == Compute::kInt16; }

Compute Resolve(Compute compute, const Format& format, size_t num_tokens) {
  const bool is_packed = format.unpack_panel != nullptr;
  if (compute == Compute::kAuto) {
    if (is_packed) return Compute::kInt8;
    compute = num_tokens < kMinBf16Tokens ? Compute::kF32 : Compute::kBf16;
  }
  const bool rounds_f32 = compute == Compute::kBf16 && IsF32(format);
  return (IsInteger(compute) && !is_packed) || rounds_f32 ? Compute::kF32 : compute;
}

// Rows of the integer products for a token. Rounding rows of RoundToken leaves nothing.
size_t NumDigits(const MatmulInput& input, Compute how) { return how == Compute::kInt16 && !input.rounded ? 2 : 1; }

// Rounds row t to so many digits of 8 bits: the second is what the first leaves.
void RoundToDigits(const float* x, size_t t, size_t digits, MatmulInput& input) {
  const size_t row = digits * t, num_rows = digits * input.num_tokens;
  input.int8.Round(x, row, num_rows, input.K, input.rounded ? &input.token_scales[t] : nullptr);
  if (digits == 1) return;
  float* rest = ThreadBuffer<float>(input.K, /*slot=*/1);
  input.int8.Subtract(x, row, num_rows, input.K, rest);
  input.int8.Round(rest, row + 1, num_rows, input.K);
}

// Up to this many tokens each worker prepares the input for itself, which takes less time than a barrier.
constexpr size_t kMostOwnTokens = 4;

// Rows per task: few enough to balance the work, enough to amortise the loop overhead.
size_t RowsPerTask(size_t num_rows, size_t num_workers) {
  const size_t strip = StripRows();
  return std::clamp<size_t>(num_rows / (num_workers * 16) / strip, 1, 8) * strip;
}

}  // namespace

Compute ParseCompute(const std::string& name) {
  if (name == "auto") return Compute::kAuto;
  if (name == "int8") return Compute::kInt8;
  if (name == "int16") return Compute::kInt16;
  if (name == "bf16") return Compute::kBf16;
  if (name == "f32") return Compute::kF32;
  throw InputError("compute:").Expected("auto, int8, int16, bf16 or f32").Found(Quoted(name));
}

void Matmul::Reserve(MatmulInput& input, size_t num_tokens, const Product* products, size_t num_products) const {
  const size_t K = products[0].weights.K;
  input.num_tokens = num_tokens;
  input.K = K;
  if (input.token_scales.size() < num_tokens) input.token_scales.resize(num_tokens);
  if (input.starts.size() < num_products) input.starts.resize(num_products);
  for (size_t i = 0; i < num_products; ++i) {
    const Format& format = *products[i].weights.format;
    const Compute how = Resolve(compute_, format, num_tokens);
    const size_t num_rows = num_tokens * NumDigits(input, how);
    switch (how) {
      case Compute::kInt8:
      case Compute::kInt16:
        input.int8.Reserve(num_rows, K);
        input.starts[i].Reserve(format, input.int8.View(num_rows, K));
        break;
      case Compute::kBf16:
        if (input.bf16.size() < num_tokens * K) input.bf16.resize(num_tokens * K);
        break;
      default:
        if (input.f32.size() < num_tokens * K) input.f32.resize(num_tokens * K);
    }
  }
}

void Matmul::PrepareRow(MatmulInput& input, size_t t, FunctionRef<Row&> row, const Product* products,
                        size_t num_products) const {
  const size_t K = input.K;
  float* buffer = ThreadBuffer<float>(K);
  Row provided{t, buffer, buffer};
  row(provided);
  if (input.rounded) {
    if (provided.x != buffer) std::copy_n(provided.x, K, buffer);
    input.token_scales[t] = RoundToken(buffer, K);
    provided.x = buffer;
  }
  const float* x = provided.x;
  bool has_integers = false, has_bf16 = false, has_f32 = false;
  for (size_t i = 0; i < num_products; ++i) {
    const Format& format = *products[i].weights.format;
    const Compute how = Resolve(compute_, format, input.num_tokens);
    if (IsInteger(how)) {
      const size_t digits = NumDigits(input, how);
      if (!has_integers) RoundToDigits(x, t, digits, input);
      for (size_t row = digits * t; row < digits * (t + 1); ++row) {
        input.starts[i].Compute(format, input.int8.View(digits * input.num_tokens, K), row);
      }
    } else if (how == Compute::kBf16 && !has_bf16) {
      HWY_DYNAMIC_DISPATCH(RoundToBf16)(x, K, input.bf16.data() + t * K);
    } else if (how == Compute::kF32 && !has_f32) {
      std::copy_n(x, K, input.f32.data() + t * K);
    }
    has_integers |= IsInteger(how);
    has_bf16 |= how == Compute::kBf16;
    has_f32 |= how == Compute::kF32;
  }
}

void Matmul::MultiplyRows(const MatmulInput& input, size_t index, const Product& product, Range rows) const {
  const Matrix& w = product.weights;
  const size_t num_tokens = input.num_tokens;
  const Compute how = Resolve(compute_, *w.format, num_tokens);
  const size_t digits = NumDigits(input, how);
  float* out = product.out + rows.first;
  const bool is_direct = digits == 1 && !product.add;
  float* result = is_direct ? out : ThreadBuffer<float>(digits * num_tokens * rows.num, /*slot=*/1);
  const size_t stride = is_direct ? product.out_stride : rows.num;
  if (IsInteger(how)) {
    const Activations x = input.int8.View(digits * num_tokens, w.K);
    MultiplyInt8(w, rows.first, rows.num, x, input.starts[index].data(), result, stride);
  } else {
    // In panels of 32 decoded rows.
    for (size_t n = 0; n < rows.num; n += 32) {
      const size_t first = rows.first + n, num = std::min<size_t>(32, rows.num - n);
      if (how == Compute::kBf16) {
        const hwy::bfloat16_t* panel = DecodeBf16(w, first, num);
        HWY_DYNAMIC_DISPATCH(PanelBf16)(panel, num, input.bf16.data(), num_tokens, w.K, result + n, stride);
      } else {
        const float* panel = DecodeF32(w, first, num);
        HWY_DYNAMIC_DISPATCH(PanelF32)(panel, num, input.f32.data(), num_tokens, w.K, result + n, stride);
      }
    }
  }
  for (size_t t = 0; t < num_tokens; ++t) {
    float* of_token = result + t * digits * stride;
    if (digits == 2) AddTo(of_token, of_token + stride, rows.num);
    if (input.rounded && !IsInteger(how)) ScaleBy(of_token, input.token_scales[t], rows.num);
    if (product.scale != 1.0f) ScaleBy(of_token, product.scale, rows.num);
    if (product.bias) AddTo(of_token, product.bias + rows.first, rows.num);
    if (product.add) {
      AddTo(out + t * product.out_stride, of_token, rows.num);
    } else if (!is_direct) {
      std::copy_n(of_token, rows.num, out + t * product.out_stride);
    }
  }
}

void Matmul::Run(Worker& worker, size_t num_tokens, FunctionRef<Row&> row, const Product* products, size_t num_products,
                 bool round_tokens, const FunctionRef<Range>* finish) {
  if (num_tokens == 0 || num_products == 0) return;
  const bool alone = num_tokens <= kMostOwnTokens || worker.num() == 1;
  MatmulInput& input = alone ? own_[worker.id()] : shared_;
  if (alone || worker.id() == 0) {
    input.rounded = round_tokens;
    Reserve(input, num_tokens, products, num_products);
  }
  // Tasks of all products, one after another, or of all at once.
  const size_t num_parts = finish ? 1 : num_products;
  const auto step = [&](size_t i) { return RowsPerTask(products[i].weights.N, num_threads_); };
  size_t num_tasks = 0;
  for (size_t i = 0; i < num_parts; ++i) num_tasks += (products[i].weights.N + step(i) - 1) / step(i);
  if (num_tasks == 0) return;
  const auto locate = [&](size_t task) {
    size_t i = 0;
    for (size_t num; task >= (num = (products[i].weights.N + step(i) - 1) / step(i)); ++i) task -= num;
    return std::pair(i, Range{task * step(i), std::min(step(i), products[i].weights.N - task * step(i))});
  };
  // The first rows arrive while the input is prepared.
  const auto [product, first] = locate(worker.FirstTask(num_tasks));
  for (size_t i = product; i < (finish ? num_products : product + 1); ++i) {
    const Matrix& weights = products[i].weights;
    if (IsInteger(Resolve(compute_, *weights.format, num_tokens))) PrefetchFirstRows(weights, first.first);
  }
  const auto prepare = [&](size_t t) { PrepareRow(input, t, row, products, num_products); };
  if (alone && worker.num() != 1) {
    for (size_t t = 0; t < num_tokens; ++t) prepare(t);
  } else {
    worker.Barrier();
    // A worker prepares all tokens of a tile: their values share cache lines, which two would take from each other.
    const size_t digits = NumDigits(input, compute_);
    worker.Share(num_tokens, [&](size_t t) {
      const TokenTile tile = TileOf(digits * num_tokens, digits * t);
      if (tile.first != digits * t) return;
      for (size_t i = 0; i < tile.num / digits; ++i) prepare(t + i);
    });
    worker.Barrier();
  }
  worker.Share(num_tasks, [&](size_t task) {
    const auto [i, rows] = locate(task);
    MultiplyRows(input, i, products[i], rows);
    if (!finish) return;
    for (size_t other = 1; other < num_products; ++other) MultiplyRows(input, other, products[other], rows);
    (*finish)(rows);
  });
}

void Matmul::operator()(const float* x, size_t num_tokens, const Product& product, bool round_tokens) {
  const size_t K = product.weights.K;
  RunTeam(num_threads_, [&](Worker& worker) {
    Run(worker, num_tokens, [&](Row& row) { row.x = x + row.token * K; }, &product, 1, round_tokens);
  });
}

}  // namespace lowbit
#endif  // HWY_ONCE
