#include "src/formats/format.h"

#include <algorithm>
#include <cctype>

#include "src/base/error.h"
#include "src/io/text.h"

namespace lowbit {
namespace {

// Static constructors in other files fill it, so it must exist before the first of them runs. It is never destroyed:
// other threads may still read it at exit.
std::vector<const Format*>& Registry() {
  static std::vector<const Format*>& registry = *new std::vector<const Format*>;
  return registry;
}

std::string Upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

RegisterFormat::RegisterFormat(const Format& format) {
  std::vector<const Format*>& all = Registry();
  for (const Format* other : all) {
    if (other->ggml_type == format.ggml_type || Upper(other->name) == Upper(format.name)) {
      throw Error(Str("two formats share a name or id: ", other->name, " and ", format.name));
    }
  }
  const auto at = std::lower_bound(all.begin(), all.end(), &format,
                                   [](const Format* a, const Format* b) { return a->ggml_type < b->ggml_type; });
  all.insert(at, &format);
}

const std::vector<const Format*>& Formats() { return Registry(); }

const Format* FindFormat(uint32_t ggml_type) {
  for (const Format* format : Formats()) {
    if (format->ggml_type == ggml_type) return format;
  }
  return nullptr;
}

const Format& GetFormat(const std::string& name) {
  std::string known;
  for (const Format* format : Formats()) {
    if (Upper(name) == format->name) return *format;
    known += (known.empty() ? "" : ", ") + std::string(format->name);
  }
  throw InputError(Str("unknown format ", Quoted(name), "; known: ", known));
}

}  // namespace lowbit
