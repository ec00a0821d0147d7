// Byte-pair encoding of single words. The caller normalizes the text, splits it into words and handles added tokens.
//
// Ids equal those of the `tokenizers` library's BPE. The library takes 0.2 to 0.5 s to build a large vocabulary, mostly
// for one allocation per token and merge. The flat tables here take 10 to 100 ms.
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

// Texts of a vocabulary by id, and ids by text. An empty text is not a token. If several ids have one text, Find returns
// the last.
class TokenIndex {
 public:
  explicit TokenIndex(const std::vector<std::string_view>& texts);

  uint32_t size() const { return static_cast<uint32_t>(begins_.size()) - 1; }
  std::string_view text(uint32_t id) const {
    return std::string_view(texts_).substr(begins_[id], begins_[id + 1] - begins_[id]);
  }
  // kNoToken if there is none.
  uint32_t Find(std::string_view text) const;
  // Find in two steps. For several texts, call Prefetched for all, then Find for all: the cache misses overlap.
  uint64_t Prefetched(std::string_view text) const;
  uint32_t Find(std::string_view text, uint64_t hash) const;
  // The first id whose text a later id also has; kNoToken if there is none.
  uint32_t repeated() const { return repeated_; }

 private:
  size_t Slot(std::string_view text, uint64_t hash) const;

  std::string texts_;
  std::vector<size_t> begins_;
  std::vector<uint64_t> slots_;  // hash table: 32 bits of the hash, then id + 1; 0 is a free slot
  uint32_t repeated_ = kNoToken;
};

// Pairs of tokens that merge into a third token.
class Merges {
 public:
  // Of several merges, the best has the highest score; of those, the longest left part; of those, the lowest result.
  struct Merge {
    double score;
    uint32_t left_characters, result;
  };

  explicit Merges(std::shared_ptr<const TokenIndex> index) : index_(std::move(index)) {}
  virtual ~Merges() = default;

  const TokenIndex& index() const { return *index_; }
  // The merge of a pair, if there is one.
  virtual std::optional<Merge> Find(uint32_t left, uint32_t right) const = 0;
  // All pairs, best first.
  virtual std::vector<std::pair<uint32_t, uint32_t>> Pairs() const = 0;

 private:
  std::shared_ptr<const TokenIndex> index_;
};

// Merges in a list, best first. Of a pair that is listed twice, the last counts.
class ListedMerges : public Merges {
 public:
  // From lines "left right". Throws FormatError with `key` unless both parts and the result are tokens.
  ListedMerges(std::shared_ptr<const TokenIndex> index, const std::vector<std::string_view>& lines,
               std::string_view key);

  std::optional<Merge> Find(uint32_t left, uint32_t right) const override;
  std::vector<std::pair<uint32_t, uint32_t>> Pairs() const override { return pairs_; }

 private:
  struct Slot {
    uint32_t left = kNoToken, right = kNoToken, rank = 0, result = 0;
  };

  size_t Home(uint32_t left, uint32_t right) const;

  std::vector<std::pair<uint32_t, uint32_t>> pairs_;
  std::vector<Slot> slots_;
};

// Merges that follow from scores: two tokens merge if their concatenation is a token for which `is_mergeable` is set;
// its score is the merge's. A merge is looked up by that text: there is no table of pairs, which takes 0.1 s and 30 MB
// for 262,144 tokens.
class ScoredMerges : public Merges {
 public:
  // The scores are not NaN. Throws FormatError for a mergeable token longer than kMaxPiece.
  ScoredMerges(std::shared_ptr<const TokenIndex> index, const double* scores, const uint8_t* is_mergeable);

  std::optional<Merge> Find(uint32_t left, uint32_t right) const override;
  std::vector<std::pair<uint32_t, uint32_t>> Pairs() const override;

  // The most characters of a token. The search for its pairs takes quadratic time.
  static constexpr size_t kMaxPiece = 1024;

 private:
  static constexpr size_t kMaxBytes = 4 * kMaxPiece;  // UTF-8 has at most four bytes for a character

  std::vector<double> scores_;
  std::vector<uint8_t> is_mergeable_;
};

struct BpeOptions {
  uint32_t unknown = kNoToken;  // token for characters that are not tokens; they are dropped if there is none
  bool fuse_unknown = false;    // one unknown token for several such characters in a row
  bool byte_fallback = false;   // use <0x00> to <0xFF> for a character if all its bytes have tokens
  bool ignore_merges = false;   // a word that is a token stays whole
};

class Bpe {
 public:
  Bpe(std::shared_ptr<const Merges> merges, const BpeOptions& options);

  const Merges& merges() const { return *merges_; }
  // Buffers for Encode, reused from word to word.
  struct Scratch {
    struct Candidate {
      Merges::Merge merge;
      uint32_t at, left, right;  // the place of the left symbol, and the two symbols
    };
    std::vector<uint32_t> symbols, next, previous;
    std::vector<Candidate> queue;
  };
  // Appends the ids of a word in UTF-8. Throws InputError if it has 2^32 bytes or more.
  void Encode(std::string_view word, Scratch* scratch, std::vector<uint32_t>* ids) const;

 private:
  void SetSymbols(std::string_view word, std::vector<uint32_t>* symbols) const;

  std::shared_ptr<const Merges> merges_;
  BpeOptions options_;
  std::array<uint32_t, 256> bytes_;
  std::array<uint32_t, 128> ascii_;
};

}  // namespace lowbit
