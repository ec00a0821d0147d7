// Rows of weights, as an array holds them, into packed blocks and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/format.h"

namespace lowbit {

// Weight (r, k) lies at data + r * row_stride + k * col_stride. Strides are bytes of any sign and need not be aligned.
struct WeightView {
  enum class Type { kF32, kF16, kBF16 };

  const uint8_t* data;
  Type type;
  ptrdiff_t row_stride;
  ptrdiff_t col_stride;
  size_t num_rows;
  size_t K;
};

// Encodes num_rows rows of K weights into `out`, format.RowBytes(K) each. The bytes do not depend on num_threads.
// `importance` is null or holds K values, finite and not negative; with a negative one ggml takes the square root of
// the product and such, so what it writes means nothing, and it is refused here.
//
// Throws InputError if block_size does not divide K, for missing or bad importances, and for a weight that is NaN or
// infinite, with the row and column of the first. With `allow_nonfinite`, float formats store such weights as they are;
// block formats write what ggml's arithmetic gives, as a rule a block whose scale is infinite or NaN or whose other
// weights are lost (with importances, a row of such blocks).
//
// Memory: rows of f32 that lie together are read in place; else each thread converts chunks of whole rows, as many as
// fit 256 KiB and at least one.
void QuantizeRows(const WeightView& weights, const Format& format, const float* importance, bool allow_nonfinite,
                  size_t num_threads, uint8_t* out);

// Decodes num_rows rows of K weights, row_stride bytes apart, into contiguous floats.
void DequantizeRows(const uint8_t* rows, ptrdiff_t row_stride, const Format& format, size_t num_rows, size_t K,
                    size_t num_threads, float* out);

// Throws InputError for the first of num_rows contiguous packed rows with a block that decodes to NaN or infinity, that
// is, one of whose scales is. It names row first_row + r.
void CheckScales(const uint8_t* rows, const Format& format, size_t num_rows, size_t K, size_t num_threads,
                 size_t first_row);

}  // namespace lowbit
