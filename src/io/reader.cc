#include "src/io/reader.h"

#include <algorithm>

#include "src/io/text.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Reader and the file formats built on it assume a little-endian machine"
#endif

namespace lowbit {
namespace {

// A vocabulary of 262,144 tokens and its merges takes about 20 MB.
constexpr uint64_t kMostBytes = uint64_t{1} << 30;

}  // namespace

std::string Reader::Describe(const What& what, uint64_t offset) {
  constexpr const char* kOwners[] = {"", "key ", "tensor "};
  const std::string owner =
      what.owner == What::Owner::kNone ? "" : Str(" of ", kOwners[static_cast<int>(what.owner)], Quoted(what.name));
  return Str(what.field, owner, " at offset ", offset);
}

void Reader::Fetch(uint64_t num_bytes, const What& what) {
  constexpr uint64_t kLeast = uint64_t{1} << 16, kMost = uint64_t{1} << 20;  // sizes of a piece
  if (num_bytes > remaining()) {
    throw ErrorAt(what, offset_)
        .Expected(num_bytes, " bytes")
        .Found(remaining(), " before the end of the file, which is cut off or damaged");
  }
  const uint64_t begin = bytes_.size(), need = offset_ + num_bytes;
  if (need > kMostBytes) {
    throw ErrorAt(what, offset_).Expected("a header of at most ", kMostBytes, " bytes").Found(need, " or more");
  }
  const uint64_t end = std::min(std::max(need, begin + std::clamp(begin, kLeast, kMost)), file_.size());
  bytes_.resize(static_cast<size_t>(end));
  file_.Read(begin, &bytes_[begin], static_cast<size_t>(end - begin));
}

}  // namespace lowbit
