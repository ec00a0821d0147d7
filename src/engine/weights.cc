#include "src/engine/weights.h"

#include "src/base/error.h"

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
    if (found == tensors_.end()) throw FormatError(Str("tensor ", name, " is missing")).Tensor(name);
    if (found->second.shape != shape) {
      throw FormatError(Str("tensor ", name, ":"))
          .Tensor(name)
          .Expected("shape ", ShapeName(shape))
          .Found(ShapeName(found->second.shape));
    }
    return found->second;
  }

  Linear GetLinear(const std::string& name, size_t rows, size_t columns) const {
    return GetRows(name, 0, rows, rows, columns);
  }

  // Rows [first, first + num) of the `total` rows of a tensor, as a separate map.
  Linear GetRows(const std::string& name, size_t first, size_t num, size_t total, size_t columns) const {
    const NamedTensor& tensor = Get(name + ".weight", {total, columns});
    const uint8_t* data = tensor.data ? tensor.data + first * tensor.format->RowBytes(columns) : nullptr;
    Linear linear = {name + ".weight", first, {tensor.format, data, num, columns}, Optional(name + ".bias", total)};
    if (!linear.bias.empty()) linear.bias = {linear.bias.begin() + first, linear.bias.begin() + first + num};
    if (Has(name + ".scale")) linear.scale = Vector(name + ".scale", 1)[0];
    return linear;
  }

  bool HasRows(const std::string& name, size_t rows) const {
    const auto found = tensors_.find(name);
    return found != tensors_.end() && !found->second.shape.empty() && found->second.shape[0] == rows;
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

void LoadAttention(const ModelSpec& spec, const Loader& loader, const std::string& prefix, LayerWeights& w) {
  const size_t hidden = spec.hidden_size;
  const size_t q_dim = spec.num_heads * spec.head_dim;
  const size_t kv_dim = spec.num_kv_heads * spec.head_dim;
  w.attn_norm = loader.Vector(prefix + "attn_norm.weight", hidden);
  w.attn_q_norm = loader.Optional(prefix + "attn_q_norm.weight", spec.head_dim);
  w.attn_k_norm = loader.Optional(prefix + "attn_k_norm.weight", spec.head_dim);
  w.attn_sub_norm = loader.Optional(prefix + "attn_sub_norm.weight", q_dim);
  w.attn_post_norm = loader.Optional(prefix + "post_attention_norm.weight", hidden);
  if (loader.Has(prefix + "attn_qkv.weight")) {
    const size_t total = q_dim + 2 * kv_dim;
    w.attn_q = loader.GetRows(prefix + "attn_qkv", 0, q_dim, total, hidden);
    w.attn_k = loader.GetRows(prefix + "attn_qkv", q_dim, kv_dim, total, hidden);
    w.attn_v = loader.GetRows(prefix + "attn_qkv", q_dim + kv_dim, kv_dim, total, hidden);
  } else {
    w.attn_q = loader.GetLinear(prefix + "attn_q", q_dim, hidden);
    w.attn_k = loader.GetLinear(prefix + "attn_k", kv_dim, hidden);
    w.attn_v = loader.GetLinear(prefix + "attn_v", kv_dim, hidden);
  }
  w.attn_output = loader.GetLinear(prefix + "attn_output", hidden, q_dim);
}

void LoadFeedForward(const ModelSpec& spec, const Loader& loader, const std::string& prefix, LayerWeights& w) {
  const size_t hidden = spec.hidden_size, inner = spec.intermediate_size;
  w.ffn_norm = loader.Vector(prefix + "ffn_norm.weight", hidden);
  w.ffn_sub_norm = loader.Optional(prefix + "ffn_sub_norm.weight", inner);
  w.ffn_post_norm = loader.Optional(prefix + "post_ffw_norm.weight", hidden);
  if (!loader.Has(prefix + "ffn_gate.weight") && loader.HasRows(prefix + "ffn_up.weight", 2 * inner)) {
    w.ffn_gate = loader.GetRows(prefix + "ffn_up", 0, inner, 2 * inner, hidden);
    w.ffn_up = loader.GetRows(prefix + "ffn_up", inner, inner, 2 * inner, hidden);
  } else {
    w.ffn_gate = loader.GetLinear(prefix + "ffn_gate", inner, hidden);
    w.ffn_up = loader.GetLinear(prefix + "ffn_up", inner, hidden);
  }
  w.ffn_down = loader.GetLinear(prefix + "ffn_down", hidden, inner);
}

}  // namespace

Weights LoadWeights(const ModelSpec& spec, const TensorMap& tensors) {
  CheckSpec(spec);
  const Loader loader(tensors);
  Weights w;
  w.token_embd = loader.GetLinear("token_embd", spec.vocab_size, spec.hidden_size);
  w.output = loader.Has("output.weight") ? loader.GetLinear("output", spec.vocab_size, spec.hidden_size) : w.token_embd;
  w.output_norm = loader.Vector("output_norm.weight", spec.hidden_size);
  w.layers.resize(spec.num_layers);
  for (size_t layer = 0; layer < spec.num_layers; ++layer) {
    const std::string prefix = Str("blk.", layer, ".");
    LoadAttention(spec, loader, prefix, w.layers[layer]);
    LoadFeedForward(spec, loader, prefix, w.layers[layer]);
  }
  return w;
}

}  // namespace lowbit
