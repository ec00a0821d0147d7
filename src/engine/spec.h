// A network, described by numbers. Python's lowbit.spec has the same structs.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace lowbit {

// Of the gate in a feed-forward branch: act(gate) * up.
//   kSilu      g / (1 + exp(-g))
//   kGeluTanh  g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3)))
//   kRelu2     max(g, 0)^2
enum class Activation { kSilu, kGeluTanh, kRelu2 };

// A table of a rotary embedding: pair i turns by position * frequencies[i] radians; cosines and sines are multiplied by
// `magnitude`. If `long_frequencies` is not empty, sequences of more than ModelSpec::original_context tokens turn by
// it.
struct RopeTable {
  std::vector<float> frequencies;  // rope_dim / 2
  float magnitude = 1;
  std::vector<float> long_frequencies;
  float long_magnitude = 1;
};

// A pre-norm transformer decoder: RMS norms, grouped-query attention with rotary positions, a gated feed-forward. What
// else a layer has (norms of queries and keys or behind a branch, biases, fused matrices, an output matrix of its own)
// shows in its tensors.
struct ModelSpec {
  size_t vocab_size = 0;
  size_t context_length = 0;
  size_t hidden_size = 0;
  size_t intermediate_size = 0;
  size_t num_layers = 0;
  size_t num_heads = 0;
  size_t num_kv_heads = 0;
  size_t head_dim = 0;
  float norm_eps = 0;
  float attention_scale = 0;      // of products of queries and keys
  std::vector<size_t> windows;    // for each layer how many tokens one sees, itself included; 0: all
  size_t rope_dim = 0;            // leading values of a head that rotate
  bool rope_interleaved = false;  // pairs are (2i, 2i + 1), else (i, i + rope_dim / 2)
  std::vector<RopeTable> ropes;
  std::vector<size_t> layer_ropes;  // for each layer an index into ropes
  size_t original_context = 0;      // longer sequences turn by long_frequencies; 0: none does
  Activation activation = Activation::kSilu;
  float embedding_scale = 1;
  float attention_softcap = 0;    // scores s become cap * tanh(s / cap); 0: they stay
  float logit_softcap = 0;        // the same for logits
  bool int8_activations = false;  // inputs of the layers' linear maps are rounded to 8 bits, one scale a token
};

// Throws InputError that names the field for a description that makes no sense.
void CheckSpec(const ModelSpec& spec);

// "silu", "gelu_tanh", "relu2"; throws InputError for anything else.
Activation ParseActivation(const std::string& name);

}  // namespace lowbit
