#include "src/io/gguf.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "src/base/error.h"
#include "src/io/reader.h"
#include "src/io/text.h"

namespace lowbit {
namespace {

constexpr size_t kStringLengthBytes = sizeof(uint64_t);

// Minimum bytes of a metadata entry (empty key, type, one byte) and of a tensor's info (empty name, one dimension).
// With the rest of the file they limit the header's counts before anything is allocated for them.
constexpr uint64_t kMinEntryBytes = kStringLengthBytes + sizeof(uint32_t) + 1;
constexpr uint64_t kMinInfoBytes =
    kStringLengthBytes + sizeof(uint32_t) + sizeof(uint64_t) + sizeof(uint32_t) + sizeof(uint64_t);

// Returns two equal neighbours in sorted order, or null. Sorting bounds the time for all names; a hash table would not.
template <class T>
const T* FindDuplicate(const std::vector<T>& items, std::string_view T::* name) {
  std::vector<const T*> sorted(items.size());
  std::transform(items.begin(), items.end(), sorted.begin(), [](const T& item) { return &item; });
  std::sort(sorted.begin(), sorted.end(), [&](const T* a, const T* b) { return a->*name < b->*name; });
  const auto same = [&](const T* a, const T* b) { return a->*name == b->*name; };
  const auto found = std::adjacent_find(sorted.begin(), sorted.end(), same);
  return found == sorted.end() ? nullptr : *found;
}

FormatError NotAnInteger(const GgufValue& value, const char* found) {
  return FormatError(Str("key ", Quoted(value.key), ":")).Key(value.key).Expected("an integer").Found(found);
}

}  // namespace

std::string_view NextString(const uint8_t** cursor) {
  uint64_t length;
  std::memcpy(&length, *cursor, sizeof(length));
  const std::string_view string(reinterpret_cast<const char*>(*cursor + sizeof(length)), static_cast<size_t>(length));
  *cursor += sizeof(length) + length;
  return string;
}

uint64_t GgufUnsigned(const GgufValue& value) {
  bool is_signed = false;
  switch (value.type) {
    case GgufType::kInt8:
    case GgufType::kInt16:
    case GgufType::kInt32:
    case GgufType::kInt64:
      is_signed = true;
      break;
    case GgufType::kUint8:
    case GgufType::kUint16:
    case GgufType::kUint32:
    case GgufType::kUint64:
      break;
    default:
      throw NotAnInteger(value, GgufTypeName(value.type));
  }
  if (value.is_array) throw NotAnInteger(value, "an array");
  const size_t num_bytes = GgufTypeBytes(value.type);
  uint64_t number = 0;
  std::memcpy(&number, value.data, num_bytes);
  if (is_signed && (number >> (8 * num_bytes - 1)) != 0) {
    throw FormatError(Str("key ", Quoted(value.key), ":")).Key(value.key).Expected("no negative number");
  }
  return number;
}

const GgufValue* Gguf::Find(std::string_view key) const {
  for (const GgufValue& value : values_) {
    if (value.key == key) return &value;
  }
  return nullptr;
}

// Parses one file into a Gguf.
class GgufParser {
 public:
  explicit GgufParser(std::shared_ptr<const MappedFile> file, Gguf* out)
      : reader_(*file), file_(std::move(file)), out_(*out) {}

