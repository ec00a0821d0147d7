// Softmax attention over paged keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "src/base/threads.h"

namespace lowbit {

// Sizes and layout of a page: 64 consecutive tokens of one sequence, all layers. In each layer, for each head:
//
//   keys    [head_dim][64]       transposed, so that a product with a query processes 64 keys in parallel
//   values  [64][padded_dim]     head_dim rounded up to 16
//
// Elements are float16, or float if products are exact.
struct KvLayout {
  static constexpr size_t kPageTokens = 64;

  size_t num_layers = 0;
  size_t num_kv_heads = 0;
  size_t head_dim = 0;
  bool is_f32 = false;

  size_t PaddedDim() const { return (head_dim + 15) / 16 * 16; }
  size_t ElementBytes() const { return is_f32 ? 4 : 2; }
  size_t HeadElements() const { return kPageTokens * (head_dim + PaddedDim()); }
  size_t PageBytes() const { return num_layers * num_kv_heads * HeadElements() * ElementBytes(); }
  // The first element of a head in a layer. Its values start kPageTokens * head_dim later.
  size_t HeadOffset(size_t layer, size_t head) const { return (layer * num_kv_heads + head) * HeadElements(); }
};

// A token with its query.
struct AttentionQuery {
  const float* q;         // [num_heads][head_dim]
  float* out;             // [num_heads][head_dim]
  uint8_t* const* pages;  // of its sequence
  size_t first_key;       // attends to keys [first_key, num_keys)
  size_t num_keys;
};

// The unit of work: up to kMaxRows heads of neighbouring tokens of one sequence that share a key-value head.
struct AttentionTile {
  static constexpr size_t kMaxRows = 8;

  size_t num_rows;
  const float* q[kMaxRows];
  float* out[kMaxRows];
  size_t first_key[kMaxRows];  // ascending
  size_t num_keys[kMaxRows];   // ascending
  uint8_t* const* pages;
  size_t kv_head;

  // The first key to read: the start of a page.
  size_t FirstKey() const { return first_key[0] / KvLayout::kPageTokens * KvLayout::kPageTokens; }
  size_t EndKey() const { return num_keys[num_rows - 1]; }
};

// Maps products of queries and keys to scores: s = q k^T * scale; with a cap, cap * tanh(s / cap).
struct AttentionScores {
  float scale;
  float cap;  // 0: none
};

// out = softmax(s) v for queries of one step. Reused by later steps.
class AttentionPlan {
 public:
  // Divides the work into tiles. num_heads is a multiple of num_kv_heads.
  void Plan(const KvLayout& layout, size_t num_heads, const std::vector<AttentionQuery>& queries);

  // Part of a body of RunTeam, called by all workers after Plan and a barrier. No barrier follows. The result of a head
  // depends only on its own query and keys. Other tokens in the tile get weight 0. A non-finite value there still produces
  // NaN.
  //
  // Cost: 2 * (num_keys - first_key) * head_dim multiply-adds per head, and up to one page more. Keys are read once for 8
  // rows.
  void Run(Worker& worker, const KvLayout& layout, size_t layer, AttentionScores how) const;

 private:
  std::vector<AttentionTile> tiles_;
};

// Writes one token's key and value, num_kv_heads * head_dim floats each, into slot `slot` of a page.
void StoreKeyValue(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, const float* key,
                   const float* value);

}  // namespace lowbit
