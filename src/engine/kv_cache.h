// Keys and values of past tokens, in pages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "hwy/aligned_allocator.h"
#include "src/kernels/kv_layout.h"

namespace lowbit {

class KvCache {
 public:
  // max_length: the most tokens per sequence. Pages are allocated on demand.
  KvCache(const KvLayout& layout, size_t max_length, size_t max_sequences);

  const KvLayout& layout() const { return layout_; }
  size_t max_length() const { return max_length_; }
  // Raises the limit of tokens per sequence to at least max_length.
  void RaiseMaxLength(size_t max_length) { max_length_ = std::max(max_length_, max_length); }

  // Number of tokens of a sequence; 0 for an unknown one.
  size_t Length(int32_t sequence) const;

  // Makes room for `num` more tokens of a sequence. Throws ContextFullError without changing anything.
  void Extend(int32_t sequence, size_t num);

  // Keeps only the first `length` tokens. Throws InputError if there are fewer.
  void Truncate(int32_t sequence, size_t length);

  // Whether a sequence's keys use the long rotary tables (RopeTable). The value that is set after the first Extend
  // remains as long as the sequence has tokens.
  bool IsLong(int32_t sequence) const;
  void SetLong(int32_t sequence, bool is_long) { sequences_.at(sequence).is_long = is_long; }

  // Pages of a sequence after Extend. Page i has tokens 64 i to 64 i + 63.
  const std::vector<uint8_t*>& Pages(int32_t sequence) const;

  // Stores the key and value of one token and head in one layer: head_dim floats each.
  void Store(int32_t sequence, size_t position, size_t layer, size_t head, const float* key, const float* value);

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
