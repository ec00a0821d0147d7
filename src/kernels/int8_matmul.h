// Products of packed weights with activations in 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "src/base/tensor.h"
#include "src/formats/activations.h"

namespace lowbit {

// The integers that sums of products of a group start with: -bias * (sum of the group's activations), which takes the
// bias off the codes. Reused by later calls.
class GroupStarts {
 public:
  // Makes room for x and weights of this format.
  void Reserve(const Format& format, const Activations& x);
  // Computes those of token t.
  void Compute(const Format& format, const Activations& x, size_t t);
  // Of a tile of n tokens: [K / group][n]
  const int32_t* data() const { return starts_.data(); }

 private:
  hwy::AlignedVector<int32_t> starts_;
};

// Rows are multiplied in strips of this many; work should be divided at multiples of it.
size_t StripRows();

// Begins to load the rows that MultiplyInt8 multiplies first if it starts at row `first`. While it multiplies, it does this
// for later rows.
void PrefetchFirstRows(const Matrix& weights, size_t first);

// out[t * out_stride + n - first] = product of row n in [first, first + num_rows) of the weights and token t. starts: of
// GroupStarts. The result of a row and a token is
//
//   sum over groups of 32, in their order, of  x.scale * (sum of weight scales * integer product) - minima * x.sum
//
// so it depends neither on the other tokens nor on the other rows. On targets with fused multiply-add, each term is added
// by one. Cost per weight: unpacking, about a quarter of a vector instruction, once for up to 512 tokens; 1/64 of a
// product instruction of 512 bits for each token, and half as many others.
void MultiplyInt8(const Matrix& weights, size_t first, size_t num_rows, const Activations& x, const int32_t* starts,
                  float* out, size_t out_stride);

}  // namespace lowbit
