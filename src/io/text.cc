#include "src/io/text.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lowbit {
namespace {

// Length of the well-formed sequence at the start of `bytes`, or 0. Table 3-7 of the Unicode standard.
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

uint32_t CodePoint(std::string_view sequence) {
  const auto lead = static_cast<uint8_t>(sequence[0]);
  if (sequence.size() == 1) return lead;
  uint32_t code = lead & (0x7F >> sequence.size());
  for (size_t i = 1; i < sequence.size(); ++i) code = code << 6 | (static_cast<uint8_t>(sequence[i]) & 0x3F);
  return code;
}

// Characters that control a terminal, end a line, change the text direction or are invisible: Unicode's categories Cc,
// Cf, Co, Zl and Zp, and white space except the space.
bool IsPrintable(uint32_t code) {
  struct Range {
    uint32_t first, last;
  };
  constexpr Range kUnprintable[] = {
      {0x00, 0x1F},       {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},     {0x61C, 0x61C},
      {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},     {0x8E2, 0x8E2},     {0x1680, 0x1680},
      {0x180E, 0x180E},   {0x2000, 0x200F},   {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},
      {0xE000, 0xF8FF},   {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
      {0x110CD, 0x110CD}, {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0x10FFFF},
  };
  for (const Range& range : kUnprintable) {
    if (code >= range.first && code <= range.last) return false;
  }
  return true;
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
  const auto escape = [&](char kind, uint32_t value, int num_digits) {
    out += '\\';
    out += kind;
    while (num_digits-- > 0) out += kHex[value >> (4 * num_digits) & 15];
  };
  while (!bytes.empty()) {
    const size_t length = SequenceLength(bytes);
    const std::string_view sequence = bytes.substr(0, length == 0 ? 1 : length);
    const size_t before = out.size();
    const uint32_t code = length == 0 ? 0 : CodePoint(sequence);
    if (length == 0) {
      escape('x', static_cast<uint8_t>(bytes[0]), 2);
    } else if (IsPrintable(code)) {
      out += sequence;
    } else if (code < 0x100) {
      escape('x', code, 2);
    } else if (code < 0x10000) {
      escape('u', code, 4);
    } else {
      escape('U', code, 8);
    }
    if (out.size() > kMaxShown + 1) {  // the quotation mark is not counted
      out.resize(before);
      return out + "\"...";
    }
    bytes.remove_prefix(sequence.size());
  }
  return out + "\"";
}

}  // namespace lowbit
