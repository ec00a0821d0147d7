// The tensors of a network, looked up by GGUF name and checked against its description.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/base/tensor.h"
#include "src/engine/spec.h"

namespace lowbit {

// A tensor of a file. The shape has the outermost dimension first; the last one is the packed row. A matrix without
// data (and format) is streamed: its rows are requested when needed.
struct NamedTensor {
  const Format* format;
  const uint8_t* data;
  std::vector<size_t> shape;
};

using TensorMap = std::map<std::string, NamedTensor>;

// A linear map: scale * weights * x + bias.
struct Linear {
  std::string name;  // of the weight: "blk.0.attn_q.weight"; maps that share a tensor have the same name
  size_t first_row;  // of the tensor
  Matrix weights;
  std::vector<float> bias;  // one value per row, or empty
  float scale = 1;
};

// All norms except the first two may be empty.
struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;            // of a branch's input
  std::vector<float> attn_q_norm, attn_k_norm;       // of each head
  std::vector<float> attn_sub_norm, ffn_sub_norm;    // of the inputs of attn_output and ffn_down
  std::vector<float> attn_post_norm, ffn_post_norm;  // of a branch's result
  Linear attn_q, attn_k, attn_v, attn_output;
  Linear ffn_gate, ffn_up, ffn_down;
};

struct Weights {
  Linear token_embd;
  Linear output;  // token_embd if the file has no output matrix
  std::vector<float> output_norm;
  std::vector<LayerWeights> layers;
};

// Packed tensors are not copied; norms and biases are. Throws InputError for an invalid description, and FormatError
// that names a missing tensor or one with a wrong shape.
Weights LoadWeights(const ModelSpec& spec, const TensorMap& tensors);

}  // namespace lowbit
