#include "src/io/text.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lowbit {
namespace {

// Length of the well-formed sequence that `bytes` begins with, 0 if there is none. Table 3-7 of the Unicode standard.
size_t SequenceLength(std::string_view bytes) {
  const auto at = [&](size_t i) { return i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : uint8_t{0}; };
  const auto is_tail = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
  const uint8_t lead = at(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return is_tail(1) ? 2 : 0;
  const uint8_t second = at(1);
  if (lead < 0xF0) {
    const uint8_t low = lead == 0xE0 ? 0xA0 : 0x80;
    const uint8_t high = lead == 0xED ? 0x9F : 0xBF;
    return second >= low && second <= high && is_tail(2) ? 3 : 0;
  }
  if (lead > 0xF4) return 0;
  const uint8_t low = lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high && is_tail(2) && is_tail(3) ? 4 : 0;
}

}  // namespace

bool IsUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    if (bytes.size() >= 8) {
      uint64_t word;
      std::memcpy(&word, bytes.data(), 8);
      if ((word & 0x8080808080808080u) == 0) {
        bytes.remove_prefix(8);
        continue;
      }
    }
    const size_t length = SequenceLength(bytes);
    if (length == 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

std::string Quoted(std::string_view bytes) {
  constexpr size_t kMaxShown = 100;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  size_t shown = 0;
  while (shown < bytes.size() && shown < kMaxShown) {
    const std::string_view rest = bytes.substr(shown);
    const uint8_t lead = static_cast<uint8_t>(rest[0]);
    const size_t length = SequenceLength(rest);
    if (length == 0 || lead < 0x20 || lead == 0x7F) {
      out += "\\x";
      out += kHex[lead >> 4];
      out += kHex[lead & 15];
      ++shown;
    } else {
      out += rest.substr(0, length);
      shown += length;
    }
  }
  out += shown < bytes.size() ? "\"..." : "\"";
  return out;
}

}  // namespace lowbit
