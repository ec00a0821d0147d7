#include "src/engine/kv_cache.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>

#include "src/base/error.h"

namespace lowbit {
namespace {

// Pages are allocated several at a time, so that huge pages fit in. The system provides memory when it is written.
constexpr size_t kSlabBytes = size_t{16} << 20;

// Asks the system for huge pages, which make reading long contexts a fifth faster.
void AdviseHugePages([[maybe_unused]] uint8_t* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

KvCache::KvCache(const KvLayout& layout, size_t max_length, size_t max_sequences)
    : layout_(layout), max_length_(max_length), max_sequences_(max_sequences) {}

size_t KvCache::Length(int32_t sequence) const {
  const auto found = sequences_.find(sequence);
  return found == sequences_.end() ? 0 : found->second.length;
}

uint8_t* KvCache::TakePage() {
  if (free_.empty()) {
    const size_t bytes = layout_.PageBytes(), num = std::max<size_t>(1, kSlabBytes / bytes);
    auto slab = hwy::AllocateAligned<uint8_t>(num * bytes);
    if (!slab) throw ContextFullError(Str("no memory for another ", num * bytes, " bytes of keys and values"));
    AdviseHugePages(slab.get(), num * bytes);
    owned_.push_back(std::move(slab));
    for (size_t i = num; i-- > 0;) free_.push_back(owned_.back().get() + i * bytes);
  }
  uint8_t* page = free_.back();
  free_.pop_back();
  return page;
}

void KvCache::Extend(int32_t sequence, size_t num) {
  const size_t length = Length(sequence);
  if (num > max_length_ - length) {
    throw ContextFullError(Str("context full: sequence ", sequence, " holds ", length, " tokens and ", num,
                               " more do not fit into ", max_length_));
  }
  if (sequences_.count(sequence) == 0 && sequences_.size() == max_sequences_) {
    throw ContextFullError(Str("no room for sequence ", sequence, ": all ", max_sequences_, " sequences are in use"));
  }
  Sequence& s = sequences_[sequence];
  const size_t num_pages = (length + num + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
  const size_t before = s.pages.size();
  try {
    while (s.pages.size() < num_pages) s.pages.push_back(TakePage());
  } catch (...) {
    for (; s.pages.size() > before; s.pages.pop_back()) free_.push_back(s.pages.back());
    if (before == 0) sequences_.erase(sequence);
    throw;
  }
  s.length = length + num;
}

void KvCache::Truncate(int32_t sequence, size_t length) {
  if (length > Length(sequence)) {
    throw InputError(Str("sequence ", sequence, " holds ", Length(sequence), " tokens, not ", length));
  }
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) return;
  Sequence& s = found->second;
  const size_t num_pages = (length + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens;
  for (; s.pages.size() > num_pages; s.pages.pop_back()) free_.push_back(s.pages.back());
  s.length = length;
  if (length == 0) sequences_.erase(found);
}

bool KvCache::IsLong(int32_t sequence) const {
  const auto found = sequences_.find(sequence);
  return found != sequences_.end() && found->second.is_long;
}

const std::vector<uint8_t*>& KvCache::Pages(int32_t sequence) const { return sequences_.at(sequence).pages; }

void KvCache::Store(int32_t sequence, size_t position, size_t layer, size_t head, const float* key,
                    const float* value) {
  uint8_t* page = sequences_.at(sequence).pages[position / KvLayout::kPageTokens];
  StoreKeyValue(layout_, page, position % KvLayout::kPageTokens, layer, head, key, value);
}

}  // namespace lowbit
