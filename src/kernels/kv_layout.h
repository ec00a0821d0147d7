// Keys and values of a page.
#pragma once

#include <cstddef>
#include <cstdint>

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

// Writes one token's key and value of one head, head_dim floats each, into slot `slot` of a page.
void StoreKeyValue(const KvLayout& layout, uint8_t* page, size_t slot, size_t layer, size_t head, const float* key,
                   const float* value);

}  // namespace lowbit
