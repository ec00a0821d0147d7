#include "src/io/protobuf.h"

#include <cstring>

namespace lowbit {
namespace {

constexpr uint32_t kMaxNumber = (1u << 29) - 1;  // the format's limit
constexpr int kMaxGroups = 100;                  // nested; ONNX has none, so these are unknown fields

}  // namespace

const char* WireTypeName(WireType type) {
  switch (type) {
    case WireType::kVarint:
      return "a varint";
    case WireType::kFixed64:
      return "8 bytes";
    case WireType::kBytes:
      return "a length and bytes";
    case WireType::kGroup:
      return "a group";
    case WireType::kEndGroup:
      return "the end of a group";
    case WireType::kFixed32:
      return "4 bytes";
  }
  return "";
}

FormatError WireReader::ErrorAt(uint64_t offset, const std::string& text) const {
  return FormatError(Str(message_, " at offset ", offset, ": ", text)).Offset(offset);
}

uint64_t WireReader::Varint() {
  const uint64_t begin = offset_;
  uint64_t value = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    if (offset_ == end_) throw ErrorAt(begin, "a varint goes beyond the end");
    const uint8_t byte = data_[offset_++];
    value |= uint64_t{byte & 0x7Fu} << shift;  // as elsewhere, bits beyond 64 are dropped
    if ((byte & 0x80) == 0) return value;
  }
  throw ErrorAt(begin, "a varint has more than 10 bytes");
}

// The caller checked that the bytes are there.
uint64_t WireReader::Fixed(size_t num_bytes) {
  uint64_t value = 0;
  std::memcpy(&value, data_ + offset_, num_bytes);
  offset_ += num_bytes;
  return value;
}

uint64_t WireReader::Number(WireType type) {
  if (type == WireType::kVarint) return Varint();
  const size_t num_bytes = type == WireType::kFixed32 ? 4 : 8;
  if (num_bytes > end_ - offset_) throw ErrorAt(offset_, "a number goes beyond the end");
  return Fixed(num_bytes);
}

void WireReader::ReadTag(WireField* field) {
  field->begin = offset_;
  const uint64_t tag = Varint();
  const uint64_t number = tag >> 3, type = tag & 7;
  if (number == 0 || number > kMaxNumber) throw ErrorAt(field->begin, Str("field number ", number, " is not valid"));
  if (type > 5) throw ErrorAt(field->begin, Str("field ", number, " has the unknown wire type ", type));
  field->number = static_cast<uint32_t>(number);
  field->type = static_cast<WireType>(type);
}

void WireReader::ReadPayload(WireField* field) {
  field->payload = offset_;
  field->value = 0;
  uint64_t size = 0;
  if (field->type == WireType::kVarint) field->value = Varint();
  if (field->type == WireType::kFixed32) size = 4;
  if (field->type == WireType::kFixed64) size = 8;
  if (field->type == WireType::kBytes) {
    size = Varint();
    field->payload = offset_;
  }
  if (size > end_ - offset_) {
    throw ErrorAt(field->begin,
                  Str("field ", field->number, " has ", size, " bytes, but ", end_ - offset_, " are left"));
  }
  if (field->type == WireType::kFixed32 || field->type == WireType::kFixed64) {
    field->value = Fixed(size);
  } else {
    offset_ += size;
  }
  field->end = offset_;
}

void WireReader::SkipGroup(const WireField& group) {
  uint32_t open[kMaxGroups];
  int depth = 0;
  open[depth++] = group.number;
  while (depth > 0) {
    if (AtEnd()) throw ErrorAt(group.begin, Str("group ", group.number, " has no end"));
    WireField field;
    ReadTag(&field);
    if (field.type == WireType::kGroup) {
      if (depth == kMaxGroups) throw ErrorAt(field.begin, Str("more than ", kMaxGroups, " nested groups"));
      open[depth++] = field.number;
    } else if (field.type == WireType::kEndGroup) {
      if (field.number != open[--depth]) {
        throw ErrorAt(field.begin, Str("group ", open[depth], " is ended by the end of group ", field.number));
      }
    } else {
      ReadPayload(&field);
    }
  }
}

bool WireReader::Next(WireField* field) {
  if (AtEnd()) return false;
  ReadTag(field);
  if (field->type == WireType::kEndGroup) throw ErrorAt(field->begin, Str("group ", field->number, " was not opened"));
  ReadPayload(field);
  if (field->type == WireType::kGroup) {
    SkipGroup(*field);
    field->end = offset_;
  }
  return true;
}

uint8_t* PutVarint(uint64_t value, uint8_t* out) {
  for (; value >= 0x80; value >>= 7) *out++ = static_cast<uint8_t>(value | 0x80);
  *out++ = static_cast<uint8_t>(value);
  return out;
}

size_t VarintBytes(uint64_t value) {
  size_t num = 1;
  while (value >>= 7) ++num;
  return num;
}

}  // namespace lowbit
