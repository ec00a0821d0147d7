// Quantizes rows of arrays to packed blocks, and back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/format.h"

namespace lowbit {

// Weight (r, k) is at data + r * row_stride + k * col_stride. Strides are in bytes, may be negative, and need no
// alignment.
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
// `importance` is null or has K finite values >= 0. Negative importances are rejected: ggml's result for them is
// undefined.
//
// Throws InputError if block_size does not divide K, for missing or invalid importances, and for a NaN or infinite
// weight, with the row and column of the first. With `allow_nonfinite`, float formats store NaN and infinity. Block
// formats then write the result of ggml's arithmetic: usually a block whose scale is infinite or NaN, or whose other
// weights are lost (with importances, a row of these blocks).
//
// Memory: contiguous f32 rows are read in place. Otherwise each thread converts chunks of whole rows, as many as fit in
// 256 KiB and at least one.
void QuantizeRows(const WeightView& weights, const Format& format, const float* importance, bool allow_nonfinite,
                  size_t num_threads, uint8_t* out);

// Decodes num_rows rows of K weights, row_stride bytes apart, into contiguous floats.
void DequantizeRows(const uint8_t* rows, ptrdiff_t row_stride, const Format& format, size_t num_rows, size_t K,
                    size_t num_threads, float* out);

// Unpacks num_rows rows of K weights, row_stride bytes apart: levels [num_rows, K], scales and minima [num_rows, K / 16]
// (Format::unpack). Throws InputError for float formats.
void UnpackRows(const uint8_t* rows, ptrdiff_t row_stride, const Format& format, size_t num_rows, size_t K,
                size_t num_threads, int8_t* levels, float* scales, float* minima);

// Throws InputError for the first of num_rows contiguous packed rows with a block that decodes to NaN or infinity, i.e.
// with a non-finite scale. The error names row first_row + r.
void CheckScales(const uint8_t* rows, const Format& format, size_t num_rows, size_t K, size_t num_threads,
                 size_t first_row);

}  // namespace lowbit
