#include "src/engine/forward.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/base/threads.h"
#include "src/kernels/elementwise.h"

namespace lowbit {
namespace {

KvLayout CacheLayout(const ModelSpec& spec, Compute compute) {
  return {spec.num_layers, spec.num_kv_heads, spec.head_dim, compute == Compute::kF32};
}

void CheckMaxLength(size_t max_length) {
  if (max_length == 0 || max_length > Transformer::kMostTokens) {
    throw InputError("max_length:").Expected("1 to ", Transformer::kMostTokens).Found(max_length);
  }
}

}  // namespace

Transformer::Turn::Turn(Transformer& model) : model_(model) {
  if (model.mutex_.IsMine()) throw InputError("the observer called its model: an observer must not do that");
  model.mutex_.lock();
}

Transformer::Transformer(const ModelSpec& spec, const TensorMap& tensors, Compute compute, size_t num_threads,
                         size_t max_length, size_t max_sequences, RowSource rows)
    : spec_(spec),
      weights_(LoadWeights(spec, tensors)),
      cache_(CacheLayout(spec, compute), max_length, max_sequences),
      attention_(cache_.layout(), spec.num_heads, {spec.attention_scale, spec.attention_softcap}),
      matmul_(compute, num_threads),
      rows_(std::move(rows)) {
  CheckMaxLength(max_length);
}

size_t Transformer::Length(int32_t sequence) {
  const Turn turn(*this);
  return cache_.Length(sequence);
}

bool Transformer::IsLong(int32_t sequence) {
  const Turn turn(*this);
  return cache_.IsLong(sequence);
}

void Transformer::Truncate(int32_t sequence, size_t length) {
  const Turn turn(*this);
  cache_.Truncate(sequence, length);
}

void Transformer::RaiseMaxLength(size_t max_length) {
  CheckMaxLength(max_length);
  const Turn turn(*this);
  cache_.RaiseMaxLength(max_length);
}

// Checks a whole batch and makes room for it. If it throws, nothing has changed. Returns the previous lengths of the
// batch's sequences.
std::map<int32_t, size_t> Transformer::Admit(const Batch& batch) {
  std::map<int32_t, size_t> added;
  for (size_t i = 0; i < batch.num_tokens; ++i) {
    if (batch.tokens[i] < 0 || static_cast<size_t>(batch.tokens[i]) >= spec_.vocab_size) {
      throw InputError(Str("token ", i, " is ", batch.tokens[i]))
          .Expected("0 to ", spec_.vocab_size - 1)
          .Found(batch.tokens[i]);
    }
    const int32_t sequence = batch.sequences[i];
    const size_t expected = cache_.Length(sequence) + added[sequence]++;
    if (batch.positions[i] < 0 || static_cast<size_t>(batch.positions[i]) != expected) {
      throw InputError(Str("token ", i, " of sequence ", sequence, " has position ", batch.positions[i]))
          .Expected(expected)
          .Found(batch.positions[i]);
    }
  }
  std::map<int32_t, size_t> before;
  try {
    for (const auto& [sequence, num] : added) {
      const size_t length = before[sequence] = cache_.Length(sequence);
      const size_t most = spec_.original_context == 0 ? SIZE_MAX : spec_.original_context;
      if (length != 0 && length + num > most && !cache_.IsLong(sequence)) {
        throw InputError(Str("sequence ", sequence, " holds ", length, " tokens with the rotary embedding for up to ",
                             most, " tokens, and ", num,
                             " more need the one for longer sequences: truncate it to 0 and start again"));
      }
      cache_.Extend(sequence, num);
      if (length == 0) cache_.SetLong(sequence, std::max(num, batch.expected_length) > most);
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

std::vector<Transformer::Segment> Transformer::Segments(const Token* tokens, size_t num) {
  std::vector<Segment> segments;
  for (size_t t = 0; t < num; ++t) {
    if (segments.empty() || segments.back().sequence != tokens[t].sequence) segments.push_back({tokens[t].sequence, 0});
    ++segments.back().num_tokens;
  }
  return segments;
}

// The chunk's segments with their pages.
void Transformer::FindRuns(const Token* tokens) {
  runs_.clear();
  for (const Segment& segment : segments_) {
    runs_.push_back({cache_.Pages(segment.sequence).data(), static_cast<size_t>(tokens->position), segment.num_tokens});
    tokens += segment.num_tokens;
  }
}

void Transformer::MultiplyStreamed(const Linear& linear, const float* x, float* out, bool round_tokens) {
  const auto [format, data, N, K] = linear.weights;
  const size_t step = std::max<size_t>(1, kStreamedWeights / std::max<size_t>(1, K));
  for (size_t first = 0; first < N; first += step) {
    size_t t = 0;
    for (const Segment& segment : segments_) {
      const Matrix rows = rows_(linear.name, linear.first_row + first, std::min(step, N - first), segment.sequence);
      matmul_(x + t * K, segment.num_tokens, {{rows, out + t * N + first, N}}, round_tokens);
      t += segment.num_tokens;
    }
  }
}

void Transformer::Multiply(const float* x, size_t num, std::initializer_list<std::pair<const Linear*, float*>> products,
                           bool round_tokens) {
  std::vector<Product> list;
  const std::string* observed = nullptr;  // rows of one tensor are observed once
  for (const auto& [linear, out] : products) {
    if (observer_ && (!observed || *observed != linear->name)) observer_(linear->name, x, num, linear->weights.K);
    observed = &linear->name;
    if (linear->weights.data) {
      list.push_back({linear->weights, out, linear->weights.N});
    } else {
      MultiplyStreamed(*linear, x, out, round_tokens);
    }
  }
  matmul_(x, num, list, round_tokens);
  for (const auto& [linear, out] : products) {
    const size_t rows = linear->weights.N;
    if (linear->scale != 1.0f) ScaleBy(out, linear->scale, num * rows);
    if (linear->bias.empty()) continue;
    for (size_t t = 0; t < num; ++t) AddTo(out + t * rows, linear->bias.data(), rows);
  }
}

void Transformer::Embed(const Token* tokens, size_t num) {
  const Matrix& table = weights_.token_embd.weights;
  const auto embed = [&](size_t t, const Format& format, const uint8_t* packed) {
    float* row = &x_[t * table.K];
    format.decode(packed, table.K / format.block_size, row);
    if (spec_.embedding_scale != 1.0f) ScaleBy(row, spec_.embedding_scale, table.K);
  };
  if (table.data) {
    ParallelFor(num, RowThreads(num, matmul_.num_threads()),
                [&](size_t t) { embed(t, *table.format, table.Row(tokens[t].id)); });
    return;
  }
  for (size_t t = 0; t < num; ++t) {
    const Matrix row = rows_(weights_.token_embd.name, tokens[t].id, 1, tokens[t].sequence);
    embed(t, *row.format, row.data);
  }
}

void Transformer::RotaryAngles(const Token* tokens, size_t num) {
  const size_t pairs = spec_.rope_dim / 2;
  float* cos = cos_.data();
  float* sin = sin_.data();
  for (const RopeTable& rope : spec_.ropes) {
    for (size_t t = 0; t < num; ++t, cos += pairs, sin += pairs) {
      const bool is_long = !rope.long_frequencies.empty() && cache_.IsLong(tokens[t].sequence);
      const float* frequencies = is_long ? rope.long_frequencies.data() : rope.frequencies.data();
      const float magnitude = is_long ? rope.long_magnitude : rope.magnitude;
      for (size_t i = 0; i < pairs; ++i) {
        const float angle = static_cast<float>(tokens[t].position) * frequencies[i];
        cos[i] = std::cos(angle) * magnitude;
        sin[i] = std::sin(angle) * magnitude;
      }
    }
  }
}

void Transformer::Norm(const float* x, const std::vector<float>& weight, size_t num, float* out) {
  const size_t width = weight.size();
  ParallelFor(num, RowThreads(num, matmul_.num_threads()),
              [&](size_t t) { RmsNorm(x + t * width, weight.data(), width, spec_.norm_eps, out + t * width); });
}

// Returns the position of the next chunk's logits.
float* Transformer::Logits(const Token* tokens, size_t num, float* logits) {
  const size_t hidden = spec_.hidden_size;
  std::vector<Token> wanting;
  for (size_t t = 0; t < num; ++t) {
    if (!tokens[t].wants_logits) continue;
    std::copy_n(&x_[t * hidden], hidden, &x_[wanting.size() * hidden]);
    wanting.push_back(tokens[t]);
  }
  const size_t wanted = wanting.size();
  if (wanted == 0) return logits;
  segments_ = Segments(wanting.data(), wanted);
  Norm(x_.data(), weights_.output_norm, wanted, normed_.data());
  Multiply(normed_.data(), wanted, {{&weights_.output, logits}}, /*round_tokens=*/false);
  if (spec_.logit_softcap != 0) SoftCap(logits, 1.0f, spec_.logit_softcap, wanted * spec_.vocab_size);
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
  for (hwy::AlignedVector<float>* buffer : {&cos_, &sin_}) grow(*buffer, spec_.ropes.size() * (spec_.rope_dim / 2));

  for (size_t first = 0; first < tokens.size(); first += kMaxChunk) {
    const Token* chunk = tokens.data() + first;
    const size_t num = std::min(kMaxChunk, tokens.size() - first);
    segments_ = Segments(chunk, num);
    FindRuns(chunk);
    Embed(chunk, num);
    RotaryAngles(chunk, num);
    for (size_t layer = 0; layer < spec_.num_layers; ++layer) {
      AttentionBranch(layer, chunk, num);
      FeedForwardBranch(weights_.layers[layer], num);
    }
    logits = Logits(chunk, num, logits);
  }
}

}  // namespace lowbit
