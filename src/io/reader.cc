#include "src/io/reader.h"

#include <algorithm>

#include "src/base/error.h"
#include "src/io/text.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Reader and the file formats built on it assume a little-endian machine"
#endif

namespace lowbit {
namespace {

// A vocabulary of 262,144 tokens and its merges take some 20 MB.
constexpr uint64_t kMostBytes = uint64_t{1} << 30;

}  // namespace

void Reader::Fail(const What& what, uint64_t offset, const std::string& message) const {
  const std::string owner = what.owner.empty() ? "" : Str(" of ", Quoted(what.owner));
  throw FormatError(Str(Quoted(file_.path()), ": ", what.field, owner, " at offset ", offset, ": ", message));
}

void Reader::Fetch(uint64_t num_bytes, const What& what) {
  constexpr uint64_t kLeast = uint64_t{1} << 16, kMost = uint64_t{1} << 20;  // of a piece
  if (num_bytes > remaining()) {
    Fail(what, offset_,
         Str("expected ", num_bytes, " bytes, found ", remaining(),
             " before the end of the file, which is cut off or damaged"));
  }
  const uint64_t begin = bytes_.size(), need = offset_ + num_bytes;
  if (need > kMostBytes) {
    Fail(what, offset_, Str("expected a header of at most ", kMostBytes, " bytes, found ", need, " or more"));
  }
  const uint64_t end = std::min(std::max(need, begin + std::clamp(begin, kLeast, kMost)), file_.size());
  bytes_.resize(static_cast<size_t>(end));
  file_.Read(begin, &bytes_[begin], static_cast<size_t>(end - begin));
}

}  // namespace lowbit
