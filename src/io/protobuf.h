// The wire format of Protocol Buffers: https://protobuf.dev/programming-guides/encoding
//
// A message is a sequence of fields: a tag (field number and wire type), then a number or a length and its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "src/base/error.h"

namespace lowbit {

enum class WireType : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kGroup = 3, kEndGroup = 4, kFixed32 = 5 };

// The name for messages: "a varint".
const char* WireTypeName(WireType type);

struct WireField {
  uint32_t number = 0;
  WireType type = WireType::kVarint;
  uint64_t begin = 0;    // of the tag
  uint64_t payload = 0;  // of the bytes; of the number, if the field has no length
  uint64_t end = 0;
  uint64_t value = 0;  // a varint, or the bits of a fixed32 or fixed64; else 0
};

// A bounds-checked cursor over untrusted bytes. Offsets count from `data`, which the caller keeps.
class WireReader {
 public:
  // Reads the fields from `begin` to `end`. `message` is the name of the message, for errors.
  WireReader(const uint8_t* data, uint64_t begin, uint64_t end, const char* message)
      : data_(data), offset_(begin), end_(end), message_(message) {}

  // Reads the next field; a group counts as one field. Returns false at the end. Throws FormatError.
  bool Next(WireField* field);

  // Reads a packed number of type kVarint, kFixed32 or kFixed64: its bits. Must not be called at the end.
  uint64_t Number(WireType type);

  bool AtEnd() const { return offset_ == end_; }

  // Makes an error about the message at an offset.
  FormatError ErrorAt(uint64_t offset, const std::string& text) const;

 private:
  uint64_t Varint();
  uint64_t Fixed(size_t num_bytes);
  void ReadTag(WireField* field);
  void ReadPayload(WireField* field);
  void SkipGroup(const WireField& group);

  const uint8_t* data_;
  uint64_t offset_;
  uint64_t end_;
  const char* message_;
};

constexpr size_t kMaxVarint = 10;

// Writes a varint of at most kMaxVarint bytes. Returns the end.
uint8_t* PutVarint(uint64_t value, uint8_t* out);

size_t VarintBytes(uint64_t value);

inline uint64_t WireTag(uint32_t number, WireType type) { return uint64_t{number} << 3 | static_cast<uint64_t>(type); }

}  // namespace lowbit