  void Parse() {
    out_.files_ = {file_};
    ReadVersion();
    const uint64_t num_tensors = reader_.Read<uint64_t>("number of tensors");
    const uint64_t num_values = reader_.Read<uint64_t>("number of keys");
    CheckCount("number of tensors", num_tensors, kMinInfoBytes, 8);
    CheckCount("number of keys", num_values, kMinEntryBytes, 16);
    out_.values_.reserve(static_cast<size_t>(num_values));
    for (uint64_t i = 0; i < num_values; ++i) out_.values_.push_back(ReadValue());
    PointInto(reader_.data());
    if (const GgufValue* twin = FindDuplicate(out_.values_, &GgufValue::key)) {
      throw reader_.ErrorAt(What::OfKey("name", twin->key), twin->offset, "the key occurs twice");
    }
    ReadAlignment();
    out_.infos_begin_ = reader_.offset();
    CheckCount("number of tensors", num_tensors, kMinInfoBytes, 8);
    out_.tensors_.reserve(static_cast<size_t>(num_tensors));
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < num_tensors; ++i) ReadInfo(&offsets);
    const auto header = std::make_shared<const std::string>(reader_.Finish());
    out_.headers_ = {header};
    PointInto(reinterpret_cast<const uint8_t*>(header->data()));
    if (const GgufTensor* twin = FindDuplicate(out_.tensors_, &GgufTensor::name)) {
      throw reader_.ErrorAt(What::OfTensor("info", twin->name), reader_.offset(), "the name occurs twice");
    }
    PlaceTensors(offsets);
  }

 private:
  using What = Reader::What;

  // Counts are limited by the rest of the file.
  void CheckCount(const char* what, uint64_t count, uint64_t least_bytes, uint64_t offset) const {
    const uint64_t most = reader_.remaining() / least_bytes;
    if (count > most) {
      throw reader_.ErrorAt(what, offset)
          .Expected("at most ", most, ", for which the rest of the file has room")
          .Found(count);
    }
  }

  void ReadVersion() {
    const std::string magic(reinterpret_cast<const char*>(reader_.Take(4, "magic")), 4);
    if (magic == kGgufEditMagic) {
      throw reader_.ErrorAt(
          "magic", 0,
          "the metadata is being edited, or an edit was interrupted: `lowbit metadata FILE recover` undoes it");
    }
    if (magic != "GGUF")
      throw reader_.ErrorAt("magic", 0).Expected("\"GGUF\"").Found(Quoted(magic)).Rest(": this is not a GGUF file");
    const uint32_t version = reader_.Read<uint32_t>("version");
    if (version == 0) throw reader_.ErrorAt("version", 4).Expected("2 or 3").Found(version);
    if ((version & 0xFFFF) == 0) {
      throw reader_.ErrorAt<UnsupportedError>("version", 4,
                                              "this is a big-endian file, and lowbit reads only little-endian ones");
    }
    if (version == 1 || version > 3) {
      const char* advice = version == 1 ? ", written only by tools of early 2023: convert the model again" : "";
      throw reader_.ErrorAt<UnsupportedError>("version", 4).Expected("2 or 3").Found(version).Rest(advice);
    }
    out_.version_ = version;
  }

  // The result is valid until the next call of the reader.
  std::string_view ReadString(const What& what) {
    const uint64_t begin = reader_.offset();
    const uint64_t length = reader_.Read<uint64_t>(what);
    const std::string_view string(reinterpret_cast<const char*>(reader_.Take(length, what)),
                                  static_cast<size_t>(length));
    if (!IsUtf8(string)) throw reader_.ErrorAt(what, begin).Expected("UTF-8").Found(Quoted(string));
    return string;
  }

  GgufType ReadType(const What& what) {
    const uint64_t begin = reader_.offset();
    const uint32_t id = reader_.Read<uint32_t>(what);
    if (!GgufTypeName(static_cast<GgufType>(id)))
      throw reader_.ErrorAt(what, begin).Expected("a value type from 0 to 12").Found(id);
    return static_cast<GgufType>(id);
  }

