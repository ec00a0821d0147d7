#include "src/io/onnx.h"

#include <string>
#include <string_view>

namespace lowbit {
namespace {

// Walks a model and counts what its limits are about.
class Checker {
 public:
  explicit Checker(const uint8_t* data) : data_(data) {}

  // is_hidden: whether the message is inside one whose tensors lowbit.onnx does not look at.
  void Check(OnnxMessage message, uint64_t begin, uint64_t end, int depth, bool is_hidden) {
    Count(&parts_, 1, kMaxOnnxParts, kPartsName, begin);
    if (depth > kMaxOnnxDepth) {
      throw UnsupportedError(Str("messages are nested deeper than ", kMaxOnnxDepth, ", at offset ", begin))
          .Offset(begin);
    }
    is_hidden = is_hidden || message == OnnxMessage::kSparseTensor || message == OnnxMessage::kTrainingInfo;
    OnnxReader reader(message, data_, begin, end);
    OnnxItem item;
    uint64_t seen = 0;  // singular messages, by their place in the schema
    while (reader.Next(&item)) {
      if (item.field == nullptr) {
        Count(&parts_, 1, kMaxOnnxParts, kPartsName, item.wire.begin);
        continue;
      }
      const OnnxField& field = *item.field;
      const uint64_t size = item.wire.end - item.wire.payload;
      if (field.type == OnnxType::kString) Count(&text_bytes_, size, kMaxOnnxTextBytes, "bytes of text", begin);
      if (field.type == OnnxType::kMessage) {
        const uint64_t bit = uint64_t{1} << (&field - SchemaOf(message).fields);
        // Other readers merge the two, so that what a model is would depend on the reader.
        if (!field.repeated && (seen & bit) != 0) throw reader.ErrorAt(item, "the field occurs twice");
        seen |= bit;
        Check(field.message, item.wire.payload, item.wire.end, depth + 1, is_hidden);
      } else if (field.repeated && field.type > OnnxType::kDouble) {
        Count(&parts_, 1, kMaxOnnxParts, kPartsName, item.wire.begin);
      } else if (field.repeated && !IsOnnxTensorData(message, field)) {
        uint64_t num = 0;
        reader.ForEachNumber(item, [&num](uint64_t) { ++num; });
        Count(&numbers_, num, kMaxOnnxNumbers, "numbers in lists", begin);
      } else if (is_hidden && IsExternal(message, item)) {
        throw UnsupportedError(
            Str("a sparse tensor or a tensor of training_info has its bytes in another file, at offset ", begin))
            .Offset(begin);
      }
    }
  }

 private:
  static constexpr const char* kPartsName = "messages, strings and unknown fields";

  static void Count(uint64_t* total, uint64_t more, uint64_t limit, const char* what, uint64_t offset) {
    *total += more;
    if (*total > limit) {
      throw UnsupportedError(Str("more than ", limit, " ", what, ", at offset ", offset)).Offset(offset);
    }
  }

  static bool IsExternal(OnnxMessage message, const OnnxItem& item) {
    return message == OnnxMessage::kTensor && std::string_view(item.field->name) == "data_location" &&
           item.wire.value == 1;
  }

  const uint8_t* data_;
  uint64_t parts_ = 0;
  uint64_t numbers_ = 0;
  uint64_t text_bytes_ = 0;
};

}  // namespace

bool IsOnnxTensorData(OnnxMessage message, const OnnxField& field) {
  return message == OnnxMessage::kTensor && field.repeated && field.type != OnnxType::kMessage &&
         std::string_view(field.name) != "dims";
}

WireType OnnxReader::NumberType(const OnnxField& field) {
  switch (field.type) {
    case OnnxType::kInt:
      return WireType::kVarint;
    case OnnxType::kFloat:
      return WireType::kFixed32;
    case OnnxType::kDouble:
      return WireType::kFixed64;
    case OnnxType::kString:
    case OnnxType::kBytes:
    case OnnxType::kMessage:
      break;
  }
  return WireType::kBytes;
}

bool OnnxReader::Next(OnnxItem* item) {
  if (!reader_.Next(&item->wire)) return false;
  item->field = SchemaOf(message_).Find(item->wire.number);
  item->packed = false;
  if (item->field == nullptr) return true;
  const WireType expected = NumberType(*item->field);
  if (item->wire.type == expected) return true;
  item->packed = item->field->repeated && item->wire.type == WireType::kBytes;
  if (!item->packed) throw ErrorAt(*item, "").Expected(WireTypeName(expected)).Found(WireTypeName(item->wire.type));
  const uint64_t size = item->wire.end - item->wire.payload;
  const uint64_t width = expected == WireType::kFixed32 ? 4 : expected == WireType::kFixed64 ? 8 : 1;
  if (size % width != 0) throw ErrorAt(*item, Str(size, " bytes are no multiple of ", width));
  return true;
}

FormatError OnnxReader::ErrorAt(const OnnxItem& item, const std::string& text) const {
  const std::string field = Str("field ", item.field->name, text.empty() ? ":" : ": ", text);
  return reader_.ErrorAt(item.wire.begin, field);
}

void CheckOnnx(const uint8_t* data, uint64_t size) { Checker(data).Check(OnnxMessage::kModel, 0, size, 1, false); }

}  // namespace lowbit
