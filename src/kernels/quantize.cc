#include "src/kernels/quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/quantize.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/kernels/gather-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The index of the first NaN or infinity, or n.
size_t FindNonfinite(const float* x, size_t n) {
  const hn::ScalableTag<float> df;
  const size_t N = hn::Lanes(df);
  size_t i = 0;
  for (; i + N <= n; i += N) {
    const intptr_t at = hn::FindFirstTrue(df, hn::Not(hn::IsFinite(hn::LoadU(df, x + i))));
    if (at >= 0) return i + static_cast<size_t>(at);
  }
  for (; i < n; ++i) {
    if (!hwy::ScalarIsFinite(x[i])) return i;
  }
  return n;
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "src/base/error.h"
#include "src/base/threads.h"

namespace lowbit {
namespace {

HWY_EXPORT(Gather);
HWY_EXPORT(FindNonfinite);

constexpr size_t kChunkFloats = 64 * 1024;

// Rows per task: at most as many as fit in the cache, and few enough that all threads end together.
size_t ChunkRows(size_t num_rows, size_t K, size_t num_threads) {
  const size_t cached = kChunkFloats / std::max<size_t>(1, K);
  const size_t shared = num_threads == 1 ? num_rows : num_rows / (4 * num_threads);
  return std::max<size_t>(1, std::min(cached, shared));
}

// Buffers for the largest number of threads that ran at one time.
class Buffers {
 public:
  explicit Buffers(size_t num_floats) : num_floats_(num_floats) {}

  std::unique_ptr<float[]> Take() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        std::unique_ptr<float[]> buffer = std::move(free_.back());
        free_.pop_back();
        return buffer;
      }
    }
    return std::unique_ptr<float[]>(new float[num_floats_]);
  }

  void Give(std::unique_ptr<float[]> buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  const size_t num_floats_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<float[]>> free_;
};

// The first non-finite weight in the order of rows and columns. Tasks start in that order, so everything before a found
// weight is checked too, and the result does not depend on the threads.
class FirstBroken {
 public:
  void Found(size_t row, size_t column, float value) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (found_ && row >= row_) return;
    found_ = true;
    row_ = row;
    column_ = column;
    value_ = value;
  }

  bool Before(size_t row) {
    std::lock_guard<std::mutex> lock(mutex_);
    return found_ && row_ < row;
  }

  bool found() const { return found_; }
  size_t row() const { return row_; }
  size_t column() const { return column_; }
  float value() const { return value_; }

 private:
  std::mutex mutex_;
  bool found_ = false;
  size_t row_ = 0, column_ = 0;
  float value_ = 0;
};

void CheckBlocks(const Format& format, size_t K) {
  if (K % format.block_size != 0) {
    throw InputError(Str(format.name, ": rows have ", K, " weights"))
        .Expected("a multiple of the block size ", format.block_size)
        .Found(K);
  }
}

void CheckArguments(const Format& format, const float* importance, size_t K) {
  CheckBlocks(format, K);
  if (importance == nullptr) {
    if (format.needs_imatrix)
      throw InputError(Str(format.name, " needs an importance matrix: pass one, or choose another format"));
    return;
  }
  for (size_t k = 0; k < K; ++k) {
    if (!(importance[k] >= 0.0f) || std::isinf(importance[k])) {
      throw InputError(Str("importance of column ", k, " is ", importance[k]))
          .Expected("a finite value that is not negative")
          .Found(importance[k]);
    }
  }
}

}  // namespace

