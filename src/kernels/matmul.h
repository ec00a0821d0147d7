// Products of activations with packed weights.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "src/base/tensor.h"
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
//   kAuto  kInt8 for packed weights. Float weights: kF32 for few tokens, kBf16 for many.
enum class Compute { kAuto, kInt8, kBf16, kF32 };

// "auto", "int8", "bf16", "f32"; throws InputError for anything else.
Compute ParseCompute(const std::string& name);

// One product of a call: out[t * out_stride + n] = sum over k of weights[n][k] * x[t][k].
struct Product {
  Matrix weights;
  float* out;
  size_t out_stride;
};

class Matmul {
 public:
  Matmul(Compute compute, size_t num_threads) : compute_(compute), num_threads_(num_threads) {}

  // x: num_tokens rows of K floats. All products share x and K, and run as one parallel loop. round_tokens: x is first
  // rounded by RoundTokens (src/kernels/activations.h). All compute modes multiply the rounded values exactly: the
  // codes are exact in 8 bits and in bfloat16.
  void operator()(const float* x, size_t num_tokens, const std::vector<Product>& products, bool round_tokens = false);

  Compute compute() const { return compute_; }
  size_t num_threads() const { return num_threads_; }

 private:
  Compute compute_;
  size_t num_threads_;
  ActivationBuffer int8_;
  std::vector<GroupStarts> starts_;  // of each product
  hwy::AlignedVector<hwy::bfloat16_t> bf16_;
  hwy::AlignedVector<float> codes_, token_scales_;  // of RoundTokens
};

}  // namespace lowbit
