// Quantization errors of the rows of a matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/format.h"
#include "src/kernels/quantize.h"

namespace lowbit {

// The error of one row, in double. w: its weights; q: the decoded weights. NaN or infinite if either is.
struct RowError {
  double squared_error;   // sum of (w - q)^2
  double squared_weight;  // sum of w^2
  double largest;         // max |w - q|
};

// Compares weights with packed rows, row_stride bytes apart. There is no decoded copy: each thread decodes pieces that
// stay in its L1 cache. Throws InputError if block_size does not divide K. The result does not depend on num_threads.
void CompareRows(const WeightView& weights, const uint8_t* rows, ptrdiff_t row_stride, const Format& format,
                 size_t num_threads, RowError* out);

}  // namespace lowbit