  GgufValue ReadValue() {
    GgufValue value;
    value.begin = reader_.offset();
    const std::string key(ReadString("key"));
    if (key.empty()) throw reader_.ErrorAt("key", value.begin).Expected("a name").Found("an empty string");
    value.offset = reader_.offset();
    value.type = ReadType(What::OfKey("type", key));
    value.count = 1;
    value.is_array = value.type == GgufType::kArray;
    if (value.is_array) {
      value.type = ReadType(What::OfKey("element type", key));
      if (value.type == GgufType::kArray) {
        throw reader_.ErrorAt<UnsupportedError>(What::OfKey("value", key), value.offset)
            .Expected("an array of numbers or strings")
            .Found("an array of arrays");
      }
      value.count = reader_.Read<uint64_t>(What::OfKey("array length", key));
    }
    value_places_.push_back({key.size(), reader_.offset()});
    ReadElements(What::OfKey("value", key), &value);
    return value;
  }

  void ReadElements(const What& what, GgufValue* value) {
    const uint64_t begin = reader_.offset();
    if (value->type == GgufType::kString) {
      for (uint64_t i = 0; i < value->count; ++i) ReadString(what);  // stops at the end of the file at the latest
      return;
    }
    const uint64_t most = reader_.remaining() / GgufTypeBytes(value->type);
    if (value->count > most) {
      throw reader_.ErrorAt(what, begin)
          .Expected(value->count, " elements of type ", GgufTypeName(value->type))
          .Found("room for ", most);
    }
    const uint8_t* data = reader_.Take(value->count * GgufTypeBytes(value->type), what);
    if (value->type != GgufType::kBool) return;
    for (uint64_t i = 0; i < value->count; ++i) {
      if (data[i] > 1) throw reader_.ErrorAt(what, begin + i).Expected("a bool, 0 or 1").Found(int{data[i]});
    }
  }

  void ReadAlignment() {
    out_.alignment_ = kDefaultAlignment;
    const GgufValue* value = out_.Find(kAlignmentKey);
    if (value == nullptr) return;
    const What what = What::OfKey("value", value->key);
    if (value->is_array || value->type != GgufType::kUint32) {
      throw reader_.ErrorAt(what, value->offset)
          .Expected("a uint32")
          .Found(value->is_array ? "an array" : GgufTypeName(value->type));
    }
    const uint64_t alignment = GgufUnsigned(*value);
    if (!IsAlignment(alignment))
      throw reader_.ErrorAt(what, value->offset).Expected(kExpectedAlignment).Found(alignment);
    out_.alignment_ = static_cast<uint32_t>(alignment);
  }

  void ReadInfo(std::vector<uint64_t>* offsets) {
    GgufTensor tensor;
    const uint64_t begin = reader_.offset();
    const std::string name(ReadString("name of a tensor"));
    names_.push_back({reader_.offset() - name.size(), name.size()});
    const What what = What::OfTensor("info", name);
    if (name.size() > kMaxTensorName) {
      throw reader_.ErrorAt(what, begin).Expected("a name of at most ", kMaxTensorName, " bytes").Found(name.size());
    }
    tensor.shape.num_dims = reader_.Read<uint32_t>(what);
    if (tensor.shape.num_dims == 0 || tensor.shape.num_dims > kGgufMaxDims) {
      throw reader_.ErrorAt(what, begin).Expected("1 to 4 dimensions").Found(tensor.shape.num_dims);
    }
    for (uint32_t i = 0; i < tensor.shape.num_dims; ++i) tensor.shape.dims[i] = reader_.Read<uint64_t>(what);
    const uint32_t type = reader_.Read<uint32_t>(what);
    if (!FindTensorType(type, &tensor.type)) {
      throw reader_.ErrorAt<UnsupportedError>(what, begin)
          .Expected("a known tensor type")
          .Found(DescribeUnknownType(type));
    }
    if (const char* wrong = CheckShape(tensor.type, tensor.shape, &tensor.num_bytes)) {
      throw reader_.ErrorAt(what, begin, Str(wrong, ": ", Describe(tensor)));
    }
    offsets->push_back(reader_.Read<uint64_t>(what));
    if (offsets->back() % out_.alignment_ != 0) {
      throw reader_.ErrorAt(what, begin).Expected("data at a multiple of ", out_.alignment_).Found(offsets->back());
    }
    tensor.file = file_;
    out_.tensors_.push_back(std::move(tensor));
  }

