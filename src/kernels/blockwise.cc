#include "src/kernels/blockwise.h"

#include <memory>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/kernels/blockwise.cc"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "hwy/highway.h"
#include "src/kernels/blockwise-inl.h"
#include "src/kernels/gather-inl.h"

#ifndef LOWBIT_KERNELS_BLOCKWISE_TASK_
#define LOWBIT_KERNELS_BLOCKWISE_TASK_
namespace lowbit {

// A part of a matrix: all blocks of some rows, or all rows of some blocks.
struct BlockwiseTask {
  size_t row, end_row;
  size_t block, end_block;
};

struct BlockwiseResult {
  BlockwiseError error;
  bool is_finite;
};

}  // namespace lowbit
#endif  // LOWBIT_KERNELS_BLOCKWISE_TASK_

HWY_BEFORE_NAMESPACE();
namespace lowbit {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Weight (row + lane, k + i) as to[i * N + lane], 0 in lanes from num_rows on. Returns the bits of the largest magnitude
// in each lane.
hn::Vec<hn::RebindToUnsigned<SearchTag>> LoadBlocks(const WeightView& weights, size_t row, size_t num_rows, size_t k,
                                                    size_t num, float* HWY_RESTRICT rows, float* HWY_RESTRICT to) {
  const SearchTag df;
  const hn::RebindToUnsigned<SearchTag> du;
  const size_t N = hn::Lanes(df);
  const uint8_t* from =
      weights.data + static_cast<ptrdiff_t>(row) * weights.row_stride + static_cast<ptrdiff_t>(k) * weights.col_stride;
  WeightView part = weights;
  const ptrdiff_t size = weights.type == WeightView::Type::kF32 ? 4 : 2;
  if (num_rows < N) hwy::ZeroBytes(to, num * N * sizeof(float));
  if (weights.row_stride == size) {
    part.K = num_rows;
    for (size_t i = 0; i < num; ++i) {
      ConvertContiguous(part, from + static_cast<ptrdiff_t>(i) * weights.col_stride, to + i * N);
    }
  } else {
    part.data = from;
    part.K = num;
    Gather(part, 0, num_rows, rows);
    for (size_t lane = 0; lane < num_rows; ++lane) {
      for (size_t i = 0; i < num; ++i) to[i * N + lane] = rows[lane * num + i];
    }
  }
  auto largest = hn::Zero(du);
  for (size_t i = 0; i < num; ++i) {
    largest = hn::Max(largest, hn::BitCast(du, hn::Abs(hn::Load(df, to + i * N))));
  }
  return largest;
}

// Rows of codes: block `lane` goes to out + lane * row_bytes.
void PackRows(const BlockTile& tile, const BlockwiseSpec& spec, uint32_t flip, size_t num_rows, size_t row_bytes,
              uint8_t* out) {
  const SearchTag df;
  const hn::RebindToUnsigned<SearchTag> du;
  const hn::RebindToSigned<SearchTag> di;
  const size_t N = hn::Lanes(df);
  const size_t in_word = 32 / static_cast<size_t>(spec.bits), num_words = spec.block_size / in_word;
  HWY_ALIGN uint32_t words[kMostBlock / 4 * kMaxGroups];
  for (size_t m = 0; m < num_words; ++m) {
    auto word = hn::Zero(du);
    for (size_t j = 0; j < in_word && m * in_word + j < tile.num; ++j) {
      const auto code = hn::BitCast(du, hn::ConvertTo(di, hn::Load(df, tile.codes + (m * in_word + j) * N)));
      const auto bits = hn::Xor(code, hn::Set(du, flip));
      word = hn::Or(word, hn::ShiftLeftSame(bits, static_cast<int>(j) * spec.bits));
    }
    hn::Store(word, du, words + m * N);
  }
  for (size_t lane = 0; lane < num_rows; ++lane) {
    for (size_t m = 0; m < num_words; ++m) {
      hwy::CopyBytes<4>(words + m * N + lane, out + lane * row_bytes + 4 * m);
    }
  }
}

// One code a byte, for PackStream: code i of block `lane` goes to out[i * stride + lane].
void StoreColumns(const BlockTile& tile, uint32_t flip, size_t num_rows, size_t stride, uint8_t* out) {
  const SearchTag df;
  const hn::RebindToSigned<SearchTag> di;
  const hn::Rebind<uint8_t, SearchTag> du8;
  const size_t N = hn::Lanes(df);
  for (size_t i = 0; i < tile.num; ++i) {
    const auto code = hn::DemoteTo(du8, hn::ConvertTo(di, hn::Load(df, tile.codes + i * N)));
    hn::StoreN(hn::Xor(code, hn::Set(du8, static_cast<uint8_t>(flip))), du8, out + i * stride, num_rows);
  }
}

// num codes from the lowest bits on.
void PackStream(const uint8_t* codes, size_t num, int bits, uint8_t* out) {
  if (bits == 8) {
    hwy::CopyBytes(codes, out, num);
    return;
  }
  const size_t whole = num * static_cast<size_t>(bits) / 8;
  if (bits == 4) {
    for (size_t i = 0; i < whole; ++i) out[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  } else {
    for (size_t i = 0; i < whole; ++i) {
      const uint8_t* c = codes + 4 * i;
      out[i] = static_cast<uint8_t>(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
    }
  }
  const size_t in_byte = 8 / static_cast<size_t>(bits);
  if (whole * in_byte == num) return;
  out[whole] = 0;
  for (size_t i = whole * in_byte; i < num; ++i) {
    out[whole] |= static_cast<uint8_t>(codes[i] << (static_cast<size_t>(bits) * (i % in_byte)));
  }
}

void AddError(const BlockTile& tile, size_t num_rows, BlockwiseError* sums) {
  const SearchTag df;
  using V = hn::Vec<SearchTag>;
  const size_t N = hn::Lanes(df);
  const V unit_scale = hn::Mul(hn::Load(df, tile.scale), hn::Load(df, tile.factor));
  V squares = hn::Zero(df);
  for (size_t i = 0; i < tile.num; ++i) {
    const V x = hn::Load(df, tile.unit + i * N);
    squares = hn::Add(squares, hn::Mul(x, x));
  }
  HWY_ALIGN float error[kMaxGroups], weight[kMaxGroups];
  hn::Store(SquaredError<false>(tile, tile.codes, unit_scale, hn::Load(df, tile.zero_point)), df, error);
  hn::Store(squares, df, weight);
  for (size_t lane = 0; lane < num_rows; ++lane) {
    const double inverse = 1.0 / tile.factor[lane];
    sums->squared_error += error[lane] * inverse * inverse;
    sums->squared_weight += weight[lane] * inverse * inverse;
  }
}

// Writes a task's part of the output. importance: as prepared by QuantizeBlockwise, or null. buffer: space for the floats
// of a block in each lane. stripe: for kColumns, block_size * rows bytes.
BlockwiseResult QuantizeTask(const WeightView& weights, const BlockwiseSpec& spec, const float* importance,
                             const BlockwiseTask& task, const BlockwiseOutput& out, BlockTile& tile, uint8_t* stripe) {
  const SearchTag df;
  const size_t N = hn::Lanes(df), num_rows = weights.num_rows;
  const size_t num_blocks = spec.NumBlocks(weights.K);
  const size_t blob = spec.block_size * static_cast<size_t>(spec.bits) / 8;
  const uint32_t flip = spec.is_signed ? 1u << (spec.bits - 1) : 0;
  const bool columns = spec.layout == BlockwiseSpec::Layout::kColumns;
  BlockwiseResult result = {{0.0, 0.0}, true};
  tile.weighted = importance != nullptr;
  for (size_t row = task.row; row < task.end_row; row += N) {
    const size_t rows = HWY_MIN(N, task.end_row - row);
    for (size_t block = task.block; block < task.end_block; ++block) {
      const size_t k = block * spec.block_size;
      tile.num = HWY_MIN(spec.block_size, weights.K - k);
      const auto magnitudes = LoadBlocks(weights, row, rows, k, tile.num, tile.trial, tile.x);
      const hn::RebindToUnsigned<SearchTag> du;
      if (!hn::AllTrue(du, hn::Lt(magnitudes, hn::Set(du, 0x7F800000)))) return {{0.0, 0.0}, false};
      if (tile.weighted) {
        for (size_t i = 0; i < tile.num; ++i) hn::Store(hn::Set(df, importance[k + i]), df, tile.w + i * N);
      }
      Normalize(tile, magnitudes);
      switch (spec.method) {
        case BlockwiseSpec::Method::kRound:
          RoundBlocks(tile, spec);
          break;
        case BlockwiseSpec::Method::kSearch:
          if (tile.weighted) {
            SearchBlocks<true>(tile, spec);
          } else {
            SearchBlocks<false>(tile, spec);
          }
          break;
        case BlockwiseSpec::Method::kHqq:
          HqqBlocks(tile, spec);
          break;
      }
      AddError(tile, rows, &result.error);
      if (columns) {
        StoreColumns(tile, flip, rows, num_rows, stripe + row);
      } else {
        const size_t at = row * num_blocks + block;
        PackRows(tile, spec, flip, rows, num_blocks * blob, out.codes + at * blob);
      }
      for (size_t lane = 0; lane < rows; ++lane) {
        const size_t at = columns ? block * num_rows + row + lane : (row + lane) * num_blocks + block;
        out.scales[at] = tile.scale[lane];
        out.zero_points[at] = static_cast<uint8_t>(tile.zero_point[lane]);
      }
    }
  }
  if (columns) {
    const size_t k = task.block * spec.block_size;
    PackStream(stripe, tile.num * num_rows, spec.bits, out.codes + k * num_rows * static_cast<size_t>(spec.bits) / 8);
  }
  return result;
}

void QuantizeTaskWithTile(const WeightView& weights, const BlockwiseSpec& spec, const float* importance,
                          const BlockwiseTask& task, const BlockwiseOutput& out, uint8_t* stripe,
                          BlockwiseResult* result) {
  const std::unique_ptr<BlockTile> tile(new BlockTile);
  *result = QuantizeTask(weights, spec, importance, task, out, *tile, stripe);
}

}  // namespace HWY_NAMESPACE
}  // namespace lowbit
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>
#include <vector>

#include "src/base/error.h"
#include "src/base/threads.h"
#include "src/io/mapped_file.h"

namespace lowbit {
namespace {

HWY_EXPORT(QuantizeTaskWithTile);
HWY_EXPORT(Gather);

// Rows of a task in kRows: a multiple of every number of lanes. Transposed weights are read 512 bytes at a time.
constexpr size_t kTaskRows = 128;
// Weights are released after so many.
constexpr size_t kPieceWeights = 16 * 1024 * 1024;

// The importances of each block, divided by the largest of the block; 1 if all are 0.
std::vector<float> Prepared(const float* importance, size_t K, size_t block_size) {
  std::vector<float> prepared(K, 1.0f);
  for (size_t begin = 0; begin < K; begin += block_size) {
    const size_t end = std::min(K, begin + block_size);
    const float largest = *std::max_element(importance + begin, importance + end);
    if (largest == 0.0f) continue;
    for (size_t k = begin; k < end; ++k) prepared[k] = importance[k] / largest;
  }
  return prepared;
}

void CheckImportance(const float* importance, const BlockwiseSpec& spec, size_t K) {
  if (spec.method != BlockwiseSpec::Method::kSearch) throw InputError("only method search takes importances");
  for (size_t k = 0; k < K; ++k) {
    if (!(importance[k] >= 0.0f) || std::isinf(importance[k])) {
      throw InputError(Str("importance of column ", k, " is ", importance[k]))
          .Expected("a finite value that is not negative")
          .Found(importance[k]);
    }
  }
}

[[noreturn]] void FailNonfinite(const WeightView& weights) {
  std::vector<float> row(weights.K);
  for (size_t r = 0; r < weights.num_rows; ++r) {
    HWY_DYNAMIC_DISPATCH(Gather)(weights, r, 1, row.data());
    for (size_t k = 0; k < weights.K; ++k) {
      if (std::isfinite(row[k])) continue;
      const char* found = std::isnan(row[k]) ? "NaN" : row[k] < 0 ? "-infinity" : "infinity";
      throw InputError(Str("the weight of output ", r, " and input ", k, " is ", found))
          .Expected("a finite number")
          .Found(found);
    }
  }
  throw InputError("a weight that is NaN or infinite changed during the call");
}

// Releases rows [begin, end) of the memory's outer dimension.
void Release(const WeightView& weights, bool outer_is_k, size_t begin, size_t end) {
  const ptrdiff_t outer = outer_is_k ? weights.col_stride : weights.row_stride;
  if (outer <= 0) return;
  MappedFile::Release(weights.data + static_cast<ptrdiff_t>(begin) * outer, (end - begin) * static_cast<size_t>(outer));
}

}  // namespace

void CheckBlockwise(const BlockwiseSpec& spec) {
  if (spec.bits != 2 && spec.bits != 4 && spec.bits != 8)
    throw InputError("bits:").Expected("2, 4 or 8").Found(spec.bits);
  const size_t block = spec.block_size;
  if (block < 16 || block > 256 || (block & (block - 1)) != 0) {
    throw InputError("block_size:").Expected("16, 32, 64, 128 or 256").Found(block);
  }
  if (spec.method == BlockwiseSpec::Method::kHqq && spec.symmetric) {
    throw InputError("method hqq looks for zero points, symmetric weights have none");
  }
}

BlockwiseError QuantizeBlockwise(const WeightView& weights, const BlockwiseSpec& spec, const float* importance,
                                 size_t num_threads, const BlockwiseOutput& out) {
  const size_t K = weights.K, rows = weights.num_rows, num_blocks = spec.NumBlocks(K);
  std::vector<float> prepared;
  if (importance != nullptr) {
    CheckImportance(importance, spec, K);
    prepared = Prepared(importance, K, spec.block_size);
    importance = prepared.data();
  }
  if (K == 0 || rows == 0) return {0.0, 0.0};
  const bool columns = spec.layout == BlockwiseSpec::Layout::kColumns;
  const bool outer_is_k = weights.col_stride > weights.row_stride;
  // The outer dimension of the weights in pieces; inside a piece one task after the other.
  const size_t outer_step = outer_is_k
                                ? std::max<size_t>(1, kPieceWeights / rows / spec.block_size)
                                : (std::max<size_t>(1, kPieceWeights / K) + kTaskRows - 1) / kTaskRows * kTaskRows;
  std::vector<BlockwiseTask> tasks;
  BlockwiseError total = {0.0, 0.0};
  const size_t outer_size = outer_is_k ? num_blocks : columns ? 1 : rows;
  for (size_t begin = 0; begin < outer_size; begin += outer_step) {
    const size_t end = std::min(outer_size, begin + outer_step);
    tasks.clear();
    if (columns) {
      const size_t first = outer_is_k ? begin : 0, last = outer_is_k ? end : num_blocks;
      for (size_t block = first; block < last; ++block) tasks.push_back({0, rows, block, block + 1});
    } else {
      const size_t first = outer_is_k ? 0 : begin, last = outer_is_k ? rows : end;
      for (size_t row = first; row < last; row += kTaskRows) {
        const size_t end_row = std::min(last, row + kTaskRows);
        tasks.push_back({row, end_row, outer_is_k ? begin : 0, outer_is_k ? end : num_blocks});
      }
    }
    std::vector<BlockwiseResult> results(tasks.size());
    ParallelFor(tasks.size(), num_threads, [&](size_t index) {
      const std::unique_ptr<uint8_t[]> stripe(columns ? new uint8_t[spec.block_size * rows] : nullptr);
      HWY_DYNAMIC_DISPATCH(QuantizeTaskWithTile)
      (weights, spec, importance, tasks[index], out, stripe.get(), &results[index]);
    });
    for (const BlockwiseResult& result : results) {
      if (!result.is_finite) FailNonfinite(weights);
      total.squared_error += result.error.squared_error;
      total.squared_weight += result.error.squared_weight;
    }
    if (outer_is_k) {
      Release(weights, true, begin * spec.block_size, std::min(K, end * spec.block_size));
    } else if (!columns) {
      Release(weights, false, begin, end);
    }
  }
  if (columns && !outer_is_k) Release(weights, false, 0, rows);
  return total;
}

}  // namespace lowbit
#endif  // HWY_ONCE
