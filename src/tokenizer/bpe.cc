#include "src/tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <random>
#include <tuple>

#include "hwy/cache_control.h"
#include "src/base/error.h"
#include "src/io/text.h"

namespace lowbit {
namespace {

// Random keys: a hostile file cannot contain texts that are chosen to share a slot.
struct HashKeys {
  uint64_t seed, factor;
};

const HashKeys& Keys() {
  static const HashKeys keys = [] {
    std::random_device device;
    const auto next = [&] { return uint64_t{device()} << 32 | device(); };
    return HashKeys{next(), next() | 1};
  }();
  return keys;
}

constexpr char kTokensKey[] = "tokenizer.ggml.tokens";

uint64_t Mixed(uint64_t hash) {
  hash *= Keys().factor;
  return hash ^ hash >> 32;
}

uint64_t Finished(uint64_t hash) {
  hash *= 0x9E3779B97F4A7C15u;
  hash ^= hash >> 29;
  hash *= 0xBF58476D1CE4E5B9u;
  return hash ^ hash >> 32;
}

uint64_t Hash(std::string_view text) {
  uint64_t hash = Mixed(Keys().seed ^ text.size());
  uint64_t word = 0;
  for (; text.size() >= sizeof(word); text.remove_prefix(sizeof(word))) {
    std::memcpy(&word, text.data(), sizeof(word));
    hash = Mixed(hash ^ word);
  }
  word = 0;
  if (!text.empty()) std::memcpy(&word, text.data(), text.size());
  return Finished(Mixed(hash ^ word));
}

// A power of two, 1.5 to 3 times the number of entries.
size_t NumSlots(size_t entries) {
  size_t slots = 8;
  while (slots < entries + entries / 2) slots *= 2;
  return slots;
}

bool BeginsCharacter(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) != 0x80; }

size_t NumCharacters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), BeginsCharacter));
}

// The number of bytes of the first character.
size_t CharacterBytes(std::string_view text) {
  size_t size = 1;
  while (size < text.size() && !BeginsCharacter(text[size])) ++size;
  return size;
}

bool IsBetter(const Merges::Merge& a, const Merges::Merge& b) {
  return std::tie(b.score, b.left_characters, a.result) < std::tie(a.score, a.left_characters, b.result);
}

}  // namespace

TokenIndex::TokenIndex(const std::vector<std::string_view>& texts) {
  if (texts.size() >= kNoToken)
    throw FormatError(Str(texts.size(), " tokens")).Expected("fewer than 2^32").Found(texts.size());
  begins_.reserve(texts.size() + 1);
  texts_.reserve(std::accumulate(texts.begin(), texts.end(), size_t{0},
                                 [](size_t sum, std::string_view text) { return sum + text.size(); }));
  for (const std::string_view text : texts) {
    begins_.push_back(texts_.size());
    texts_ += text;
  }
  begins_.push_back(texts_.size());
  slots_.resize(NumSlots(texts.size()));
  for (uint32_t id = 0; id < texts.size(); ++id) {
    if (texts[id].empty()) continue;
    const uint64_t hash = Hash(texts[id]);
    uint64_t& slot = slots_[Slot(texts[id], hash)];
    if (slot != 0) repeated_ = std::min(repeated_, static_cast<uint32_t>(slot) - 1);
    slot = hash >> 32 << 32 | (id + 1);
  }
}

size_t TokenIndex::Slot(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  for (; slots_[at] != 0; at = (at + 1) & mask) {
    if (slots_[at] >> 32 == hash >> 32 && this->text(static_cast<uint32_t>(slots_[at]) - 1) == text) break;
  }
  return at;
}

uint64_t TokenIndex::Prefetched(std::string_view text) const {
  const uint64_t hash = Hash(text);
  hwy::Prefetch(&slots_[hash & (slots_.size() - 1)]);
  return hash;
}

uint32_t TokenIndex::Find(std::string_view text) const { return Find(text, Hash(text)); }

uint32_t TokenIndex::Find(std::string_view text, uint64_t hash) const {
  if (text.empty()) return kNoToken;
  const uint64_t slot = slots_[Slot(text, hash)];
  return slot == 0 ? kNoToken : static_cast<uint32_t>(slot) - 1;
}

