#include "src/engine/spec.h"

#include <limits>

#include "src/base/error.h"
#include "src/io/text.h"

namespace lowbit {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

void CheckRange(const char* field, size_t value, size_t least, size_t most) {
  if (value < least || value > most) {
    throw InputError(Str("model description: ", field, " is ", value)).Expected(least, " to ", most).Found(value);
  }
}

void CheckSize(const char* field, size_t size, size_t expected) {
  if (size != expected) {
    throw InputError(Str("model description: ", field, " has ", size, " values")).Expected(expected).Found(size);
  }
}

void CheckNumber(const char* field, float value, float least) {
  if (!(value >= least && value <= kLargest)) {
    throw InputError(Str("model description: ", field, " is ", value))
        .Expected("a number of at least ", least)
        .Found(value);
  }
}

void CheckRope(const ModelSpec& spec, const RopeTable& rope) {
  CheckSize("frequencies", rope.frequencies.size(), spec.rope_dim / 2);
  if (!rope.long_frequencies.empty()) CheckSize("long_frequencies", rope.long_frequencies.size(), spec.rope_dim / 2);
  for (float frequency : rope.frequencies) CheckNumber("frequencies", frequency, -kLargest);
  for (float frequency : rope.long_frequencies) CheckNumber("long_frequencies", frequency, -kLargest);
  CheckNumber("magnitude", rope.magnitude, -kLargest);
  CheckNumber("long_magnitude", rope.long_magnitude, -kLargest);
}

}  // namespace

// The limits exceed any model, and every product of two of them fits in 64 bits.
void CheckSpec(const ModelSpec& spec) {
  constexpr size_t kMost = size_t{1} << 24;
  CheckRange("vocab_size", spec.vocab_size, 1, kMost);
  CheckRange("context_length", spec.context_length, 1, size_t{1} << 31);
  CheckRange("hidden_size", spec.hidden_size, 1, kMost);
  CheckRange("intermediate_size", spec.intermediate_size, 1, kMost);
  CheckRange("num_layers", spec.num_layers, 1, 4096);
  CheckRange("num_heads", spec.num_heads, 1, 4096);
  CheckRange("num_kv_heads", spec.num_kv_heads, 1, spec.num_heads);
  CheckRange("head_dim", spec.head_dim, 1, 4096);
  CheckRange("rope_dim", spec.rope_dim, 0, spec.head_dim);
  if (spec.num_heads % spec.num_kv_heads != 0) {
    throw InputError(Str("model description: ", spec.num_heads, " heads cannot share ", spec.num_kv_heads,
                         " key-value heads evenly"));
  }
  if (spec.rope_dim % 2 != 0)
    throw InputError(Str("model description: rope_dim is ", spec.rope_dim)).Expected("even").Found(spec.rope_dim);
  CheckNumber("norm_eps", spec.norm_eps, 0);
  CheckNumber("attention_scale", spec.attention_scale, 0);
  CheckNumber("attention_softcap", spec.attention_softcap, 0);
  CheckNumber("logit_softcap", spec.logit_softcap, 0);
  CheckNumber("embedding_scale", spec.embedding_scale, -kLargest);
  CheckSize("windows", spec.windows.size(), spec.num_layers);
  CheckSize("layer_ropes", spec.layer_ropes.size(), spec.num_layers);
  for (const RopeTable& rope : spec.ropes) CheckRope(spec, rope);
  for (size_t rope : spec.layer_ropes) {
    if (rope >= spec.ropes.size()) {
      throw InputError(Str("model description: layer_ropes has ", rope, " for ", spec.ropes.size(), " ropes"));
    }
  }
}

Activation ParseActivation(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu2") return Activation::kRelu2;
  throw InputError(Str("model description: activation ", Quoted(name), " is not one of silu, gelu_tanh, relu2"));
}

}  // namespace lowbit
