// The generic transformer: tokens in, logits out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/base/fork.h"
#include "src/engine/kv_cache.h"
#include "src/engine/spec.h"
#include "src/engine/weights.h"
#include "src/kernels/matmul.h"

namespace lowbit {

// Tokens of any number of sequences. A sequence's tokens come in order and continue where its cache ends.
struct Batch {
  size_t num_tokens;
  const int32_t* tokens;
  const int32_t* positions;
  const int32_t* sequences;
  const bool* wants_logits;
  // How many tokens the sequences that begin here will come to hold, as far as is known. It matters where the rotary
  // embedding has long tables: a sequence keeps the table it began with, the long one if it will be longer than
  // spec.original_context by this batch's end or by this.
  size_t expected_length;
};

class Transformer {
 public:
  // Tokens taken through the layers at once; longer batches go in pieces, which bounds the memory they need.
  static constexpr size_t kMaxChunk = 512;

  // Called with the name of a weight and the num_tokens rows of K floats it is about to be multiplied with. What it
  // throws ends the Forward that called it. It must not call the model: that throws InputError.
  using Observer = std::function<void(const std::string& name, const float* x, size_t num_tokens, size_t K)>;

  // Rows [first, first + num) of a streamed matrix, as the tokens of `sequence` see them. They are read until the next
  // call, which makes one Forward of a network of any size a matter of a few megabytes, and lets it compare two sets of
  // weights: as two sequences.
  using RowSource = std::function<Matrix(const std::string& name, size_t first, size_t num, int32_t sequence)>;
  // Weights of a piece that is asked for.
  static constexpr size_t kStreamedWeights = 4 << 20;

  // Positions are int32.
  static constexpr size_t kMostTokens = (size_t{1} << 31) - 1;

  // The tensors' bytes must outlive the model. At most max_length tokens a sequence, which may be more than
  // spec.context_length. rows: of the matrices without data.
  Transformer(const ModelSpec& spec, const TensorMap& tensors, Compute compute, size_t num_threads, size_t max_length,
              size_t max_sequences, RowSource rows = nullptr);

  // Writes vocab_size logits for each token that wants them, in order. Throws InputError for a token or position out of
  // place, or a sequence that would outgrow the table it began with, and ContextFullError. Whatever it throws, the
  // sequences are then as long as they were.
  void Forward(const Batch& batch, float* logits);

  size_t Length(int32_t sequence);
  // Whether the sequence's tokens turn by the long tables.
  bool IsLong(int32_t sequence);
  void Truncate(int32_t sequence, size_t length);
  // Lets sequences hold at least max_length tokens.
  void RaiseMaxLength(size_t max_length);

  // Calls of several threads take turns; each of the above has one. Throws InputError where the thread has it already,
  // that is, in the observer, and in a child that was forked while another thread had it.
  class Turn {
   public:
    explicit Turn(Transformer& model);
    ~Turn() { model_.mutex_.unlock(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Transformer& model_;
  };
  void SetObserver(const Turn&, Observer observer) { observer_ = std::move(observer); }

  const ModelSpec& spec() const { return spec_; }
  size_t max_length() const { return cache_.max_length(); }

 private:
  struct Token {
    int32_t id, position, sequence;
    bool wants_logits;
  };

  // Neighbouring rows of activations that belong to one sequence.
  struct Segment {
    int32_t sequence;
    size_t num_tokens;
  };

  std::map<int32_t, size_t> Admit(const Batch& batch);
  void TruncateAll(const std::map<int32_t, size_t>& lengths);
  void Run(const Batch& batch, float* logits);
  void Embed(const Token* tokens, size_t num);
  void RotaryAngles(const Token* tokens, size_t num);
  void AttentionBranch(size_t layer, const Token* tokens, size_t num);
  void FeedForwardBranch(const LayerWeights& w, size_t num);
  void FinishQueryKeyValue(size_t layer, const Token& token, size_t t, size_t num);
  void AddBranch(const std::vector<float>& post_norm, size_t num);
  void Norm(const float* x, const std::vector<float>& weight, size_t num, float* out);
  float* Logits(const Token* tokens, size_t num, float* logits);
  static std::vector<Segment> Segments(const Token* tokens, size_t num);
  void MultiplyStreamed(const Linear& linear, const float* x, float* out, bool round_tokens);
  void Multiply(const float* x, size_t num, std::initializer_list<std::pair<const Linear*, float*>> products,
                bool round_tokens);

  ModelSpec spec_;
  Weights weights_;
  KvCache cache_;
  Matmul matmul_;
  Observer observer_;
  RowSource rows_;
  std::vector<Segment> segments_;  // of the rows that are being multiplied
  ForkMutex mutex_{"the model"};

  // One row a token of the chunk.
  hwy::AlignedVector<float> x_, normed_, q_, k_, v_, attended_, gate_, up_;
  hwy::AlignedVector<float> cos_, sin_;  // [ropes][tokens of the chunk][rope_dim / 2]
};

}  // namespace lowbit
