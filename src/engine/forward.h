// The generic transformer: tokens in, logits out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/base/fork.h"
#include "src/base/threads.h"
#include "src/engine/kv_cache.h"
#include "src/engine/profile.h"
#include "src/engine/spec.h"
#include "src/engine/weights.h"
#include "src/kernels/attention.h"
#include "src/kernels/matmul.h"

namespace lowbit {

// Tokens of any number of sequences. The tokens of a sequence are in order and continue its cache.
struct Batch {
  size_t num_tokens;
  const int32_t* tokens;
  const int32_t* positions;
  const int32_t* sequences;
  const bool* wants_logits;
  // Expected number of tokens of the sequences that start here. It selects the rotary tables: a sequence keeps the
  // table that it starts with. That is the long table if the sequence will be longer than spec.original_context after
  // this batch or according to this number.
  size_t expected_length;
};

class Transformer {
 public:
  // Tokens per pass through the layers. Longer batches are split, which limits memory.
  static constexpr size_t kMaxChunk = 512;

  // Called with the name of a weight and the num_tokens rows of K floats that will be multiplied with it. An exception
  // ends the Forward call. It must not call the model: that throws InputError.
  using Observer = std::function<void(const std::string& name, const float* x, size_t num_tokens, size_t K)>;

  // Rows [first, first + num) of a streamed matrix for the tokens of `sequence`. They are read until the next call, so
  // a Forward of a network of any size takes a few megabytes. Two sequences can use two different sets of weights,
  // which allows comparing them.
  using RowSource = std::function<Matrix(const std::string& name, size_t first, size_t num, int32_t sequence)>;
  // Weights per requested piece.
  static constexpr size_t kStreamedWeights = 4 << 20;

  // Positions are int32.
  static constexpr size_t kMostTokens = (size_t{1} << 31) - 1;

  // The tensors' bytes must outlive the model. max_length: the most tokens per sequence; it may exceed
  // spec.context_length. rows: source of the matrices without data.
  Transformer(const ModelSpec& spec, const TensorMap& tensors, Compute compute, size_t num_threads, size_t max_length,
              size_t max_sequences, RowSource rows = nullptr);

  // Writes vocab_size logits for each token that wants them, in order. Throws InputError for an invalid token or
  // position, or a sequence that would outgrow the table it started with; and ContextFullError. After an exception the
  // sequences have their previous lengths. profile: gets the times of the stages; throws
  // InputError if there is an observer, whose time would count.
  void Forward(const Batch& batch, float* logits, Profile* profile = nullptr);

  size_t Length(int32_t sequence);
  // Whether the sequence uses the long tables.
  bool IsLong(int32_t sequence);
  void Truncate(int32_t sequence, size_t length);
  // Lets sequences hold at least max_length tokens.
  void RaiseMaxLength(size_t max_length);

  // Exclusive access: calls from several threads run one after another, and each function above holds a Turn. Throws
  // InputError if the thread already holds it (in the observer), and in a child forked while another thread held it.
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

  // Consecutive rows of activations of one sequence.
  struct Segment {
    int32_t sequence;
    size_t num_tokens;
  };

  // A linear map of the rows of an input, to be written to or added to `out`.
  struct Projection {
    const Linear* linear;
    float* out;
    bool add = false;
  };

  // Provides a row of the input of a projection.
  using Source = FunctionRef<Matmul::Row&>;

  std::map<int32_t, size_t> Admit(const Batch& batch);
  void TruncateAll(const std::map<int32_t, size_t>& lengths);
  void Run(const Batch& batch, float* logits);
  bool CallsBack() const { return observer_ || rows_; }

  // Parts of the body that all workers run together (RunTeam). Each ends with a barrier.
  void Chunk(Worker& worker, const Token* tokens, size_t num, float* logits);
  void Embed(Worker& worker, const Token* tokens, size_t num);
  void AttentionBranch(Worker& worker, size_t layer, const Token* tokens, size_t num);
  void FeedForwardBranch(Worker& worker, size_t layer, size_t num);
  void Logits(Worker& worker, float* logits);
  // Adds linear * input to the residual stream. With a norm of the branch's result, that is added.
  void AddBranch(Worker& worker, size_t num, Source input, const Linear& linear, const std::vector<float>& post_norm,
                 bool round_tokens);
  // Without a barrier at the end. finish: as for Matmul::Run.
  void Project(Worker& worker, size_t num, Source input, std::initializer_list<Projection> projections,
               bool round_tokens, const FunctionRef<Matmul::Range>* finish = nullptr);

  // After the barrier that ends a stage.
  void Record(const Worker& worker, const char* stage, std::optional<size_t> layer = std::nullopt) {
    if (profile_ && worker.id() == 0) profile_->End(stage, layer);
  }

  // Provides a token's row of an input, normalized if there is a norm.
  void ProvideRow(const hwy::AlignedVector<float>& rows, size_t width, const std::vector<float>& norm,
                  Matmul::Row& row) const;
  void EmbedToken(const Token& token, size_t t);
  void RotaryAngles(const Token& token, size_t t, size_t num);
  void FinishQueryKeyValue(size_t layer, const Token& token, size_t t, size_t num, size_t kv_head);
  void Observe(size_t num, size_t K, Source input, const Projection* projections, size_t num_projections);
  void MultiplyStreamed(const Projection& projection, bool round_tokens);
  static std::vector<Segment> Segments(const Token* tokens, const std::vector<size_t>& rows);
  void FindRuns(const Token* tokens);

  ModelSpec spec_;
  Weights weights_;
  KvCache cache_;
  Attention attention_;
  Matmul matmul_;
  Observer observer_;
  RowSource rows_;
  Profile* profile_ = nullptr;      // of the running Forward, if it has one
  std::vector<AttentionRun> runs_;  // of the chunk
  std::vector<size_t> wanting_;     // rows of the chunk whose logits are wanted
  std::vector<Segment> segments_;   // of the rows that are multiplied now
  ForkMutex mutex_{"the model"};

  // One row per token of the chunk.
  hwy::AlignedVector<float> x_, branch_, q_, k_, v_, attended_, gate_, up_;
  hwy::AlignedVector<float> inputs_;     // of a projection, if it is observed or streamed
  hwy::AlignedVector<float> cos_, sin_;  // [ropes][tokens of the chunk][rope_dim / 2]
};

}  // namespace lowbit
