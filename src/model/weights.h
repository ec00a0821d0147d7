// The tensors of a network, looked up by their GGUF names and checked against its description.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/model/spec.h"
#include "src/tensor.h"

namespace lowbit {

// A tensor as a file gives it: its shape outermost first, the last one being the row that a format packs.
struct NamedTensor {
  const Format* format;
  const uint8_t* data;
  std::vector<size_t> shape;
};

using TensorMap = std::map<std::string, NamedTensor>;

// A linear map; `bias` is empty or has one value a row.
struct Linear {
  std::string name;  // of the weight: "blk.0.attn_q.weight"
  Matrix weights;
  std::vector<float> bias;
};

struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;
  std::vector<float> attn_q_norm, attn_k_norm;  // head_dim values, or empty
  Linear attn_q, attn_k, attn_v, attn_output;
  Linear ffn_gate, ffn_up, ffn_down;
};

struct Weights {
  Linear token_embd;
  Linear output;  // token_embd again where the file has none
  std::vector<float> output_norm;
  std::vector<float> rope_freqs;  // divisors of the rotary frequencies, rope_dim / 2 values, or empty
  std::vector<LayerWeights> layers;
};

// Packed tensors stay where they are; norms and biases are copied. Throws InputError for a description that makes no
// sense and FormatError for a missing tensor or one of another shape, naming it.
Weights LoadWeights(const ModelSpec& spec, const TensorMap& tensors);

}  // namespace lowbit