void QuantizeRows(const WeightView& weights, const Format& format, const float* importance, bool allow_nonfinite,
                  size_t num_threads, uint8_t* out) {
  const size_t K = weights.K;
  CheckArguments(format, importance, K);
  if (K == 0 || weights.num_rows == 0) return;
  const size_t chunk_rows = ChunkRows(weights.num_rows, K, num_threads);
  const size_t row_bytes = format.RowBytes(K);
  const bool in_place = weights.type == WeightView::Type::kF32 && weights.col_stride == sizeof(float) &&
                        (weights.num_rows == 1 || weights.row_stride == static_cast<ptrdiff_t>(K * sizeof(float))) &&
                        reinterpret_cast<uintptr_t>(weights.data) % alignof(float) == 0;
  Buffers buffers(chunk_rows * K);
  FirstBroken nonfinite;
  const auto task = [&](size_t chunk) {
    const size_t row = chunk * chunk_rows;
    if (nonfinite.Before(row)) return;
    const size_t num = std::min(chunk_rows, weights.num_rows - row);
    std::unique_ptr<float[]> buffer;
    const float* x = reinterpret_cast<const float*>(weights.data) + row * K;
    if (!in_place) {
      buffer = buffers.Take();
      HWY_DYNAMIC_DISPATCH(Gather)(weights, row, num, buffer.get());
      x = buffer.get();
    }
    const size_t bad = allow_nonfinite ? num * K : HWY_DYNAMIC_DISPATCH(FindNonfinite)(x, num * K);
    if (bad < num * K) {
      nonfinite.Found(row + bad / K, bad % K, x[bad]);
    } else {
      format.encode(x, importance, num, K, out + row * row_bytes);
    }
    if (buffer) buffers.Give(std::move(buffer));
  };
  ParallelFor((weights.num_rows + chunk_rows - 1) / chunk_rows, num_threads, task);
  if (!nonfinite.found()) return;
  const float value = nonfinite.value();
  const char* found = std::isnan(value) ? "NaN" : value < 0 ? "-infinity" : "infinity";
  throw InputError(Str("weight at row ", nonfinite.row(), ", column ", nonfinite.column(), " is ", found))
      .Expected("a finite number")
      .Found(found);
}

void DequantizeRows(const uint8_t* rows, ptrdiff_t row_stride, const Format& format, size_t num_rows, size_t K,
                    size_t num_threads, float* out) {
  CheckBlocks(format, K);
  const size_t chunk_rows = ChunkRows(num_rows, K, num_threads);
  const auto task = [&](size_t chunk) {
    const size_t end = std::min(num_rows, (chunk + 1) * chunk_rows);
    for (size_t r = chunk * chunk_rows; r < end; ++r) {
      format.decode(rows + static_cast<ptrdiff_t>(r) * row_stride, K / format.block_size, out + r * K);
    }
  };
  ParallelFor((num_rows + chunk_rows - 1) / chunk_rows, num_threads, task);
}

void UnpackRows(const uint8_t* rows, ptrdiff_t row_stride, const Format& format, size_t num_rows, size_t K,
                size_t num_threads, int8_t* levels, float* scales, float* minima) {
  CheckBlocks(format, K);
  if (format.unpack == nullptr) {
    throw InputError(Str(format.name, ":")).Expected("a format of blocks").Found("floats");
  }
  const size_t chunk_rows = ChunkRows(num_rows, K, num_threads);
  const auto task = [&](size_t chunk) {
    const size_t end = std::min(num_rows, (chunk + 1) * chunk_rows);
    for (size_t r = chunk * chunk_rows; r < end; ++r) {
      const size_t group = r * (K / 16);
      format.unpack(rows + static_cast<ptrdiff_t>(r) * row_stride, K / format.block_size, levels + r * K,
                    scales + group, minima + group);
    }
  };
  ParallelFor((num_rows + chunk_rows - 1) / chunk_rows, num_threads, task);
}

void CheckScales(const uint8_t* rows, const Format& format, size_t num_rows, size_t K, size_t num_threads,
                 size_t first_row) {
  CheckBlocks(format, K);
  // Decoded in pieces that stay in the L1 cache. This costs a few percent of encoding.
  constexpr size_t kPiece = 4096;
  const size_t num_blocks = K / format.block_size;
  const size_t piece = std::max<size_t>(1, kPiece / format.block_size);
  const size_t chunk_rows = ChunkRows(num_rows, K, num_threads);
  FirstBroken broken;
  const auto task = [&](size_t chunk) {
    const std::unique_ptr<float[]> floats(new float[piece * format.block_size]);
    const size_t end = std::min(num_rows, (chunk + 1) * chunk_rows);
    for (size_t r = chunk * chunk_rows; r < end && !broken.Before(r); ++r) {
      for (size_t b = 0; b < num_blocks; b += piece) {
        const size_t n = std::min(piece, num_blocks - b);
        format.decode(rows + r * format.RowBytes(K) + b * format.block_bytes, n, floats.get());
        const size_t bad = HWY_DYNAMIC_DISPATCH(FindNonfinite)(floats.get(), n * format.block_size);
        if (bad == n * format.block_size) continue;
        broken.Found(r, b * format.block_size + bad, floats[bad]);
        break;
      }
    }
  };
  ParallelFor((num_rows + chunk_rows - 1) / chunk_rows, num_threads, task);
  if (!broken.found()) return;
  throw InputError(Str("row ", first_row + broken.row(), ", block ", broken.column() / format.block_size, ": ",
                       format.name, " has a scale that is not finite"));
}

}  // namespace lowbit
#endif  // HWY_ONCE
