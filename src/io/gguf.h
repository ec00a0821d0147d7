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

// One metadata entry of an open file. Everything has been checked, and points into the Gguf's copy of the header: who
// has a file open while somebody edits its metadata in place sees what it said when it was opened.
struct GgufValue {
  std::string_view key;
  uint64_t begin;   // of the entry in the file; it ends where the next one begins
  uint64_t offset;  // of the value's type in the file, for messages
  bool is_array;
  GgufType type;        // of the elements, if it is an array
  uint64_t count;       // elements; 1 for a scalar
  const uint8_t* data;  // unaligned. Strings: one after the other, each a uint64 length and its bytes.
};

// Steps over the string at *cursor (from GgufValue::data on) and returns it.
std::string_view NextString(const uint8_t** cursor);

// The value of an unsigned or signed integer scalar of any width. Throws FormatError if it is something else or
// negative.
uint64_t GgufUnsigned(const GgufValue& value);

struct GgufTensor {
  std::string_view name;
  TensorType type;
  GgufShape shape;
  const uint8_t* data;  // into the map, at a multiple of the alignment
  uint64_t num_bytes;
  std::shared_ptr<const MappedFile> file;
};

// An open model: one file, or all files of a split one, whichever of them was named.
class Gguf {
 public:
  // Maps and checks everything but the tensors' bytes, which are not touched: the time goes with the metadata alone.
  // Throws FileError, FormatError or UnsupportedError.
  static std::shared_ptr<Gguf> Open(const std::string& path);

  // The one file of that name, whether or not it belongs to a split model.
  static std::shared_ptr<Gguf> OpenOne(const std::string& path);

  uint32_t version() const { return version_; }
  uint32_t alignment() const { return alignment_; }

  // In file order. Of a split model: those of the first file.
  const std::vector<GgufValue>& values() const { return values_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // One, or those of a split model in their order.
  const std::vector<std::shared_ptr<const MappedFile>>& files() const { return files_; }

  // The (first) file's bytes up to the end of the tensors' infos, as they were when it was opened. The infos begin at
  // infos_begin(), the tensors' data at data_begin().
  const std::string& header() const { return *headers_[0]; }
  uint64_t infos_begin() const { return infos_begin_; }
  uint64_t data_begin() const { return data_begin_; }

  // Null if there is none.
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

// One metadata entry to write: `payload` holds the elements as the file does.
struct GgufEntry {
  std::string key;
  bool is_array;
  GgufType type;  // of the elements, if it is an array
  uint64_t count;
  std::string payload;
};

// The entry as it lies in a file. Throws InputError for a key that no file may have.
std::string EncodeEntry(const GgufEntry& entry);

// Appends a length and the bytes, as GgufEntry::payload wants a string.
void AppendString(std::string_view value, std::string* payload);

struct GgufTensorInfo {
  std::string name;
  TensorType type;
  GgufShape shape;
};

// Everything about a file to write but the tensors' data.
struct GgufPlan {
  std::vector<GgufTensorInfo> infos;
  std::vector<uint64_t> num_bytes;  // of each tensor
  uint32_t alignment;
  std::string header;  // all that comes before the data
  uint64_t file_size;
};

// The alignment is 32, or what the entry general.alignment (uint32) says. Throws InputError for what makes no valid
// file.
GgufPlan PlanGguf(const std::vector<GgufEntry>& entries, std::vector<GgufTensorInfo> infos);

// Writes a version 3 file: all infos first, then the tensors' bytes in the order of the infos, in pieces of any size.
// Calls from several threads take turns.
class GgufWriter {
 public:
  GgufWriter(const std::string& path, GgufPlan plan);

  // Where the file lies until Finish.
  const std::string& temporary_path() const { return file_.temporary_path(); }

  // The next bytes of the tensors' data; padding between tensors is the writer's business. Throws InputError if there
  // are more bytes than the infos announced. After any failure the temporary file is gone and the writer closed.
  void Write(const void* data, uint64_t num_bytes);

  // Gives the file its name. Throws InputError if bytes are missing.
  void Finish();

  // Gives up; the target stays as it was.
  void Abort() noexcept;

 private:
  void NextTensor();

  std::mutex mutex_;
  GgufPlan plan_;
  size_t current_ = 0;        // tensor that the next byte belongs to
  uint64_t num_written_ = 0;  // bytes of it that are there
  bool open_ = true;          // false after Finish, Abort or a failure
  AtomicWriter file_;
};

}  // namespace lowbit
