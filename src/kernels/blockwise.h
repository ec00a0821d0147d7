// Quantizes matrices to small integers with a scale, and a zero point if wanted, for each block of a row: the weights of
// ONNX's MatMulNBits, GatherBlockQuantized and blocked DequantizeLinear. A weight is scale * (code - zero point).
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/kernels/quantize.h"

namespace lowbit {

struct BlockwiseSpec {
  enum class Method {
    kRound,   // the scale follows from the block's range; the bytes are onnxruntime's
    kSearch,  // the scale and zero point with the smallest squared error among about 75, then fitted; never above kRound
    kHqq,     // half-quadratic optimization: outliers count less than in the squared error
  };
  enum class Layout {
    kRows,     // codes [rows, blocks, block_size * bits / 8]; behind the last weight 0. Scales [rows, blocks]
    kColumns,  // codes [K, rows] without padding. Scales [blocks, rows]
  };

  int bits;           // 2, 4 or 8
  size_t block_size;  // a power of two from 16 to 256
  bool symmetric;     // all zero points are 2^(bits - 1)
  bool half_scales;   // scales are rounded to float16
  bool is_signed;     // codes minus 2^(bits - 1), in two's complement
  Method method;
  Layout layout;

  size_t NumBlocks(size_t K) const { return (K + block_size - 1) / block_size; }
  size_t CodeBytes(size_t rows, size_t K) const {
    const size_t num = layout == Layout::kRows ? rows * NumBlocks(K) * block_size : rows * K;
    return (num * static_cast<size_t>(bits) + 7) / 8;
  }
};

struct BlockwiseOutput {
  uint8_t* codes;        // from the lowest bits on
  float* scales;         // may be negative if symmetric
  uint8_t* zero_points;  // one byte each, in the order of the scales
};

// Sums over all weights w and decoded weights q.
struct BlockwiseError {
  double squared_error;   // of (w - q)^2
  double squared_weight;  // of w^2
};

// Throws InputError unless the spec exists.
void CheckBlockwise(const BlockwiseSpec& spec);

// `importance` is null or has K finite values >= 0: weights of the squared error in kSearch. The bytes depend neither on
// num_threads nor on the SIMD target.
//
// The spec must be valid. Throws InputError for bad importances, and for the first NaN or infinite
// weight.
//
// Memory: a few KiB for each thread; kColumns takes block_size * rows bytes for each thread. Weights in a mapped file
// are released from memory piece by piece (MappedFile::Release).
BlockwiseError QuantizeBlockwise(const WeightView& weights, const BlockwiseSpec& spec, const float* importance,
                                 size_t num_threads, const BlockwiseOutput& out);

}  // namespace lowbit
