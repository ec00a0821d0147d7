// GGUF files: header, metadata (key -> typed value), tensor infos, padding, tensor data. Little-endian, versions 2
// and 3. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/file.h"
#include "src/io/gguf_types.h"
#include "src/io/mapped_file.h"

namespace lowbit {

// A metadata entry of an open file. It is checked, and points into the Gguf's copy of the header. If another process
// edits the metadata in place, an open file keeps the values that it had when it was opened.
struct GgufValue {
  std::string_view key;
  uint64_t begin;   // of the entry in the file; it ends where the next one begins
  uint64_t offset;  // of the value's type in the file, for messages
  bool is_array;
  GgufType type;        // of the elements, if it is an array
  uint64_t count;       // elements; 1 for a scalar
  const uint8_t* data;  // unaligned. Strings: one after the other, each a uint64 length and its bytes.
};

// Advances *cursor (from GgufValue::data on) past a string and returns the string.
std::string_view NextString(const uint8_t** cursor);

// The value of an integer scalar of any width. Throws FormatError if it is another type or negative.
uint64_t GgufUnsigned(const GgufValue& value);

struct GgufTensor {
  std::string_view name;
  TensorType type;
  GgufShape shape;
  const uint8_t* data;  // into the map, at a multiple of the alignment
  uint64_t num_bytes;
  std::shared_ptr<const MappedFile> file;
};

// An open model: one file, or all files of a split one. Any of its files may be named.
class Gguf {
 public:
  // Maps the file and checks everything except the tensors' bytes, which are not read: the time depends on the metadata
  // only. Throws FileError, FormatError or UnsupportedError.
  static std::shared_ptr<Gguf> Open(const std::string& path);

  // Opens only the named file, even if it belongs to a split model.
  static std::shared_ptr<Gguf> OpenOne(const std::string& path);

  uint32_t version() const { return version_; }
  uint32_t alignment() const { return alignment_; }

  // In file order. For a split model: those of the first file.
  const std::vector<GgufValue>& values() const { return values_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // One file, or the files of a split model in order.
  const std::vector<std::shared_ptr<const MappedFile>>& files() const { return files_; }

  // The bytes of the (first) file up to the end of the tensors' infos, as they were when it was opened. The infos start
  // at infos_begin(), the tensors' data at data_begin().
  const std::string& header() const { return *headers_[0]; }
  uint64_t infos_begin() const { return infos_begin_; }
  uint64_t data_begin() const { return data_begin_; }

  // Returns null if the key is missing.
  const GgufValue* Find(std::string_view key) const;

 private:
  friend class GgufParser;
  Gguf() = default;

  static std::shared_ptr<Gguf> OpenShard(const std::string& prefix, uint64_t index, uint64_t num_shards);
  uint64_t SplitValue(const char* key) const;

  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::vector<std::shared_ptr<const std::string>> headers_;  // of the files: values_ and the tensors' names point there
  uint32_t version_ = 0;
  uint32_t alignment_ = 0;
  uint64_t infos_begin_ = 0;
  uint64_t data_begin_ = 0;
  std::vector<GgufValue> values_;
  std::vector<GgufTensor> tensors_;
};

// A metadata entry to write. `payload` has the elements as in a file.
struct GgufEntry {
  std::string key;
  bool is_array;
  GgufType type;  // of the elements, if it is an array
  uint64_t count;
  std::string payload;
};

// The entry as stored in a file. Throws InputError for an invalid key.
std::string EncodeEntry(const GgufEntry& entry);

// Appends a length and the bytes: the form of strings in GgufEntry::payload.
void AppendString(std::string_view value, std::string* payload);

struct GgufTensorInfo {
  std::string name;
  TensorType type;
  GgufShape shape;
};

// Everything in a file to write except the tensors' data.
struct GgufPlan {
  std::vector<GgufTensorInfo> infos;
  std::vector<uint64_t> num_bytes;  // of each tensor
  uint32_t alignment;
  std::string header;  // everything before the data
  uint64_t file_size;
};

// The alignment is 32, or the value of the entry general.alignment (uint32). Throws InputError if the result would not
// be a valid file.
GgufPlan PlanGguf(const std::vector<GgufEntry>& entries, std::vector<GgufTensorInfo> infos);

// Writes a version 3 file: all infos first, then the tensors' bytes in the order of the infos, in pieces of any size.
// Calls from several threads run one after another.
class GgufWriter {
 public:
  GgufWriter(const std::string& path, GgufPlan plan);

  // The path of the file until Finish. The file has all that was written up to this call.
  std::string TemporaryPath();

  // Appends to the tensors' data. The writer adds the padding between tensors. Throws InputError if there are more
  // bytes than the infos announced. After any failure the temporary file is removed and the writer is closed.
  void Write(const void* data, uint64_t num_bytes);

  // Renames the file to its final name. Throws InputError if bytes are missing.
  void Finish();

  // Cancels the write; the target stays unchanged.
  void Abort() noexcept;

 private:
  void NextTensor();

  std::mutex mutex_;
  GgufPlan plan_;
  size_t current_ = 0;        // tensor of the next byte
  uint64_t num_written_ = 0;  // bytes of it written so far
  bool open_ = true;          // false after Finish, Abort or a failure
  AtomicWriter file_;
};

}  // namespace lowbit
