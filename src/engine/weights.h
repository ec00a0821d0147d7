// The tensors of a network, looked up by their GGUF names and checked against its description.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/base/tensor.h"
#include "src/engine/spec.h"

namespace lowbit {

// A tensor as a file gives it: its shape outermost first, the last one being the row that a format packs. A matrix
// without data (and format) is streamed: its rows are asked for when they are needed.
struct NamedTensor {
  const Format* format;
  const uint8_t* data;
  std::vector<size_t> shape;
};

using TensorMap = std::map<std::string, NamedTensor>;

// A linear map: scale * weights * x + bias.
struct Linear {
  std::string name;  // of the weight: "blk.0.attn_q.weight"; maps that are rows of one tensor share it
  size_t first_row;  // of the tensor
  Matrix weights;
  std::vector<float> bias;  // one value a row, or empty
  float scale = 1;
};

// Norms other than the first two may be empty: the network lacks them.
struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;            // of a branch's input
  std::vector<float> attn_q_norm, attn_k_norm;       // of each head
  std::vector<float> attn_sub_norm, ffn_sub_norm;    // of what attn_output and ffn_down are multiplied with
  std::vector<float> attn_post_norm, ffn_post_norm;  // of what a branch adds
  Linear attn_q, attn_k, attn_v, attn_output;
  Linear ffn_gate, ffn_up, ffn_down;
};

struct Weights {
  Linear token_embd;
  Linear output;  // token_embd again where the file has none
  std::vector<float> output_norm;
  std::vector<LayerWeights> layers;
};

// Packed tensors stay where they are; norms and biases are copied. Throws InputError for a description that makes no
// sense and FormatError for a missing tensor or one of another shape, naming it.
Weights LoadWeights(const ModelSpec& spec, const TensorMap& tensors);

}  // namespace lowbit