ListedMerges::ListedMerges(std::shared_ptr<const TokenIndex> index, const std::vector<std::string_view>& lines,
                           std::string_view key)
    : Merges(std::move(index)) {
  if (lines.size() >= kNoToken)
    throw FormatError(Str(lines.size(), " merges")).Expected("fewer than 2^32").Found(lines.size());
  pairs_.reserve(lines.size());
  slots_.resize(NumSlots(lines.size()));
  // Several lines in each step, so that the cache misses of their lookups overlap.
  struct Line {
    std::string both;
    std::array<std::string_view, 3> texts;  // left, right, both
    std::array<uint64_t, 3> hashes;
    std::array<uint32_t, 3> ids;
    size_t home;
  };
  std::array<Line, 16> batch;
  for (size_t begin = 0; begin < lines.size(); begin += batch.size()) {
    const size_t count = std::min(batch.size(), lines.size() - begin);
    for (size_t i = 0; i < count; ++i) {
      const std::string_view text = lines[begin + i];
      const size_t cut = std::min(text.find(' ', 1), text.size());  // the left part may be a space
      Line& line = batch[i];
      line.texts = {text.substr(0, cut), text.substr(std::min(cut + 1, text.size())), {}};
      line.texts[2] = line.both.assign(line.texts[0]).append(line.texts[1]);
      for (size_t k = 0; k < 3; ++k) line.hashes[k] = this->index().Prefetched(line.texts[k]);
    }
    for (size_t i = 0; i < count; ++i) {
      Line& line = batch[i];
      for (size_t k = 0; k < 3; ++k) {
        line.ids[k] = this->index().Find(line.texts[k], line.hashes[k]);
        if (line.ids[k] == kNoToken) {
          throw FormatError(Str(key, ":"))
              .Key(key)
              .Expected("two tokens that merge into a third at index ", begin + i)
              .Found(Quoted(lines[begin + i]));
        }
      }
      line.home = Home(line.ids[0], line.ids[1]);
      hwy::Prefetch(&slots_[line.home]);
    }
    for (size_t i = 0; i < count; ++i) {
      const auto [left, right, result] = batch[i].ids;
      pairs_.emplace_back(left, right);
      size_t at = batch[i].home;
      while (slots_[at].left != kNoToken && (slots_[at].left != left || slots_[at].right != right)) {
        at = (at + 1) & (slots_.size() - 1);
      }
      slots_[at] = {left, right, static_cast<uint32_t>(begin + i), result};
    }
  }
}

size_t ListedMerges::Home(uint32_t left, uint32_t right) const {
  return Finished(Mixed(Keys().seed ^ (uint64_t{left} << 32 | right))) & (slots_.size() - 1);
}

std::optional<Merges::Merge> ListedMerges::Find(uint32_t left, uint32_t right) const {
  for (size_t at = Home(left, right); slots_[at].left != kNoToken; at = (at + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[at];
    if (slot.left == left && slot.right == right) return Merge{-static_cast<double>(slot.rank), 0, slot.result};
  }
  return std::nullopt;
}

ScoredMerges::ScoredMerges(std::shared_ptr<const TokenIndex> index, const double* scores, const uint8_t* is_mergeable)
    : Merges(std::move(index)),
      scores_(scores, scores + this->index().size()),
      is_mergeable_(is_mergeable, is_mergeable + this->index().size()) {
  for (uint32_t id = 0; id < this->index().size(); ++id) {
    const std::string_view text = this->index().text(id);
    const size_t characters = text.size() > kMaxPiece ? NumCharacters(text) : 0;
    if (is_mergeable[id] && characters > kMaxPiece) {
      throw FormatError(Str(kTokensKey, ":"))
          .Key(kTokensKey)
          .Expected("at most ", kMaxPiece, " characters in token ", id)
          .Found(characters);
    }
  }
}

std::optional<Merges::Merge> ScoredMerges::Find(uint32_t left, uint32_t right) const {
  const std::string_view left_text = index().text(left), right_text = index().text(right);
  std::array<char, kMaxBytes> both;
  const size_t size = left_text.size() + right_text.size();
  if (size > both.size()) return std::nullopt;
  std::copy(right_text.begin(), right_text.end(), std::copy(left_text.begin(), left_text.end(), both.begin()));
  const uint32_t result = index().Find({both.data(), size});
  if (result == kNoToken || !is_mergeable_[result]) return std::nullopt;
  return Merge{scores_[result], static_cast<uint32_t>(NumCharacters(left_text)), result};
}

std::vector<std::pair<uint32_t, uint32_t>> ScoredMerges::Pairs() const {
  struct Found {
    Merge merge;
    std::pair<uint32_t, uint32_t> pair;
  };
  std::vector<Found> found;
  for (uint32_t id = 0; id < index().size(); ++id) {
    const std::string_view text = index().text(id);
    if (!is_mergeable_[id] || index().Find(text) != id) continue;
    uint32_t characters = 1;
    for (size_t cut = CharacterBytes(text); cut < text.size(); cut += CharacterBytes(text.substr(cut)), ++characters) {
      const uint32_t left = index().Find(text.substr(0, cut));
      const uint32_t right = left == kNoToken ? kNoToken : index().Find(text.substr(cut));
      if (right != kNoToken) found.push_back({{scores_[id], characters, id}, {left, right}});
    }
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return IsBetter(a.merge, b.merge); });
  std::vector<std::pair<uint32_t, uint32_t>> pairs(found.size());
  std::transform(found.begin(), found.end(), pairs.begin(), [](const Found& merge) { return merge.pair; });
  return pairs;
}

