#include "src/kernels/compare.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/compare.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/kernels/gather-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Adds the errors of n weights to a row's sums. In double, differences and squares of floats are exact or nearly so.
void AddErrors(const float* HWY_RESTRICT w, const float* HWY_RESTRICT q, size_t n, RowError* out) {
  const hn::ScalableTag<float> df;
  const hn::Repartition<double, decltype(df)> dd;
  using VD = hn::Vec<decltype(dd)>;
  VD error0 = hn::Zero(dd), error1 = hn::Zero(dd), weight0 = hn::Zero(dd), weight1 = hn::Zero(dd);
  VD largest = hn::Zero(dd);
  const auto add = [&](hn::Vec<decltype(df)> wv, hn::Vec<decltype(df)> qv) HWY_ATTR {
    const VD w0 = hn::PromoteLowerTo(dd, wv), w1 = hn::PromoteUpperTo(dd, wv);
    const VD d0 = hn::Sub(w0, hn::PromoteLowerTo(dd, qv)), d1 = hn::Sub(w1, hn::PromoteUpperTo(dd, qv));
    error0 = hn::MulAdd(d0, d0, error0);
    error1 = hn::MulAdd(d1, d1, error1);
    weight0 = hn::MulAdd(w0, w0, weight0);
    weight1 = hn::MulAdd(w1, w1, weight1);
    largest = hn::Max(largest, hn::Max(hn::Abs(d0), hn::Abs(d1)));
  };
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= n; i += N) add(hn::LoadU(df, w + i), hn::LoadU(df, q + i));
  if (i < n) add(hn::LoadN(df, w + i, n - i), hn::LoadN(df, q + i, n - i));
  out->squared_error += hn::ReduceSum(dd, hn::Add(error0, error1));
  out->squared_weight += hn::ReduceSum(dd, hn::Add(weight0, weight1));
  // The result of Max for NaN differs between targets. The sum contains NaN in any case.
  const double most = hn::ReduceMax(dd, largest);
  if (!(out->largest >= most)) out->largest = most;
  if (hwy::ScalarIsNaN(out->squared_error)) out->largest = out->squared_error;
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <memory>

#include "src/base/error.h"
#include "src/base/threads.h"

namespace lowbit {
namespace {

HWY_EXPORT(Gather);
HWY_EXPORT(AddErrors);

// Weights per task: 64 KiB of floats if they must be converted; decoded in pieces of 16 KiB.
constexpr size_t kTask = 16 * 1024;
constexpr size_t kPiece = 4096;

}  // namespace

void CompareRows(const WeightView& weights, const uint8_t* rows, ptrdiff_t row_stride, const Format& format,
                 size_t num_threads, RowError* out) {
  const size_t K = weights.K;
  if (K % format.block_size != 0) {
    throw InputError(Str(format.name, ": rows have ", K, " weights"))
        .Expected("a multiple of the block size ", format.block_size)
        .Found(K);
  }
  const bool in_place = weights.type == WeightView::Type::kF32 && weights.col_stride == sizeof(float) &&
                        weights.row_stride % static_cast<ptrdiff_t>(alignof(float)) == 0 &&
                        reinterpret_cast<uintptr_t>(weights.data) % alignof(float) == 0;
  const size_t task_rows = std::max<size_t>(1, kTask / std::max<size_t>(1, K));
  const size_t num_blocks = K / format.block_size;
  const size_t piece = std::max<size_t>(1, kPiece / format.block_size);
  const auto task = [&](size_t index) {
    const size_t first = index * task_rows, num = std::min(task_rows, weights.num_rows - first);
    const std::unique_ptr<float[]> decoded(new float[piece * format.block_size]);
    std::unique_ptr<float[]> gathered;
    if (!in_place) {
      gathered.reset(new float[num * K]);
      HWY_DYNAMIC_DISPATCH(Gather)(weights, first, num, gathered.get());
    }
    for (size_t r = 0; r < num; ++r) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(first + r);
      const float* w =
          in_place ? reinterpret_cast<const float*>(weights.data + row * weights.row_stride) : gathered.get() + r * K;
      RowError error = {0.0, 0.0, 0.0};
      for (size_t b = 0; b < num_blocks; b += piece) {
        const size_t n = std::min(piece, num_blocks - b);
        format.decode(rows + row * row_stride + b * format.block_bytes, n, decoded.get());
        HWY_DYNAMIC_DISPATCH(AddErrors)(w + b * format.block_size, decoded.get(), n * format.block_size, &error);
      }
      out[row] = error;
    }
  };
  ParallelFor((weights.num_rows + task_rows - 1) / task_rows, num_threads, task);
}

}  // namespace lowbit
#endif  // HWY_ONCE
