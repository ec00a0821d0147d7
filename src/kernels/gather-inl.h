// Converts weights of any type and strides to contiguous floats. Included by files of src/kernels once per SIMD target.
#if defined(LOWBIT_OPS_GATHER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LOWBIT_OPS_GATHER_INL_H_
#undef LOWBIT_OPS_GATHER_INL_H_
#else
#define LOWBIT_OPS_GATHER_INL_H_
#endif

#include <type_traits>

#include "hwy/highway.h"
#include "src/formats/format-inl.h"
#include "src/kernels/quantize.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// n neighbouring weights as floats.
template <class T>
HWY_INLINE void ConvertRow(const uint8_t* from, size_t n, float* HWY_RESTRICT to) {
  const auto promote = [](auto d, auto x) HWY_ATTR {
    if constexpr (std::is_same_v<T, hwy::float16_t>)
      return PromoteHalves(d, x);
    else
      return hn::PromoteTo(d, x);
  };
  const hn::ScalableTag<float> df;
  const hn::Rebind<T, decltype(df)> dt;
  const hn::Repartition<uint8_t, decltype(dt)> du8;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  // Loaded as bytes: the address need not be aligned.
  for (; i + N <= n; i += N) {
    hn::StoreU(promote(df, hn::BitCast(dt, hn::LoadU(du8, from + i * sizeof(T)))), df, to + i);
  }
  if (i == n) return;
  const auto rest = hn::BitCast(dt, hn::LoadN(du8, from + i * sizeof(T), (n - i) * sizeof(T)));
  hn::StoreN(promote(df, rest), df, to + i, n - i);
}

HWY_INLINE void ConvertContiguous(const WeightView& w, const uint8_t* from, float* to) {
  switch (w.type) {
    case WeightView::Type::kF32:
      hwy::CopyBytes(from, to, w.K * sizeof(float));
      return;
    case WeightView::Type::kF16:
      return ConvertRow<hwy::float16_t>(from, w.K, to);
    case WeightView::Type::kBF16:
      return ConvertRow<hwy::bfloat16_t>(from, w.K, to);
  }
}

HWY_INLINE float LoadOne(WeightView::Type type, const uint8_t* from) {
  if (type == WeightView::Type::kF32) {
    float value;
    hwy::CopyBytes<4>(from, &value);
    return value;
  }
  if (type == WeightView::Type::kF16) {
    hwy::float16_t value;
    hwy::CopyBytes<2>(from, &value);
    return hwy::F32FromF16(value);
  }
  hwy::bfloat16_t value;
  hwy::CopyBytes<2>(from, &value);
  return hwy::F32FromBF16(value);
}

// The weights of num_rows rows from first_row on, as contiguous floats.
inline void Gather(const WeightView& w, size_t first_row, size_t num_rows, float* HWY_RESTRICT to) {
  const uint8_t* from = w.data + static_cast<ptrdiff_t>(first_row) * w.row_stride;
  const ptrdiff_t size = w.type == WeightView::Type::kF32 ? 4 : 2;
  if (w.col_stride == size) {
    for (size_t r = 0; r < num_rows; ++r) {
      ConvertContiguous(w, from + static_cast<ptrdiff_t>(r) * w.row_stride, to + r * w.K);
    }
    return;
  }
  // One column at a time, so that a transposed matrix is read along its cache lines. The floats stay in the cache.
  for (size_t k = 0; k < w.K; ++k) {
    const uint8_t* column = from + static_cast<ptrdiff_t>(k) * w.col_stride;
    for (size_t r = 0; r < num_rows; ++r) {
      to[r * w.K + k] = LoadOne(w.type, column + static_cast<ptrdiff_t>(r) * w.row_stride);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#endif  // LOWBIT_OPS_GATHER_INL_H_
