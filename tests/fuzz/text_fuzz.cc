// Text of any bytes: what is UTF-8 for lowbit is UTF-8 for the C library, and every text can be quoted in one line.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "src/io/text.h"

namespace {

// Decodes and encodes again: only the shortest form of a scalar value comes back the same. Not the table of text.cc.
bool IsUtf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const uint8_t lead = static_cast<uint8_t>(bytes[i]);
    const size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    if (length == 0 || i + length > bytes.size()) return false;
    uint32_t value = length == 1 ? lead : lead & (0x7Fu >> length);
    for (size_t k = 1; k < length; ++k) {
      const uint8_t tail = static_cast<uint8_t>(bytes[i + k]);
      if (tail >> 6 != 2) return false;
      value = value << 6 | (tail & 0x3F);
    }
    static constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < kLeast[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return false;
    i += length;
  }
  return true;
}

void Expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string copy(reinterpret_cast<const char*>(data), size);  // on the heap, where reading beyond it is seen
  const bool valid = IsUtf8(copy);
  Expect(lowbit::IsUtf8(copy) == valid, "IsUtf8 agrees with decoding");
  const std::string quoted = lowbit::Quoted(copy);
  Expect(IsUtf8(quoted), "what is quoted is UTF-8");
  Expect(quoted.size() < 500, "what is quoted is short");
  for (const char c : quoted) Expect(static_cast<uint8_t>(c) >= 0x20 && c != 0x7F, "what is quoted is one line");
  return 0;
}
