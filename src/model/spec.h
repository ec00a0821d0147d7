// A network, described by numbers. Python's lowbit.spec.ModelSpec has the same fields.
#pragma once

#include <cstddef>

namespace lowbit {

// A pre-norm transformer decoder: RMS norms, grouped-query attention with rotary positions, SwiGLU. What else a layer
// has (norms of queries and keys, biases, scaled rotary frequencies, an output matrix of its own) shows in its tensors.
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
  float rope_theta = 0;
  size_t rope_dim = 0;            // leading values of a head that rotate
  bool rope_interleaved = false;  // pairs are (2i, 2i + 1), else (i, i + rope_dim / 2)
};

}  // namespace lowbit