Bpe::Bpe(std::shared_ptr<const Merges> merges, const BpeOptions& options)
    : merges_(std::move(merges)), options_(options) {
  const char* digits = "0123456789ABCDEF";
  for (size_t byte = 0; byte < bytes_.size(); ++byte) {
    const char text[] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
    bytes_[byte] = merges_->index().Find({text, sizeof(text)});
  }
  for (size_t byte = 0; byte < ascii_.size(); ++byte) {
    const char text = static_cast<char>(byte);
    ascii_[byte] = merges_->index().Find({&text, 1});
  }
}

// The initial symbols: for each character its token, or the tokens of its bytes, or the unknown token.
void Bpe::SetSymbols(std::string_view word, std::vector<uint32_t>* symbols) const {
  symbols->clear();
  bool has_unknown = false;  // an unknown token is pending; it is written before the next known character
  const auto flush = [&] {
    if (has_unknown) symbols->push_back(options_.unknown);
    has_unknown = false;
  };
  for (size_t size = 0; !word.empty(); word.remove_prefix(size)) {
    const uint8_t first = static_cast<uint8_t>(word[0]);
    size = first < 0x80 ? 1 : CharacterBytes(word);
    const std::string_view character = word.substr(0, size);
    const uint32_t id = first < 0x80 ? ascii_[first] : merges_->index().Find(character);
    if (id != kNoToken) {
      flush();
      symbols->push_back(id);
      continue;
    }
    const auto byte_id = [&](char byte) { return bytes_[static_cast<uint8_t>(byte)]; };
    if (options_.byte_fallback &&
        std::all_of(character.begin(), character.end(), [&](char byte) { return byte_id(byte) != kNoToken; })) {
      for (const char byte : character)
        symbols->push_back(byte_id(byte));  // before the pending unknown token, as in the library
    } else if (options_.unknown != kNoToken) {
      if (!options_.fuse_unknown) flush();
      has_unknown = true;
    }
  }
  flush();
}

void Bpe::Encode(std::string_view word, Scratch* scratch, std::vector<uint32_t>* ids) const {
  if (word.size() >= kNoToken)
    throw InputError(Str("a word of ", word.size(), " bytes")).Expected("fewer than 2^32").Found(word.size());
  if (options_.ignore_merges) {
    if (const uint32_t id = merges_->index().Find(word); id != kNoToken) return ids->push_back(id);
  }
  // Not a structured binding: in C++17, lambdas capture none.
  auto& symbols = scratch->symbols;
  auto& next = scratch->next;
  auto& previous = scratch->previous;
  auto& queue = scratch->queue;
  SetSymbols(word, &symbols);
  const uint32_t count = static_cast<uint32_t>(symbols.size());
  next.resize(count);
  previous.resize(count);
  queue.clear();
  const auto is_after = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {  // the best first, then by place
    return IsBetter(b.merge, a.merge) || (!IsBetter(a.merge, b.merge) && b.at < a.at);
  };
  const auto add = [&](uint32_t at) {
    const std::optional<Merges::Merge> merge = merges_->Find(symbols[at], symbols[next[at]]);
    if (merge) queue.push_back({*merge, at, symbols[at], symbols[next[at]]});
    return merge.has_value();
  };
  const auto push = [&](uint32_t at) {
    if (add(at)) std::push_heap(queue.begin(), queue.end(), is_after);
  };
  for (uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
    if (i + 1 < count) add(i);
  }
  std::make_heap(queue.begin(), queue.end(), is_after);
  while (!queue.empty()) {
    const Scratch::Candidate top = queue.front();
    std::pop_heap(queue.begin(), queue.end(), is_after);
    queue.pop_back();
    const uint32_t right = next[top.at];
    if (symbols[top.at] != top.left || right == count || symbols[right] != top.right) continue;  // one was merged since
    symbols[top.at] = top.merge.result;
    symbols[right] = kNoToken;
    next[top.at] = next[right];
    if (next[right] != count) previous[next[right]] = top.at;
    if (top.at != 0) push(previous[top.at]);
    if (next[top.at] != count) push(top.at);
  }
  std::copy_if(symbols.begin(), symbols.end(), std::back_inserter(*ids), [](uint32_t id) { return id != kNoToken; });
}

}  // namespace lowbit
