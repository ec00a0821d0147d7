// Softmax attention over paged keys and values.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "src/base/threads.h"
#include "src/kernels/kv_layout.h"

namespace lowbit {

// Maps products of queries and keys to scores: s = q k^T * scale; with a cap, cap * tanh(s / cap).
struct AttentionScores {
  float scale;
  float cap;  // 0: none
};

// Consecutive tokens of one sequence, whose keys and values are in its pages.
struct AttentionRun {
  uint8_t* const* pages;
  size_t first_position;
  size_t num_tokens;
};

// Rows of one run that share a key-value head. A row is a query, one head of one token. The rows of a run and a
// key-value head are numbered token by token.
struct AttentionTile {
  static constexpr size_t kMaxRows = 48;

  AttentionRun run;
  size_t run_token;  // the place of the run's first token among all tokens
  size_t kv_head;
  size_t first_row, num_rows;
  size_t first_span, end_span;  // with keys of any row
  size_t cost;                  // of its computation, in no particular unit
  size_t num_tasks;
  size_t partials;  // the place of its spans' results, if it has several tasks
};

// Spans [first_span, end_span) of a tile.
struct AttentionTask {
  size_t tile, first_span, end_span;
};

// Softmax attention of a network's layers: out = softmax(s) v for every head of every token, over the keys of the token
// and of those before it. Keeps its buffers from one call to the next, so one call at a time.
//
// The result of a head depends only on its own query, keys and values: it is the same bits with any number of threads,
// whichever other tokens there are. Keys are taken in spans of kSpanTokens, counted from the first token of the
// sequence. A span's result is built up page by page ("online softmax"), and spans are added up in order; several
// threads can share a tile's spans. Other tokens in the tile get weight 0. A non-finite value there still produces NaN.
//
// Cost of a row: 2 * keys * head_dim multiply-adds, and an exponential a key. A page is read once for kMaxRows rows.
class Attention {
 public:
  static constexpr size_t kSpanTokens = 4 * KvLayout::kPageTokens;

  // num_heads is a multiple of layout.num_kv_heads.
  Attention(const KvLayout& layout, size_t num_heads, AttentionScores how)
      : layout_(layout), num_heads_(num_heads), how_(how) {}

  // Divides the work of a layer among up to num_threads threads. window: how many tokens a token attends to, itself
  // included; 0: all.
  void Plan(size_t window, const std::vector<AttentionRun>& runs, size_t num_threads);

  // Part of a body of RunTeam, called by all workers after Plan and a barrier. No barrier follows. q, out: [tokens of all
  // runs][num_heads][head_dim].
  void Run(Worker& worker, size_t layer, const float* q, float* out);

 private:
  KvLayout layout_;
  size_t num_heads_;
  size_t window_ = 0;
  AttentionScores how_;
  std::vector<AttentionTile> tiles_;
  std::vector<AttentionTask> tasks_;
  std::vector<std::atomic<size_t>> unfinished_;  // tasks of each tile
  hwy::AlignedVector<float> partials_;
};

}  // namespace lowbit
