// Keys and values of past tokens, in pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "src/kernels/attention.h"

namespace lowbit {

class KvCache {
 public:
  // At most max_length tokens a sequence and max_sequences sequences. Pages are allocated when needed.
  KvCache(const KvLayout& layout, size_t max_length, size_t max_sequences);

  const KvLayout& layout() const { return layout_; }
  size_t max_length() const { return max_length_; }
  // At least max_length tokens a sequence from now on.
  void RaiseMaxLength(size_t max_length) { max_length_ = std::max(max_length_, max_length); }

  // Tokens held of a sequence; 0 for one never seen.
  size_t Length(int32_t sequence) const;

  // Makes room for `num` more tokens of a sequence. Throws ContextFullError, and then nothing has changed.
  void Extend(int32_t sequence, size_t num);

  // Forgets all but the first `length` tokens; InputError if there are fewer.
  void Truncate(int32_t sequence, size_t length);

  // Whether a sequence's keys turn by the long tables of rotary embeddings (RopeTable); so long as it holds tokens this
  // stays as it was set after the first Extend.
  bool IsLong(int32_t sequence) const;
  void SetLong(int32_t sequence, bool is_long) { sequences_.at(sequence).is_long = is_long; }

  // Pages of a sequence that Extend has been called for; page i holds tokens 64 i to 64 i + 63.
  const std::vector<uint8_t*>& Pages(int32_t sequence) const;

  // Stores one token's key and value of one layer: num_kv_heads * head_dim floats each.
  void Store(int32_t sequence, size_t position, size_t layer, const float* key, const float* value);

 private:
  struct Sequence {
    size_t length = 0;
    bool is_long = false;
    std::vector<uint8_t*> pages;
  };

  uint8_t* TakePage();

  KvLayout layout_;
  size_t max_length_;
  size_t max_sequences_;
  std::unordered_map<int32_t, Sequence> sequences_;
  std::vector<hwy::AlignedFreeUniquePtr<uint8_t[]>> owned_;
  std::vector<uint8_t*> free_;
};

}  // namespace lowbit
