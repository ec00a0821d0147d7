// The two branches of a layer. Each adds its result to the tokens' rows in x_.
#include <utility>
#include <vector>

#include "src/base/threads.h"
#include "src/engine/forward.h"
#include "src/kernels/elementwise.h"

namespace lowbit {
namespace {

void Gate(Activation activation, float* gate, const float* up, size_t num) {
  switch (activation) {
    case Activation::kSilu:
      return SwiGlu(gate, up, num);
    case Activation::kGeluTanh:
      return GeGlu(gate, up, num);
    case Activation::kRelu2:
      return ReGlu2(gate, up, num);
  }
}

}  // namespace

void Transformer::FinishQueryKeyValue(size_t layer, const Token& token, size_t t, size_t num) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t dim = spec_.head_dim, pairs = spec_.rope_dim / 2;
  const size_t angles = (spec_.layer_ropes[layer] * num + t) * pairs;
  const auto finish = [&](float* heads, size_t num_heads, const std::vector<float>& norm) {
    for (float* head = heads; head != heads + num_heads * dim; head += dim) {
      if (!norm.empty()) RmsNorm(head, norm.data(), dim, spec_.norm_eps, head);
      Rope(head, cos_.data() + angles, sin_.data() + angles, pairs, spec_.rope_interleaved);
    }
  };
  float* key = &k_[t * spec_.num_kv_heads * dim];
  finish(&q_[t * spec_.num_heads * dim], spec_.num_heads, w.attn_q_norm);
  finish(key, spec_.num_kv_heads, w.attn_k_norm);
  cache_.Store(token.sequence, token.position, layer, key, &v_[t * spec_.num_kv_heads * dim]);
}

// Adds the result of a branch, which is in normed_.
void Transformer::AddBranch(const std::vector<float>& post_norm, size_t num) {
  if (!post_norm.empty()) Norm(normed_.data(), post_norm, num, normed_.data());
  AddTo(x_.data(), normed_.data(), num * spec_.hidden_size);
}

void Transformer::AttentionBranch(size_t layer, const Token* tokens, size_t num) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t threads = matmul_.num_threads();
  const bool round = spec_.int8_activations;

  Norm(x_.data(), w.attn_norm, num, normed_.data());
  Multiply(normed_.data(), num, {{&w.attn_q, q_.data()}, {&w.attn_k, k_.data()}, {&w.attn_v, v_.data()}}, round);
  ParallelFor(num, RowThreads(num, threads), [&](size_t t) { FinishQueryKeyValue(layer, tokens[t], t, num); });
  attention_(layer, spec_.windows[layer], runs_, q_.data(), attended_.data(), threads);
  if (!w.attn_sub_norm.empty()) Norm(attended_.data(), w.attn_sub_norm, num, attended_.data());
  Multiply(attended_.data(), num, {{&w.attn_output, normed_.data()}}, round);
  AddBranch(w.attn_post_norm, num);
}

void Transformer::FeedForwardBranch(const LayerWeights& w, size_t num) {
  const size_t inner = spec_.intermediate_size;
  const bool round = spec_.int8_activations;
  Norm(x_.data(), w.ffn_norm, num, normed_.data());
  Multiply(normed_.data(), num, {{&w.ffn_gate, gate_.data()}, {&w.ffn_up, up_.data()}}, round);
  ParallelFor(num, RowThreads(num, matmul_.num_threads()),
              [&](size_t t) { Gate(spec_.activation, &gate_[t * inner], &up_[t * inner], inner); });
  if (!w.ffn_sub_norm.empty()) Norm(gate_.data(), w.ffn_sub_norm, num, gate_.data());
  Multiply(gate_.data(), num, {{&w.ffn_down, normed_.data()}}, round);
  AddBranch(w.ffn_post_norm, num);
}

}  // namespace lowbit
