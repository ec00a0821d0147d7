// Files: mapped for reading, a bounds-checked cursor over untrusted bytes, and writing that happens whole or not at
// all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

namespace lowbit {

// A regular file mapped read-only. Paths are UTF-8 on Windows and the system's bytes elsewhere. Somebody who cuts the
// file short while it is mapped ends the process with SIGBUS when the lost pages are touched; replacing the file by
// rename, as AtomicWriter does, is safe.
class MappedFile {
 public:
  // Throws FileError that names the path.
  static std::shared_ptr<const MappedFile> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  explicit MappedFile(const std::string& path) : path_(path) {}

  std::string path_;
  const uint8_t* data_ = nullptr;  // null if the file is empty
  uint64_t size_ = 0;
};

// Walks through a mapped file of little-endian values. Whatever the bytes say, it never looks outside the file: every
// read names what it wants, and throws FormatError with that name, the offset, the need and the rest if it is not
// there.
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

  // Steps over num_bytes and returns where they begin.
  const uint8_t* Take(uint64_t num_bytes, const What& what) {
    if (num_bytes > remaining()) FailTruncated(num_bytes, what);
    const uint8_t* begin = file_.data() + offset_;
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

  // Throws FormatError: path, what, its offset in the file, then the message.
  [[noreturn]] void Fail(const What& what, uint64_t offset, const std::string& message) const;

 private:
  [[noreturn]] void FailTruncated(uint64_t num_bytes, const What& what) const;

  const MappedFile& file_;
  uint64_t offset_ = 0;
};

// Writes a file under a temporary name (".NAME.PID-N.tmp") in the target's folder; Commit gives it the final name, so
// that a process killed at any moment leaves under that name what was there before. A symbolic link is followed to the
// file it names, and who may do what with a file that is replaced stays as it was. Temporary files of the same target
// whose writer died are removed. Every failure is a FileError naming the path.
class AtomicWriter {
 public:
  explicit AtomicWriter(const std::string& path);
  ~AtomicWriter() { Abort(); }
  AtomicWriter(const AtomicWriter&) = delete;
  AtomicWriter& operator=(const AtomicWriter&) = delete;

  // Empty once committed or aborted.
  const std::string& temporary_path() const { return temp_path_; }

  // Straight from the caller's memory to the operating system, without a buffer between: pass large pieces.
  void Write(const void* data, uint64_t num_bytes);

  // Waits until the data is on the disk, then renames.
  void Commit();

  // Removes the temporary file; nothing happens after Commit or a second time.
  void Abort() noexcept;

 private:
  std::string path_;    // for messages: as the caller gave it
  std::string target_;  // where links led
  std::string temp_path_;
  intptr_t handle_ = -1;
};

}  // namespace lowbit
