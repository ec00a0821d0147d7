// A bounds-checked cursor over the untrusted bytes at the beginning of a file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "src/base/error.h"
#include "src/io/mapped_file.h"

namespace lowbit {

// Reads a header of little-endian values. No content makes it read outside the file: every read has the name of the
// field. If the bytes are missing, it throws FormatError with that name, the offset, the needed and the remaining
// bytes.
//
// The header is read into memory, not mapped, so later changes of the file do not affect what was checked. If the file
// is truncated, the reader throws FileError.
class Reader {
 public:
  // The field to read, and the key or tensor that it belongs to, if any.
  struct What {
    enum class Owner { kNone, kKey, kTensor };

    What(const char* field) : field(field) {}  // NOLINT: implicit
    static What OfKey(const char* field, std::string_view key) { return {field, Owner::kKey, key}; }
    static What OfTensor(const char* field, std::string_view name) { return {field, Owner::kTensor, name}; }

    const char* field;
    Owner owner = Owner::kNone;
    std::string_view name;  // of the owner

   private:
    What(const char* field, Owner owner, std::string_view name) : field(field), owner(owner), name(name) {}
  };

  explicit Reader(const MappedFile& file) : file_(file) {
    // Room for most headers, so that growing leaves no freed pieces in the heap. Unused pages take no memory.
    bytes_.reserve(static_cast<size_t>(std::min(file.size(), uint64_t{16} << 20)));
  }

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return file_.size() - offset_; }

  // Skips num_bytes and returns a pointer to them, valid until the next call.
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

  // The bytes of the file from the start, valid until the next Take.
  const uint8_t* data() const { return reinterpret_cast<const uint8_t*>(bytes_.data()); }

  // Returns all bytes that were read. Take must not be called afterwards.
  std::string Finish() {
    bytes_.resize(offset_);
    return std::move(bytes_);
  }

  // Makes an error: path, field, its offset in the file, then the text.
  template <class E = FormatError>
  E ErrorAt(const What& what, uint64_t offset, const std::string& text = "") const {
    E error(Describe(what, offset) + (text.empty() ? ":" : ": " + text));
    if (what.owner == What::Owner::kKey) error.Key(what.name);
    if (what.owner == What::Owner::kTensor) error.Tensor(what.name);
    return error.Path(file_.path()).Offset(offset);
  }

 private:
  static std::string Describe(const What& what, uint64_t offset);
  void Fetch(uint64_t num_bytes, const What& what);

  const MappedFile& file_;
  uint64_t offset_ = 0;
  std::string bytes_;  // bytes of the file read so far, from the start
};

}  // namespace lowbit
