// What quantization did to each row of a matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/format.h"
#include "src/kernels/quantize.h"

namespace lowbit {

// One row, w its weights and q what the packed ones decode to, in double: NaN or infinity where either is.
struct RowError {
  double squared_error;   // sum of (w - q)^2
  double squared_weight;  // sum of w^2
  double largest;         // max |w - q|
};

// Compares weights with packed rows, row_stride bytes apart, without a decoded copy: each thread decodes a piece that
// stays in its nearest cache. Throws InputError if block_size does not divide K. Does not depend on num_threads.
void CompareRows(const WeightView& weights, const uint8_t* rows, ptrdiff_t row_stride, const Format& format,
                 size_t num_threads, RowError* out);

}  // namespace lowbit
