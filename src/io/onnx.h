// ONNX models: one ModelProto, in the wire format of src/io/protobuf.h with the messages of src/io/onnx_schema.h.
#pragma once

#include <cstdint>
#include <utility>

#include "src/base/error.h"
#include "src/io/onnx_schema.h"
#include "src/io/protobuf.h"

namespace lowbit {

// Limits of a file. They bound the time and memory that a malicious file costs; no known model comes near.
constexpr int kMaxOnnxDepth = 100;                         // of messages; as elsewhere for protobuf
constexpr uint64_t kMaxOnnxParts = uint64_t{1} << 21;      // messages, strings and unknown fields together
constexpr uint64_t kMaxOnnxNumbers = uint64_t{1} << 25;    // of repeated fields, without tensors' elements
constexpr uint64_t kMaxOnnxTextBytes = uint64_t{1} << 28;  // names and documentation

// Whether a field holds a tensor's elements, one of TensorProto's *_data except raw_data.
bool IsOnnxTensorData(OnnxMessage message, const OnnxField& field);

// A field of a message that the schema knows, or not (null).
struct OnnxItem {
  const OnnxField* field;
  WireField wire;
  bool packed;  // a repeated number in its packed form
};

// The fields of one message. Checks the wire types.
class OnnxReader {
 public:
  OnnxReader(OnnxMessage message, const uint8_t* data, uint64_t begin, uint64_t end)
      : message_(message), data_(data), reader_(data, begin, end, SchemaOf(message).name) {}

  // Returns false at the end. Throws FormatError.
  bool Next(OnnxItem* item);

  // Calls visit(bits) for each number of the item, which has a field of type kInt, kFloat or kDouble.
  template <class Visitor>
  void ForEachNumber(const OnnxItem& item, Visitor&& visit) const {
    if (!item.packed) return visit(item.wire.value);
    WireReader numbers(data_, item.wire.payload, item.wire.end, SchemaOf(message_).name);
    while (!numbers.AtEnd()) visit(numbers.Number(NumberType(*item.field)));
  }

  FormatError ErrorAt(const OnnxItem& item, const std::string& text) const;

 private:
  static WireType NumberType(const OnnxField& field);

  OnnxMessage message_;
  const uint8_t* data_;
  WireReader reader_;
};

// Checks every message in the bytes of a ModelProto, but not the packed elements of its tensors, which are not read.
// Throws FormatError, or UnsupportedError if a limit is exceeded, or if a tensor has its bytes in another file and lies
// where lowbit.onnx does not look for tensors: in a sparse tensor or in training_info.
void CheckOnnx(const uint8_t* data, uint64_t size);

}  // namespace lowbit
