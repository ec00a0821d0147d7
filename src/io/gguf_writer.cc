#include <algorithm>
#include <cstring>
#include <utility>

#include "src/base/error.h"
#include "src/io/gguf.h"
#include "src/io/text.h"

namespace lowbit {
namespace {

constexpr size_t kMaxKey = 65535;  // the format's limit

template <class T>
void Append(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

uint64_t Padding(uint64_t size, uint64_t alignment) { return (alignment - size % alignment) % alignment; }

enum class Kind { kKey, kTensor };

InputError About(Kind kind, std::string_view name, const std::string& text) {
  if (kind == Kind::kKey) return InputError(Str("key ", Quoted(name), ": ", text)).Key(name);
  return InputError(Str("tensor ", Quoted(name), ": ", text)).Tensor(name);
}

void CheckNames(Kind kind, std::vector<std::string_view> names, size_t max_bytes) {
  for (const std::string_view name : names) {
    const char* wrong = name.empty()              ? "expected a name, found an empty string"
                        : name.size() > max_bytes ? "the name is too long"
                        : !IsUtf8(name)           ? "expected UTF-8"
                                                  : nullptr;
    if (wrong) throw About(kind, name, Str(wrong, " (", name.size(), " of at most ", max_bytes, " bytes)"));
  }
  std::sort(names.begin(), names.end());
  const auto twin = std::adjacent_find(names.begin(), names.end());
  if (twin != names.end()) throw About(kind, *twin, "the name occurs twice");
}

uint32_t FindAlignment(const std::vector<GgufEntry>& entries) {
  const auto is_alignment = [](const GgufEntry& entry) { return entry.key == kAlignmentKey; };
  const auto entry = std::find_if(entries.begin(), entries.end(), is_alignment);
  if (entry == entries.end()) return kDefaultAlignment;
  if (entry->is_array || entry->type != GgufType::kUint32) {
    throw InputError(Str("key ", Quoted(kAlignmentKey), ":"))
        .Key(kAlignmentKey)
        .Expected("a uint32")
        .Found(entry->is_array ? "an array" : GgufTypeName(entry->type));
  }
  uint32_t alignment;
  std::memcpy(&alignment, entry->payload.data(), sizeof(alignment));
  if (!IsAlignment(alignment)) {
    throw InputError(Str("key ", Quoted(kAlignmentKey), ":"))
        .Key(kAlignmentKey)
        .Expected(kExpectedAlignment)
        .Found(alignment);
  }
  return alignment;
}

void AppendEntry(const GgufEntry& entry, std::string* out) {
  AppendString(entry.key, out);
  if (entry.is_array) Append(GgufType::kArray, out);
  Append(entry.type, out);
  if (entry.is_array) Append(entry.count, out);
  *out += entry.payload;
}

void AppendInfo(const GgufTensorInfo& info, uint64_t offset, std::string* out) {
  AppendString(info.name, out);
  Append(info.shape.num_dims, out);
  for (uint32_t i = 0; i < info.shape.num_dims; ++i) Append(info.shape.dims[i], out);
  Append(info.type.ggml_type, out);
  Append(offset, out);
}

}  // namespace

void AppendString(std::string_view value, std::string* payload) {
  Append(uint64_t{value.size()}, payload);
  *payload += value;
}

std::string EncodeEntry(const GgufEntry& entry) {
  CheckNames(Kind::kKey, {entry.key}, kMaxKey);
  std::string out;
  AppendEntry(entry, &out);
  return out;
}

GgufPlan PlanGguf(const std::vector<GgufEntry>& entries, std::vector<GgufTensorInfo> infos) {
  GgufPlan plan;
  plan.infos = std::move(infos);
  plan.alignment = FindAlignment(entries);
  std::vector<std::string_view> names;
  for (const GgufEntry& entry : entries) names.push_back(entry.key);
  CheckNames(Kind::kKey, std::move(names), kMaxKey);
  names.clear();
  for (const GgufTensorInfo& info : plan.infos) names.push_back(info.name);
  CheckNames(Kind::kTensor, std::move(names), kMaxTensorName);

  plan.header = "GGUF";
  Append(uint32_t{3}, &plan.header);
  Append(uint64_t{plan.infos.size()}, &plan.header);
  Append(uint64_t{entries.size()}, &plan.header);
  for (const GgufEntry& entry : entries) AppendEntry(entry, &plan.header);
  constexpr uint64_t kMaxSize = uint64_t{1} << 62;  // keeps a margin to int64 for the header
  uint64_t offset = 0;
  for (const GgufTensorInfo& info : plan.infos) {
    uint64_t num_bytes = 0;
    const char* wrong = CheckShape(info.type, info.shape, &num_bytes);
    if (!wrong && num_bytes > kMaxSize - offset) wrong = "the size of the file overflows";
    if (wrong)
      throw InputError(Str("tensor ", Quoted(info.name), " of ", info.type.name, ": ", wrong)).Tensor(info.name);
    plan.num_bytes.push_back(num_bytes);
    AppendInfo(info, offset, &plan.header);
    offset += num_bytes + Padding(num_bytes, plan.alignment);
  }
  plan.header.append(Padding(plan.header.size(), plan.alignment), '\0');
  plan.file_size = plan.header.size() + offset;
  return plan;
}

GgufWriter::GgufWriter(const std::string& path, GgufPlan plan) : plan_(std::move(plan)), file_(path) {
  file_.Write(plan_.header.data(), plan_.header.size());
}

std::string GgufWriter::TemporaryPath() {
  if (file_.IsInherited()) return file_.TemporaryPath();  // in a forked child the mutex may be locked forever
  const std::lock_guard<std::mutex> lock(mutex_);
  return file_.TemporaryPath();
}

void GgufWriter::Write(const void* data, uint64_t num_bytes) {
  file_.CheckOwner();  // first: in a forked child the mutex may be locked forever
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!open_) throw InputError("the GGUF writer is closed");
  try {
    const char* rest = static_cast<const char*>(data);
    while (num_bytes > 0) {
      while (current_ < plan_.infos.size() && num_written_ == plan_.num_bytes[current_]) NextTensor();
      if (current_ == plan_.infos.size()) {
        throw InputError(Str(num_bytes, " bytes more than the ", plan_.infos.size(), " tensors have"));
      }
      const uint64_t piece = std::min(num_bytes, plan_.num_bytes[current_] - num_written_);
      file_.Write(rest, piece);
      rest += piece;
      num_bytes -= piece;
      num_written_ += piece;
    }
  } catch (...) {
    open_ = false;  // the content of the file is unknown now
    file_.Abort();
    throw;
  }
}

void GgufWriter::Finish() {
  file_.CheckOwner();  // first: in a forked child the mutex may be locked forever
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!open_) throw InputError("the GGUF writer is closed");
  open_ = false;
  try {
    for (; current_ < plan_.infos.size(); NextTensor()) {
      if (num_written_ == plan_.num_bytes[current_]) continue;
      throw InputError(Str("tensor ", Quoted(plan_.infos[current_].name), ":"))
          .Tensor(plan_.infos[current_].name)
          .Expected(plan_.num_bytes[current_], " bytes")
          .Found(num_written_);
    }
    file_.Commit();
  } catch (...) {
    file_.Abort();
    throw;
  }
}

void GgufWriter::Abort() noexcept {
  if (file_.IsInherited()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  open_ = false;
  file_.Abort();
}

// Padding follows each tensor, the last one too: other readers expect it.
void GgufWriter::NextTensor() {
  const std::string padding(Padding(plan_.num_bytes[current_], plan_.alignment), '\0');
  file_.Write(padding.data(), padding.size());
  ++current_;
  num_written_ = 0;
}

}  // namespace lowbit
