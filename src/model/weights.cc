#include "src/model/weights.h"

#include "src/error.h"

namespace lowbit {
namespace {

std::string ShapeName(const std::vector<size_t>& shape) {
  std::string name = "(";
  for (size_t i = 0; i < shape.size(); ++i) name += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return name + ")";
}

class Loader {
 public:
  explicit Loader(const TensorMap& tensors) : tensors_(tensors) {}

  bool Has(const std::string& name) const { return tensors_.count(name) != 0; }

  const NamedTensor& Get(const std::string& name, const std::vector<size_t>& shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw FormatError(Str("tensor ", name, " is missing"));
    if (found->second.shape != shape) {
      throw FormatError(
          Str("tensor ", name, ": expected shape ", ShapeName(shape), ", found ", ShapeName(found->second.shape)));
    }
    return found->second;
  }

  Linear GetLinear(const std::string& name, size_t rows, size_t columns) const {
    const NamedTensor& tensor = Get(name + ".weight", {rows, columns});
    return {name + ".weight", {tensor.format, tensor.data, rows, columns}, Optional(name + ".bias", rows)};
  }

  std::vector<float> Vector(const std::string& name, size_t num) const {
    const NamedTensor& tensor = Get(name, {num});
    std::vector<float> values(num);
    if (num != 0) tensor.format->decode(tensor.data, num / tensor.format->block_size, values.data());
    return values;
  }

  std::vector<float> Optional(const std::string& name, size_t num) const {
    return Has(name) ? Vector(name, num) : std::vector<float>();
  }

 private:
  const TensorMap& tensors_;
};

LayerWeights LoadLayer(const ModelSpec& spec, const Loader& loader, size_t layer) {
  const std::string prefix = Str("blk.", layer, ".");
  const size_t hidden = spec.hidden_size;
  const size_t q_dim = spec.num_heads * spec.head_dim;
  const size_t kv_dim = spec.num_kv_heads * spec.head_dim;
  LayerWeights w;
  w.attn_norm = loader.Vector(prefix + "attn_norm.weight", hidden);
  w.ffn_norm = loader.Vector(prefix + "ffn_norm.weight", hidden);
  w.attn_q_norm = loader.Optional(prefix + "attn_q_norm.weight", spec.head_dim);
  w.attn_k_norm = loader.Optional(prefix + "attn_k_norm.weight", spec.head_dim);
  w.attn_q = loader.GetLinear(prefix + "attn_q", q_dim, hidden);
  w.attn_k = loader.GetLinear(prefix + "attn_k", kv_dim, hidden);
  w.attn_v = loader.GetLinear(prefix + "attn_v", kv_dim, hidden);
  w.attn_output = loader.GetLinear(prefix + "attn_output", hidden, q_dim);
  w.ffn_gate = loader.GetLinear(prefix + "ffn_gate", spec.intermediate_size, hidden);
  w.ffn_up = loader.GetLinear(prefix + "ffn_up", spec.intermediate_size, hidden);
  w.ffn_down = loader.GetLinear(prefix + "ffn_down", hidden, spec.intermediate_size);
  return w;
}

void CheckRange(const char* field, size_t value, size_t least, size_t most) {
  if (value < least || value > most) {
    throw InputError(Str("model description: ", field, " is ", value, ", expected ", least, " to ", most));
  }
}

// The limits are far above any model and keep every product of two of them within 64 bits.
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
    throw InputError(Str("model description: rope_dim is ", spec.rope_dim, ", expected even"));
  if (!(spec.norm_eps >= 0) || !(spec.rope_theta > 0)) {
    throw InputError(Str("model description: norm_eps is ", spec.norm_eps, ", rope_theta is ", spec.rope_theta));
  }
}

}  // namespace

Weights LoadWeights(const ModelSpec& spec, const TensorMap& tensors) {
  CheckSpec(spec);
  const Loader loader(tensors);
  Weights w;
  w.token_embd = loader.GetLinear("token_embd", spec.vocab_size, spec.hidden_size);
  w.output = loader.Has("output.weight") ? loader.GetLinear("output", spec.vocab_size, spec.hidden_size) : w.token_embd;
  w.output_norm = loader.Vector("output_norm.weight", spec.hidden_size);
  w.rope_freqs = loader.Optional("rope_freqs.weight", spec.rope_dim / 2);
  for (size_t layer = 0; layer < spec.num_layers; ++layer) w.layers.push_back(LoadLayer(spec, loader, layer));
  return w;
}

}  // namespace lowbit
