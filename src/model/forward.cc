#include "src/model/forward.h"

#include <algorithm>
#include <cmath>

#include "src/error.h"
#include "src/ops/elementwise.h"
#include "src/threads.h"

namespace lowbit {
namespace {

KvLayout CacheLayout(const ModelSpec& spec, Compute compute) {
  return {spec.num_layers, spec.num_kv_heads, spec.head_dim, compute == Compute::kF32};
}

// Waking the other threads costs more than a few rows of element-wise work.
size_t RowThreads(size_t num_rows, size_t num_threads) { return num_rows < 4 ? 1 : num_threads; }

}  // namespace

class Transformer::Turn {
 public:
  explicit Turn(Transformer& model) : model_(model) {
    const std::thread::id self = std::this_thread::get_id();
    if (model.owner_ == self) throw InputError("the model was called by its own observer");
    model.mutex_.lock();
    model.owner_ = self;
  }

  ~Turn() {
    model_.owner_ = std::thread::id();
    model_.mutex_.unlock();
  }

  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Transformer& model_;
};

Transformer::Transformer(const ModelSpec& spec, const TensorMap& tensors, Compute compute, size_t num_threads,
                         size_t max_length, size_t max_sequences)
    : spec_(spec),
      weights_(LoadWeights(spec, tensors)),
      cache_(CacheLayout(spec, compute), max_length, max_sequences),
      matmul_(compute, num_threads) {
  if (max_length == 0 || max_length > spec.context_length) {
    throw InputError(Str("a context of ", max_length, " tokens; the model was made for 1 to ", spec.context_length));
  }
  for (size_t i = 0; i < spec.rope_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.rope_dim);
    const float divisor = weights_.rope_freqs.empty() ? 1.0f : weights_.rope_freqs[i];
    inverse_frequencies_.push_back(1.0f / std::pow(spec.rope_theta, exponent) / divisor);
  }
}

size_t Transformer::Length(int32_t sequence) {
  const Turn turn(*this);
  return cache_.Length(sequence);
}

void Transformer::Truncate(int32_t sequence, size_t length) {
  const Turn turn(*this);
  cache_.Truncate(sequence, length);
}

void Transformer::SetObserver(Observer observer) {
  const Turn turn(*this);
  observer_ = std::move(observer);
}

// Checks a whole batch and makes room for it, or throws and leaves everything as it was. Returns the lengths before of
// the sequences in it.
std::map<int32_t, size_t> Transformer::Admit(const Batch& batch) {
  std::map<int32_t, size_t> added;
  for (size_t i = 0; i < batch.num_tokens; ++i) {
    if (batch.tokens[i] < 0 || static_cast<size_t>(batch.tokens[i]) >= spec_.vocab_size) {
      throw InputError(Str("token ", i, " is ", batch.tokens[i], ", expected 0 to ", spec_.vocab_size - 1));
    }
    const int32_t sequence = batch.sequences[i];
    const size_t expected = cache_.Length(sequence) + added[sequence]++;
    if (batch.positions[i] < 0 || static_cast<size_t>(batch.positions[i]) != expected) {
      throw InputError(
          Str("token ", i, " of sequence ", sequence, " has position ", batch.positions[i], ", expected ", expected));
    }
  }
  std::map<int32_t, size_t> before;
  try {
    for (const auto& [sequence, num] : added) {
      before[sequence] = cache_.Length(sequence);
      cache_.Extend(sequence, num);
    }
  } catch (...) {
    TruncateAll(before);
    throw;
  }
  return before;
}

void Transformer::TruncateAll(const std::map<int32_t, size_t>& lengths) {
  for (const auto& [sequence, length] : lengths) cache_.Truncate(sequence, length);
}

void Transformer::Multiply(const float* x, size_t num,
                           std::initializer_list<std::pair<const Linear*, float*>> products) {
  std::vector<Product> list;
  for (const auto& [linear, out] : products) {
    if (observer_) observer_(linear->name, x, num, linear->weights.K);
    list.push_back({linear->weights, out, linear->weights.N});
  }
  matmul_(x, num, list);
  for (const auto& [linear, out] : products) {
    if (linear->bias.empty()) continue;
    for (size_t t = 0; t < num; ++t) AddTo(out + t * linear->bias.size(), linear->bias.data(), linear->bias.size());
  }
}

void Transformer::Embed(const Token* tokens, size_t num) {
  const Matrix& table = weights_.token_embd.weights;
  ParallelFor(num, RowThreads(num, matmul_.num_threads()), [&](size_t t) {
    table.format->decode(table.Row(tokens[t].id), table.K / table.format->block_size, &x_[t * table.K]);
  });
}

void Transformer::RotaryAngles(const Token* tokens, size_t num) {
  const size_t pairs = inverse_frequencies_.size();
  for (size_t t = 0; t < num; ++t) {
    for (size_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(tokens[t].position) * inverse_frequencies_[i];
      cos_[t * pairs + i] = std::cos(angle);
      sin_[t * pairs + i] = std::sin(angle);
    }
  }
}

void Transformer::Norm(const std::vector<float>& weight, size_t num) {
  const size_t hidden = spec_.hidden_size;
  ParallelFor(num, RowThreads(num, matmul_.num_threads()),
              [&](size_t t) { RmsNorm(&x_[t * hidden], weight.data(), hidden, spec_.norm_eps, &normed_[t * hidden]); });
}

