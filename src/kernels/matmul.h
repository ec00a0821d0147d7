// Products of activations with packed weights.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "src/base/tensor.h"
#include "src/base/threads.h"
#include "src/kernels/activations.h"
#include "src/kernels/int8_matmul.h"

namespace lowbit {

// How a product is computed:
//
//   kF32   weights decoded to float, float products. A result depends only on its own row and token, not on the batch
//          or the number of threads, so a sequence gives the same bits alone and in a batch.
//   kBf16  weights and activations rounded to bfloat16, float sums. F32 weights use kF32.
//   kInt8  weights as stored, activations in 8 bits (src/formats/activations.h). Float weights use kF32. A result depends
//          only on its own row and token, as with kF32.
//   kInt16 the sum of two such products: with the activations in 8 bits, and with what that rounding left of them, again in
//          8 bits. Takes about twice the operations, and reads the weights once.
//   kAuto  kInt8 for packed weights. Float weights: kF32 for few tokens, kBf16 for many.
enum class Compute { kAuto, kInt8, kInt16, kBf16, kF32 };

// "auto", "int8", "int16", "bf16", "f32"; throws InputError for anything else.
Compute ParseCompute(const std::string& name);

// One product: out[t * out_stride + n] = scale * (sum over k of weights[n][k] * x[t][k]) + bias[n], or that added to it.
struct Product {
  Matrix weights;
  float* out;
  size_t out_stride;
  float scale = 1;
  const float* bias = nullptr;  // null: none
  bool add = false;
};

// The input of some products, in the forms that they need. Reused by later calls.
struct MatmulInput {
  size_t num_tokens = 0, K = 0;
  hwy::AlignedVector<float> f32;
  hwy::AlignedVector<hwy::bfloat16_t> bf16;
  ActivationBuffer int8;                   // kInt16: of each token its row, and the row of its remainders
  std::vector<GroupStarts> starts;         // of each product
  hwy::AlignedVector<float> token_scales;  // of RoundToken
  bool rounded = false;                    // by RoundToken
};

class Matmul {
 public:
  // A row of the input. Whoever provides it writes it to buffer, or lets x point to where it is.
  struct Row {
    size_t token;
    float* buffer;
    const float* x;
  };

  // Rows of the outputs that are complete.
  struct Range {
    size_t first, num;
  };

  Matmul(Compute compute, size_t num_threads) : compute_(compute), num_threads_(num_threads), own_(num_threads) {}

  // x: num_tokens rows of K floats.
  void operator()(const float* x, size_t num_tokens, const Product& product, bool round_tokens = false);

  // Part of a body of RunTeam, called by all workers: products with the same input, whose rows `row` provides. They are
  // computed by all workers, or by each for itself if there are few. round_tokens: rows are rounded by RoundToken; all ways
  // of computing multiply the rounded values exactly, because the codes are exact in 8 bits and in bfloat16. finish: if
  // given, all products have as many rows, and it is called for parts of them when those of all products are complete. No
  // barrier follows.
  void Run(Worker& worker, size_t num_tokens, FunctionRef<Row&> row, const Product* products, size_t num_products,
           bool round_tokens, const FunctionRef<Range>* finish = nullptr);

  Compute compute() const { return compute_; }
  size_t num_threads() const { return num_threads_; }

 private:
  void Reserve(MatmulInput& input, size_t num_tokens, const Product* products, size_t num_products) const;
  void PrepareRow(MatmulInput& input, size_t t, FunctionRef<Row&> row, const Product* products,
                  size_t num_products) const;
  void MultiplyRows(const MatmulInput& input, size_t index, const Product& product, Range rows) const;

  Compute compute_;
  size_t num_threads_;
  MatmulInput shared_;
  std::vector<MatmulInput> own_;  // of each worker
};

}  // namespace lowbit