  static std::string Describe(const GgufTensor& tensor) {
    std::string text = "(";
    for (uint32_t i = 0; i < tensor.shape.num_dims; ++i) text += Str(i == 0 ? "" : ", ", tensor.shape.dims[i]);
    return Str(text, ") of ", tensor.type.name);
  }

  // The message for a file that ends before its tensors.
  std::string Cut(const std::vector<uint64_t>& offsets) const {
    uint64_t end = 0;
    for (size_t i = 0; i < offsets.size(); ++i) {
      // No tensor and no disk has 2^60 bytes: the offset is damaged, so the file's size gives no information.
      if ((offsets[i] | out_.tensors_[i].num_bytes) >> 60 != 0) return "";
      end = std::max(end, offsets[i] + out_.tensors_[i].num_bytes);
    }
    return Str(": the file is cut off: it has ", file_->size(), " bytes, its tensors need ", out_.data_begin_ + end,
               "; download or write it again");
  }

  // Sets the tensors' data pointers, after all infos are read and the start of the data is known.
  void PlaceTensors(const std::vector<uint64_t>& offsets) {
    const uint64_t padding = (out_.alignment_ - reader_.offset() % out_.alignment_) % out_.alignment_;
    const uint64_t begin = reader_.offset() + std::min(padding, reader_.remaining());
    const uint64_t room = file_->size() - begin;
    out_.data_begin_ = begin;
    std::vector<std::pair<uint64_t, size_t>> order;
    for (size_t i = 0; i < offsets.size(); ++i) {
      GgufTensor& tensor = out_.tensors_[i];
      if (offsets[i] > room || tensor.num_bytes > room - offsets[i]) {
        throw reader_.ErrorAt(What::OfTensor("data", tensor.name), begin)
            .Expected(tensor.num_bytes, " bytes from ", offsets[i], " on")
            .Found(room, " bytes of data")
            .Rest(Cut(offsets));
      }
      tensor.data = file_->data() + begin + offsets[i];
      if (tensor.num_bytes > 0) order.emplace_back(offsets[i], i);
    }
    std::sort(order.begin(), order.end());
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = out_.tensors_[order[i - 1].second];
      const GgufTensor& tensor = out_.tensors_[order[i].second];
      if (order[i].first - order[i - 1].first < before.num_bytes) {
        throw reader_.ErrorAt(What::OfTensor("data", tensor.name), begin + order[i].first,
                              Str("overlaps the data of tensor ", Quoted(before.name)));
      }
    }
  }

  // Keys, values and names so far have offsets in the file. Replaces these by pointers into its bytes in memory.
  void PointInto(const uint8_t* bytes) {
    const auto view = [&](uint64_t begin, size_t size) {
      return std::string_view(reinterpret_cast<const char*>(bytes) + begin, size);
    };
    for (size_t i = 0; i < out_.values_.size(); ++i) {
      GgufValue& value = out_.values_[i];
      value.key = view(value.begin + kStringLengthBytes, value_places_[i].key_size);
      value.data = bytes + value_places_[i].data_begin;
    }
    for (size_t i = 0; i < out_.tensors_.size(); ++i) out_.tensors_[i].name = view(names_[i].begin, names_[i].size);
  }

  struct ValuePlace {
    size_t key_size;
    uint64_t data_begin;
  };
  struct NamePlace {
    uint64_t begin;
    size_t size;
  };

  Reader reader_;
  std::shared_ptr<const MappedFile> file_;
  Gguf& out_;
  std::vector<ValuePlace> value_places_;
  std::vector<NamePlace> names_;
};

