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

void Transformer::FinishQueryKeyValue(size_t layer, const Token& token, size_t t, size_t num, size_t kv_head) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t dim = spec_.head_dim, pairs = spec_.rope_dim / 2, group = spec_.num_heads / spec_.num_kv_heads;
  const size_t angles = (spec_.layer_ropes[layer] * num + t) * pairs;
  const auto finish = [&](float* heads, size_t num_heads, const std::vector<float>& norm) {
    for (float* head = heads; head != heads + num_heads * dim; head += dim) {
      if (!norm.empty()) RmsNorm(head, norm.data(), dim, spec_.norm_eps, head);
      Rope(head, cos_.data() + angles, sin_.data() + angles, pairs, spec_.rope_interleaved);
    }
  };
  const size_t at = (t * spec_.num_kv_heads + kv_head) * dim;
  finish(&q_[at * group], group, w.attn_q_norm);
  finish(&k_[at], 1, w.attn_k_norm);
  cache_.Store(token.sequence, token.position, layer, kv_head, &k_[at], &v_[at]);
}

void Transformer::AddBranch(Worker& worker, size_t num, Source input, const Linear& linear,
                            const std::vector<float>& post_norm, bool round_tokens) {
  const size_t hidden = spec_.hidden_size;
  const bool normed = !post_norm.empty();
  Project(worker, num, input, {{&linear, normed ? branch_.data() : x_.data(), /*add=*/!normed}}, round_tokens);
  worker.Barrier();
  if (!normed) return;
  worker.Share(num, [&](size_t t) {
    float* branch = &branch_[t * hidden];
    RmsNorm(branch, post_norm.data(), hidden, spec_.norm_eps, branch);
    AddTo(&x_[t * hidden], branch, hidden);
  });
  worker.Barrier();
}

void Transformer::ProvideRow(const hwy::AlignedVector<float>& rows, size_t width, const std::vector<float>& norm,
                             Matmul::Row& row) const {
  const float* of_token = &rows[row.token * width];
  if (norm.empty()) {
    row.x = of_token;
  } else {
    RmsNorm(of_token, norm.data(), width, spec_.norm_eps, row.buffer);
  }
}

void Transformer::AttentionBranch(Worker& worker, size_t layer, const Token* tokens, size_t num) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t hidden = spec_.hidden_size, q_dim = spec_.num_heads * spec_.head_dim;
  const bool round = spec_.int8_activations;
  const auto normed = [&](Matmul::Row& row) { ProvideRow(x_, hidden, w.attn_norm, row); };
  Project(worker, num, normed, {{&w.attn_q, q_.data()}, {&w.attn_k, k_.data()}, {&w.attn_v, v_.data()}}, round);
  worker.Barrier();
  Record(worker, "query_key_value", layer);
  if (worker.id() == 0) attention_.Plan(spec_.windows[layer], runs_, matmul_.num_threads());
  worker.Share(num * spec_.num_kv_heads, [&](size_t task) {
    const size_t t = task / spec_.num_kv_heads;
    FinishQueryKeyValue(layer, tokens[t], t, num, task % spec_.num_kv_heads);
  });
  worker.Barrier();
  Record(worker, "heads", layer);
  attention_.Run(worker, layer, q_.data(), attended_.data());
  worker.Barrier();
  Record(worker, "attention", layer);
  const auto attended = [&](Matmul::Row& row) { ProvideRow(attended_, q_dim, w.attn_sub_norm, row); };
  AddBranch(worker, num, attended, w.attn_output, w.attn_post_norm, round);
  Record(worker, "attention_output", layer);
}

void Transformer::FeedForwardBranch(Worker& worker, size_t layer, size_t num) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t hidden = spec_.hidden_size, inner = spec_.intermediate_size;
  const bool round = spec_.int8_activations;
  const auto normed = [&](Matmul::Row& row) { ProvideRow(x_, hidden, w.ffn_norm, row); };
  const auto gate = [&](Matmul::Range rows) {
    for (size_t at = rows.first; at < num * inner; at += inner) Gate(spec_.activation, &gate_[at], &up_[at], rows.num);
  };
  const FunctionRef<Matmul::Range> finish = gate;
  Project(worker, num, normed, {{&w.ffn_gate, gate_.data()}, {&w.ffn_up, up_.data()}}, round, &finish);
  worker.Barrier();
  Record(worker, "gate_up", layer);
  const auto gated = [&](Matmul::Row& row) { ProvideRow(gate_, inner, w.ffn_sub_norm, row); };
  AddBranch(worker, num, gated, w.ffn_down, w.ffn_post_norm, round);
  Record(worker, "down", layer);
}

}  // namespace lowbit
