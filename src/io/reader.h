// A bounds-checked cursor over the untrusted bytes at the beginning of a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "src/io/mapped_file.h"

namespace lowbit {

// Walks through a header of little-endian values. Whatever the bytes say, it never looks outside the file: every read
// names what it wants, and throws FormatError with that name, the offset, the need and the rest if it is not there.
//
// The header is read into memory, not mapped, so that nothing that happens to the file meanwhile changes or takes away
// what was checked: of a file cut short it throws FileError.
class Reader {
 public:
  // What is being read: the field, and the key or tensor it belongs to, if any.
  struct What {
    What(const char* field, std::string_view owner = {}) : field(field), owner(owner) {}  // NOLINT: implicit
    const char* field;
    std::string_view owner;
  };

  explicit Reader(const MappedFile& file) : file_(file) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return file_.size() - offset_; }

  // Steps over num_bytes and returns where they begin, valid until the next call.
  const uint8_t* Take(uint64_t num_bytes, const What& what) {
    if (num_bytes > bytes_.size() - offset_) Fetch(num_bytes, what);
    const uint8_t* begin = data() + offset_;
    offset_ += num_bytes;
    return begin;
  }

  template <class T>
  T Read(const What& what) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, Take(sizeof(T), what), sizeof(T));
    return value;
  }

  // The file's bytes from its beginning, valid until the next Take.
  const uint8_t* data() const { return reinterpret_cast<const uint8_t*>(bytes_.data()); }

  // All bytes that were stepped over. Nothing can be taken afterwards.
  std::string Finish() {
    bytes_.resize(offset_);
    return std::move(bytes_);
  }

  // Throws FormatError: path, what, its offset in the file, then the message.
  [[noreturn]] void Fail(const What& what, uint64_t offset, const std::string& message) const;

 private:
  void Fetch(uint64_t num_bytes, const What& what);

  const MappedFile& file_;
  uint64_t offset_ = 0;
  std::string bytes_;  // what has been read of the file, from its beginning
};

}  // namespace lowbit