void Transformer::FinishQueryKeyValue(const LayerWeights& w, size_t layer, const Token& token, size_t t) {
  const size_t dim = spec_.head_dim;
  const size_t pairs = inverse_frequencies_.size();
  const auto finish = [&](float* heads, size_t num_heads, const std::vector<float>& norm) {
    for (float* head = heads; head != heads + num_heads * dim; head += dim) {
      if (!norm.empty()) RmsNorm(head, norm.data(), dim, spec_.norm_eps, head);
      Rope(head, cos_.data() + t * pairs, sin_.data() + t * pairs, pairs, spec_.rope_interleaved);
    }
  };
  float* key = &k_[t * spec_.num_kv_heads * dim];
  finish(&q_[t * spec_.num_heads * dim], spec_.num_heads, w.attn_q_norm);
  finish(key, spec_.num_kv_heads, w.attn_k_norm);
  cache_.Store(token.sequence, token.position, layer, key, &v_[t * spec_.num_kv_heads * dim]);
}

void Transformer::Layer(size_t layer, const Token* tokens, size_t num) {
  const LayerWeights& w = weights_.layers[layer];
  const size_t threads = matmul_.num_threads();
  const size_t q_dim = spec_.num_heads * spec_.head_dim;
  const size_t hidden = spec_.hidden_size;

  Norm(w.attn_norm, num);
  Multiply(normed_.data(), num, {{&w.attn_q, q_.data()}, {&w.attn_k, k_.data()}, {&w.attn_v, v_.data()}});
  ParallelFor(num, RowThreads(num, threads), [&](size_t t) { FinishQueryKeyValue(w, layer, tokens[t], t); });
  std::vector<AttentionQuery> queries;
  for (size_t t = 0; t < num; ++t) {
    queries.push_back({&q_[t * q_dim], &attended_[t * q_dim], cache_.Pages(tokens[t].sequence).data(),
                       static_cast<size_t>(tokens[t].position) + 1});
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim));
  Attention(cache_.layout(), layer, spec_.num_heads, scale, queries, threads);
  Multiply(attended_.data(), num, {{&w.attn_output, normed_.data()}});
  AddTo(x_.data(), normed_.data(), num * hidden);

  Norm(w.ffn_norm, num);
  Multiply(normed_.data(), num, {{&w.ffn_gate, gate_.data()}, {&w.ffn_up, up_.data()}});
  const size_t inner = spec_.intermediate_size;
  ParallelFor(num, RowThreads(num, threads), [&](size_t t) { SwiGlu(&gate_[t * inner], &up_[t * inner], inner); });
  Multiply(gate_.data(), num, {{&w.ffn_down, normed_.data()}});
  AddTo(x_.data(), normed_.data(), num * hidden);
}

// Returns where the next chunk's logits go.
float* Transformer::Logits(const Token* tokens, size_t num, float* logits) {
  const size_t hidden = spec_.hidden_size;
  size_t wanted = 0;
  for (size_t t = 0; t < num; ++t) {
    if (!tokens[t].wants_logits) continue;
    std::copy_n(&x_[t * hidden], hidden, &x_[wanted * hidden]);
    ++wanted;
  }
  if (wanted == 0) return logits;
  Norm(weights_.output_norm, wanted);
  Multiply(normed_.data(), wanted, {{&weights_.output, logits}});
  return logits + wanted * spec_.vocab_size;
}

void Transformer::Forward(const Batch& batch, float* logits) {
  const Turn turn(*this);
  const std::map<int32_t, size_t> before = Admit(batch);
  try {
    Run(batch, logits);
  } catch (...) {  // out of memory, or the observer
    TruncateAll(before);
    throw;
  }
}

void Transformer::Run(const Batch& batch, float* logits) {
  std::vector<Token> tokens;
  for (size_t i = 0; i < batch.num_tokens; ++i) {
    tokens.push_back({batch.tokens[i], batch.positions[i], batch.sequences[i], batch.wants_logits[i]});
  }
  const size_t rows = std::min(kMaxChunk, batch.num_tokens);
  const auto grow = [&](hwy::AlignedVector<float>& buffer, size_t columns) {
    if (buffer.size() < rows * columns) buffer.resize(rows * columns);
  };
  for (hwy::AlignedVector<float>* buffer : {&x_, &normed_}) grow(*buffer, spec_.hidden_size);
  for (hwy::AlignedVector<float>* buffer : {&q_, &attended_}) grow(*buffer, spec_.num_heads * spec_.head_dim);
  for (hwy::AlignedVector<float>* buffer : {&k_, &v_}) grow(*buffer, spec_.num_kv_heads * spec_.head_dim);
  for (hwy::AlignedVector<float>* buffer : {&gate_, &up_}) grow(*buffer, spec_.intermediate_size);
  for (hwy::AlignedVector<float>* buffer : {&cos_, &sin_}) grow(*buffer, spec_.rope_dim / 2);

  for (size_t first = 0; first < tokens.size(); first += kMaxChunk) {
    const Token* chunk = tokens.data() + first;
    const size_t num = std::min(kMaxChunk, tokens.size() - first);
    Embed(chunk, num);
    RotaryAngles(chunk, num);
    for (size_t layer = 0; layer < spec_.num_layers; ++layer) Layer(layer, chunk, num);
    logits = Logits(chunk, num, logits);
  }
}

}  // namespace lowbit