namespace {

constexpr char kSplitCountKey[] = "split.count";
constexpr char kSplitNumberKey[] = "split.no";
constexpr char kSplitTensorsKey[] = "split.tensors.count";

std::string Digits5(uint64_t number) {
  std::string digits = std::to_string(number);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

// The suffix of the name of file `index` (from 0) of num_shards.
std::string ShardSuffix(uint64_t index, uint64_t num_shards) {
  return "-" + Digits5(index + 1) + "-of-" + Digits5(num_shards) + ".gguf";
}

}  // namespace

std::shared_ptr<Gguf> Gguf::OpenOne(const std::string& path) {
  std::shared_ptr<Gguf> gguf(new Gguf);
  GgufParser(MappedFile::Open(path), gguf.get()).Parse();
  return gguf;
}

uint64_t Gguf::SplitValue(const char* key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    throw FormatError(Str("key ", Quoted(key), ":"))
        .Path(files_[0]->path())
        .Key(key)
        .Expected("in a file of a split model")
        .Found("none");
  }
  return GgufUnsigned(*value);
}

std::shared_ptr<Gguf> Gguf::OpenShard(const std::string& prefix, uint64_t index, uint64_t num_shards) {
  std::shared_ptr<Gguf> shard;
  try {
    shard = OpenOne(prefix + ShardSuffix(index, num_shards));
  } catch (const FileError& error) {
    throw FileError(Str("file ", index + 1, " of ", num_shards, " of a split model: ", error.what()), error.fields());
  }
  const auto check = [&](const char* key, uint64_t expected) {
    const uint64_t found = shard->SplitValue(key);
    if (found == expected) return;
    throw FormatError(Str("key ", Quoted(key), ":"))
        .Path(shard->files_[0]->path())
        .Key(key)
        .Expected(expected)
        .Found(found);
  };
  check(kSplitCountKey, num_shards);
  check(kSplitNumberKey, index);
  return shard;
}

std::shared_ptr<Gguf> Gguf::Open(const std::string& path) {
  std::shared_ptr<Gguf> gguf = OpenOne(path);
  const uint64_t num_shards = gguf->Find(kSplitCountKey) ? gguf->SplitValue(kSplitCountKey) : 1;
  if (num_shards <= 1) return gguf;

  const uint64_t number = gguf->SplitValue(kSplitNumberKey);
  if (number >= num_shards) {
    throw FormatError(Str("key ", Quoted(kSplitNumberKey), ":"))
        .Path(path)
        .Key(kSplitNumberKey)
        .Expected("less than ", num_shards)
        .Found(number);
  }
  const std::string suffix = ShardSuffix(number, num_shards);
  if (path.size() < suffix.size() || path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0) {
    throw FormatError("").Path(path).Expected("a name that ends in ", Quoted(suffix),
                                              ", from which the other files of the split model are found");
  }
  const std::string prefix = path.substr(0, path.size() - suffix.size());
  gguf = OpenShard(prefix, 0, num_shards);
  for (uint64_t i = 1; i < num_shards; ++i) {
    const std::shared_ptr<Gguf> shard = OpenShard(prefix, i, num_shards);
    gguf->tensors_.insert(gguf->tensors_.end(), shard->tensors_.begin(), shard->tensors_.end());
    gguf->files_.push_back(shard->files_[0]);
    gguf->headers_.push_back(shard->headers_[0]);
  }
  const uint64_t num_tensors = gguf->SplitValue(kSplitTensorsKey);
  if (num_tensors != gguf->tensors_.size()) {
    throw FormatError(Str("key ", Quoted(kSplitTensorsKey), ":"))
        .Path(gguf->files_[0]->path())
        .Key(kSplitTensorsKey)
        .Expected(gguf->tensors_.size(), ", the tensors in all files")
        .Found(num_tensors);
  }
  if (const GgufTensor* twin = FindDuplicate(gguf->tensors_, &GgufTensor::name)) {
    throw FormatError(Str("tensor ", Quoted(twin->name), " occurs in two files of the split model"))
        .Path(twin->file->path())
        .Tensor(twin->name);
  }
  return gguf;
}

}  // namespace lowbit
