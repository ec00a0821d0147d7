// A network described by numbers: the fields of python/lowbit/arch/model_spec.py.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace lowbit {

// The activation of the gate in a feed-forward branch: act(gate) * up.
//
//   kSilu      g / (1 + exp(-g))
//   kGeluTanh  g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3)))
//   kRelu2     max(g, 0)^2
enum class Activation { kSilu, kGeluTanh, kRelu2 };

// A table of a rotary embedding: pair i rotates by position * frequencies[i] radians. Cosines and sines are multiplied
// by `magnitude`. If `long_frequencies` is not empty, sequences longer than ModelSpec::original_context use it instead.
struct RopeTable {
  std::vector<float> frequencies;  // rope_dim / 2
  float magnitude = 1;
  std::vector<float> long_frequencies;
  float long_magnitude = 1;

  // Calls visit(name, field) for each field, by the field's name in Python.
  template <typename Visitor>
  void Visit(Visitor&& visit) {
    visit("frequencies", frequencies);
    visit("magnitude", magnitude);
    visit("long_frequencies", long_frequencies);
    visit("long_magnitude", long_magnitude);
  }
};

// A pre-norm transformer decoder: RMS norms, grouped-query attention with rotary positions, gated feed-forward.
// Optional parts follow from the tensors: norms of queries and keys or after a branch, biases, fused matrices, an
// untied output matrix.
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
  float attention_scale = 0;      // factor of the products of queries and keys
  std::vector<size_t> windows;    // attention window of each layer in tokens, including the token itself; 0: all
  size_t rope_dim = 0;            // number of leading values of a head that rotate
  bool rope_interleaved = false;  // pairs are (2i, 2i + 1), else (i, i + rope_dim / 2)
  std::vector<RopeTable> ropes;
  std::vector<size_t> layer_ropes;  // index into ropes for each layer
  size_t original_context = 0;      // longer sequences use long_frequencies; 0: none does
  Activation activation = Activation::kSilu;
  float embedding_scale = 1;
  float attention_softcap = 0;    // scores s become cap * tanh(s / cap); 0: no cap
  float logit_softcap = 0;        // the same for logits
  bool int8_activations = false;  // inputs of the layers' matrices are rounded to 8 bits, one scale per token

  // As RopeTable::Visit.
  template <typename Visitor>
  void Visit(Visitor&& visit) {
    visit("vocab_size", vocab_size);
    visit("context_length", context_length);
    visit("hidden_size", hidden_size);
    visit("intermediate_size", intermediate_size);
    visit("num_layers", num_layers);
    visit("num_heads", num_heads);
    visit("num_kv_heads", num_kv_heads);
    visit("head_dim", head_dim);
    visit("norm_eps", norm_eps);
    visit("attention_scale", attention_scale);
    visit("windows", windows);
    visit("rope_dim", rope_dim);
    visit("rope_interleaved", rope_interleaved);
    visit("ropes", ropes);
    visit("layer_ropes", layer_ropes);
    visit("original_context", original_context);
    visit("activation", activation);
    visit("embedding_scale", embedding_scale);
    visit("attention_softcap", attention_softcap);
    visit("logit_softcap", logit_softcap);
    visit("int8_activations", int8_activations);
  }
};

// Throws InputError that names the invalid field.
void CheckSpec(const ModelSpec& spec);

// "silu", "gelu_tanh", "relu2"; throws InputError for anything else.
Activation ParseActivation(const std::string& name);

}  // namespace lowbit
