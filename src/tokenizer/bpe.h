// Byte-pair encoding of words that are cut already: normalizing, cutting and added tokens are not its business.
//
// Ids are those of the `tokenizers` library's BPE. It takes 0.2 to 0.5 s to build from Python, of which most goes into
// one allocation for each token and merge; the flat tables here take 30 to 150 ms.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lowbit {

constexpr uint32_t kNoToken = UINT32_MAX;

// Texts of a vocabulary by id, and ids by text. An empty text is no token. Of ids with the same text the last has it.
class TokenIndex {
 public:
  explicit TokenIndex(const std::vector<std::string_view>& texts);

  uint32_t size() const { return static_cast<uint32_t>(begins_.size()) - 1; }
  std::string_view text(uint32_t id) const {
    return std::string_view(texts_).substr(begins_[id], begins_[id + 1] - begins_[id]);
  }
  // kNoToken if there is none.
  uint32_t Find(std::string_view text) const;
  // The same in two steps, for several texts at once: all first steps, then all second ones.
  uint64_t Prefetched(std::string_view text) const;
  uint32_t Find(std::string_view text, uint64_t hash) const;
  // The first id whose text a later one has, too; kNoToken if there is none.
  uint32_t repeated() const { return repeated_; }

 private:
  size_t Slot(std::string_view text, uint64_t hash) const;

  std::string texts_;
  std::vector<size_t> begins_;
  std::vector<uint64_t> slots_;  // of what the hash says: 32 bits of it, then id + 1; 0 is free
  uint32_t repeated_ = kNoToken;
};

// Pairs of tokens that become a third, best first.
class Merges {
 public:
  struct Merge {
    uint32_t rank, result;
  };

  // Of lines "left right". Throws FormatError, which names `key`, unless all three are tokens.
  Merges(std::shared_ptr<const TokenIndex> index, const std::vector<std::string_view>& lines, std::string_view key);
  // Those that scores imply: any two tokens merge that make a third. Best score first; of one token's merges the one
  // with the longest left part, then by id. Only what `is_mergeable` says is made. Throws FormatError for a longer
  // token than kMaxPiece.
  Merges(std::shared_ptr<const TokenIndex> index, const double* scores, const uint8_t* is_mergeable);

  const TokenIndex& index() const { return *index_; }
  const std::vector<std::pair<uint32_t, uint32_t>>& pairs() const { return pairs_; }
  // Of a pair that is listed twice, the last. nullptr if there is none.
  const Merge* Find(uint32_t left, uint32_t right) const;

  // Characters of a token whose merges are looked for, which takes their square.
  static constexpr size_t kMaxPiece = 1024;

 private:
  struct Slot {
    uint32_t left = kNoToken, right = kNoToken;
    Merge merge{0, 0};
  };

  void Insert(const std::vector<uint32_t>& results);
  size_t Home(uint32_t left, uint32_t right) const;

  std::shared_ptr<const TokenIndex> index_;
  std::vector<std::pair<uint32_t, uint32_t>> pairs_;
  std::vector<Slot> slots_;
};

struct BpeOptions {
  uint32_t unknown = kNoToken;  // stands for characters that are no tokens, which are left out without it
  bool fuse_unknown = false;    // one for several in a row
  bool byte_fallback = false;   // <0x00> to <0xFF>, where all bytes of a character are tokens
  bool ignore_merges = false;   // a word that is a token stays whole
};

class Bpe {
 public:
  Bpe(std::shared_ptr<const Merges> merges, const BpeOptions& options);

  const Merges& merges() const { return *merges_; }
  // What encoding uses, kept from word to word.
  struct Scratch {
    struct Candidate {
      uint32_t rank, at, result;
    };
    std::vector<uint32_t> symbols, next, previous;
    std::vector<Candidate> queue;
  };
  // Appends the ids of a word, which is UTF-8. Throws InputError if it has 2^32 bytes or more.
  void Encode(std::string_view word, Scratch* scratch, std::vector<uint32_t>* ids) const;

 private:
  void SetSymbols(std::string_view word, std::vector<uint32_t>* symbols) const;

  std::shared_ptr<const Merges> merges_;
  BpeOptions options_;
  std::array<uint32_t, 256> bytes_;
  std::array<uint32_t, 128> ascii_;
};

}  // namespace lowbit
