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

std::vector<Transformer::Segment> Transformer::Segments(const Token* tokens, const std::vector<size_t>& rows) {
  std::vector<Segment> segments;
  for (const size_t row : rows) {
    const int32_t sequence = tokens[row].sequence;
    if (segments.empty() || segments.back().sequence != sequence) segments.push_back({sequence, 0});
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

// The rows of a streamed matrix are requested in pieces.
void Transformer::MultiplyStreamed(const Projection& projection, bool round_tokens) {
  const Linear& linear = *projection.linear;
  const auto [format, data, N, K] = linear.weights;
  const size_t step = std::max<size_t>(1, kStreamedWeights / std::max<size_t>(1, K));
  for (size_t first = 0; first < N; first += step) {
    const float* bias = linear.bias.empty() ? nullptr : linear.bias.data() + first;
    size_t t = 0;
    for (const Segment& segment : segments_) {
      const Matrix rows = rows_(linear.name, linear.first_row + first, std::min(step, N - first), segment.sequence);
      matmul_(inputs_.data() + t * K, segment.num_tokens,
              {rows, projection.out + t * N + first, N, linear.scale, bias, projection.add}, round_tokens);
      t += segment.num_tokens;
    }
  }
}

void Transformer::Observe(size_t num, size_t K, Source input, const Projection* projections, size_t num_projections) {
  if (inputs_.size() < num * K) inputs_.resize(num * K);
  for (size_t t = 0; t < num; ++t) {
    float* to = inputs_.data() + t * K;
    Matmul::Row row{t, to, to};
    input(row);
    if (row.x != to) std::copy_n(row.x, K, to);
  }
  const std::string* observed = nullptr;  // rows of one tensor are observed once
  for (size_t i = 0; observer_ && i < num_projections; ++i) {
    const std::string& name = projections[i].linear->name;
    if (!observed || *observed != name) observer_(name, inputs_.data(), num, K);
    observed = &name;
  }
}

void Transformer::Project(Worker& worker, size_t num, Source input, std::initializer_list<Projection> projections,
                          bool round_tokens, const FunctionRef<Matmul::Range>* finish) {
  const size_t K = projections.begin()->linear->weights.K, N = projections.begin()->linear->weights.N;
  if (CallsBack()) Observe(num, K, input, projections.begin(), projections.size());
  const auto observed = [&](Matmul::Row& row) { row.x = inputs_.data() + row.token * K; };
  Product products[3];
  size_t num_products = 0;
  for (const Projection& projection : projections) {
    const Linear& linear = *projection.linear;
    if (!linear.weights.data) {
      MultiplyStreamed(projection, round_tokens);
      continue;
    }
    const float* bias = linear.bias.empty() ? nullptr : linear.bias.data();
    products[num_products++] = {linear.weights, projection.out, linear.weights.N, linear.scale, bias, projection.add};
  }
  const bool all = num_products == projections.size();
  matmul_.Run(worker, num, CallsBack() ? Source(observed) : input, products, num_products, round_tokens,
              all ? finish : nullptr);
  if (!all && finish) (*finish)({0, N});
}

void Transformer::EmbedToken(const Token& token, size_t t) {
  Matrix row = weights_.token_embd.weights;
  if (row.data) {
    row.data = row.Row(token.id);
  } else {
    row = rows_(weights_.token_embd.name, token.id, 1, token.sequence);
  }
  float* x = &x_[t * row.K];
  row.format->decode(row.data, row.K / row.format->block_size, x);
  if (spec_.embedding_scale != 1.0f) ScaleBy(x, spec_.embedding_scale, row.K);
}

void Transformer::RotaryAngles(const Token& token, size_t t, size_t num) {
  const size_t pairs = spec_.rope_dim / 2;
  for (size_t r = 0; r < spec_.ropes.size(); ++r) {
    const RopeTable& rope = spec_.ropes[r];
    float* cos = cos_.data() + (r * num + t) * pairs;
    float* sin = sin_.data() + (r * num + t) * pairs;
    const bool is_long = !rope.long_frequencies.empty() && cache_.IsLong(token.sequence);
    const float* frequencies = is_long ? rope.long_frequencies.data() : rope.frequencies.data();
    const float magnitude = is_long ? rope.long_magnitude : rope.magnitude;
    for (size_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(token.position) * frequencies[i];
      cos[i] = std::cos(angle) * magnitude;
      sin[i] = std::sin(angle) * magnitude;
    }
  }
}

void Transformer::Embed(Worker& worker, const Token* tokens, size_t num) {
  const auto embed = [&](size_t t) {
    EmbedToken(tokens[t], t);
    RotaryAngles(tokens[t], t, num);
  };
  if (weights_.token_embd.weights.data) {
    worker.Share(num, embed);
  } else {
    for (size_t t = 0; t < num; ++t) embed(t);  // they call back, so there is one worker
  }
  worker.Barrier();
  Record(worker, "embedding");
}

void Transformer::Logits(Worker& worker, float* logits) {
  const size_t hidden = spec_.hidden_size, vocab = spec_.vocab_size, num = wanting_.size();
  const auto normed = [&](Matmul::Row& row) {
    RmsNorm(&x_[wanting_[row.token] * hidden], weights_.output_norm.data(), hidden, spec_.norm_eps, row.buffer);
  };
  const auto cap = [&](Matmul::Range rows) {
    for (size_t t = 0; t < num; ++t) SoftCap(logits + t * vocab + rows.first, 1.0f, spec_.logit_softcap, rows.num);
  };
  const FunctionRef<Matmul::Range> finish = cap;
  Project(worker, num, normed, {{&weights_.output, logits}}, /*round_tokens=*/false,
          spec_.logit_softcap != 0 ? &finish : nullptr);
  worker.Barrier();
  Record(worker, "logits");
}

void Transformer::Chunk(Worker& worker, const Token* tokens, size_t num, float* logits) {
  Embed(worker, tokens, num);
  for (size_t layer = 0; layer < spec_.num_layers; ++layer) {
    AttentionBranch(worker, layer, tokens, num);
    FeedForwardBranch(worker, layer, num);
  }
  if (wanting_.empty()) return;
  if (worker.id() == 0 && rows_) segments_ = Segments(tokens, wanting_);
  Logits(worker, logits);
}

void Transformer::Forward(const Batch& batch, float* logits, Profile* profile) {
  const Turn turn(*this);
  if (profile && observer_) throw InputError("the model has an observer, whose time would count: end it first");
  const std::map<int32_t, size_t> before = Admit(batch);
  profile_ = profile;
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
  for (hwy::AlignedVector<float>* buffer : {&x_, &branch_}) grow(*buffer, spec_.hidden_size);
  for (hwy::AlignedVector<float>* buffer : {&q_, &attended_}) grow(*buffer, spec_.num_heads * spec_.head_dim);
  for (hwy::AlignedVector<float>* buffer : {&k_, &v_}) grow(*buffer, spec_.num_kv_heads * spec_.head_dim);
  for (hwy::AlignedVector<float>* buffer : {&gate_, &up_}) grow(*buffer, spec_.intermediate_size);
  for (hwy::AlignedVector<float>* buffer : {&cos_, &sin_}) grow(*buffer, spec_.ropes.size() * (spec_.rope_dim / 2));

  if (profile_) profile_->Start();
  for (size_t first = 0; first < tokens.size(); first += kMaxChunk) {
    const Token* chunk = tokens.data() + first;
    const size_t num = std::min(kMaxChunk, tokens.size() - first);
    wanting_.clear();
    for (size_t t = 0; t < num; ++t) wanting_.push_back(t);
    segments_ = Segments(chunk, wanting_);
    FindRuns(chunk);
    wanting_.erase(std::remove_if(wanting_.begin(), wanting_.end(), [&](size_t t) { return !chunk[t].wants_logits; }),
                   wanting_.end());
    const auto body = [&](Worker& worker) { Chunk(worker, chunk, num, logits); };
    if (CallsBack()) {
      Worker alone(matmul_.num_threads());
      body(alone);
    } else {
      RunTeam(matmul_.num_threads(), body);
    }
    logits += wanting_.size() * spec_.vocab_size;
  }
}

}  // namespace lowbit
