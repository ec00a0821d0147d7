// The bytes of an ONNX model: checked, then every message read field by field, and each field written again.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "src/base/error.h"
#include "src/io/onnx.h"

namespace {

using lowbit::OnnxItem;
using lowbit::OnnxMessage;
using lowbit::OnnxReader;
using lowbit::OnnxType;
using lowbit::WireField;
using lowbit::WireType;

void Expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

// The shortest form of a field reads as the same field.
void WriteAgain(const uint8_t* data, const WireField& field) {
  if (field.type == WireType::kGroup) return;
  const uint64_t size = field.end - field.payload;
  std::vector<uint8_t> out(2 * lowbit::kMaxVarint);
  uint8_t* end = lowbit::PutVarint(lowbit::WireTag(field.number, field.type), out.data());
  if (field.type == WireType::kVarint) end = lowbit::PutVarint(field.value, end);
  if (field.type == WireType::kBytes) end = lowbit::PutVarint(size, end);
  out.resize(static_cast<size_t>(end - out.data()));
  if (field.type == WireType::kVarint) {
    Expect(
        out.size() == lowbit::VarintBytes(lowbit::WireTag(field.number, field.type)) + lowbit::VarintBytes(field.value),
        "a varint has as many bytes as announced");
  } else {
    out.insert(out.end(), data + field.payload, data + field.end);
  }
  Expect(out.size() <= field.end - field.begin, "no form is shorter than the shortest");
  lowbit::WireReader reader(out.data(), 0, out.size(), "again");
  WireField again;
  Expect(reader.Next(&again) && reader.AtEnd(), "a field is written as one field");
  Expect(again.number == field.number && again.type == field.type, "a field is written with its tag");
  Expect(again.value == field.value, "a number is written as it was read");
  if (field.type == WireType::kBytes) Expect(again.end - again.payload == size, "bytes are written as they were read");
}

// Fields lie one behind the other, from the begin of the message to its end.
void Walk(OnnxMessage message, const uint8_t* data, uint64_t begin, uint64_t end) {
  static volatile uint64_t sink;  // keeps the compiler from leaving the reads out
  OnnxReader reader(message, data, begin, end);
  OnnxItem item;
  uint64_t offset = begin;
  while (reader.Next(&item)) {
    Expect(item.wire.begin == offset && item.wire.begin < item.wire.payload && item.wire.payload <= item.wire.end,
           "a field begins where the one before it ends");
    offset = item.wire.end;
    Expect(offset <= end, "a field ends inside its message");
    WriteAgain(data, item.wire);
    if (item.field == nullptr) continue;
    Expect(item.field->number == item.wire.number, "a field has the number of the schema");
    if (item.field->type == OnnxType::kMessage) {
      Walk(item.field->message, data, item.wire.payload, item.wire.end);
    } else if (item.field->type <= OnnxType::kDouble) {
      try {
        reader.ForEachNumber(item, [](uint64_t bits) { sink = bits; });
      } catch (const lowbit::FormatError&) {
        Expect(item.packed && lowbit::IsOnnxTensorData(message, *item.field), "all numbers but tensors' were checked");
      }
    } else {
      for (uint64_t i = item.wire.payload; i < item.wire.end; ++i) sink = data[i];
    }
  }
  (void)sink;
  Expect(offset == end, "the fields of a message fill it");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    lowbit::CheckOnnx(data, size);
    Walk(OnnxMessage::kModel, data, 0, size);
  } catch (const lowbit::Error&) {
  }
  return 0;
}
