// The bytes of a GGUF file: read, and its header written again.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "src/base/error.h"
#include "src/io/gguf.h"

namespace {

void Expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

// The sum keeps the compiler from leaving the reads out.
uint64_t Touch(const uint8_t* data, uint64_t num_bytes) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < num_bytes; ++i) sum += data[i];
  return sum;
}

lowbit::GgufEntry Entry(const lowbit::GgufValue& value, const uint8_t* end) {
  lowbit::GgufEntry entry{std::string(value.key), value.is_array, value.type, value.count, {}};
  entry.payload.assign(reinterpret_cast<const char*>(value.data), static_cast<size_t>(end - value.data));
  return entry;
}

void Check(const lowbit::Gguf& gguf) {
  static volatile uint64_t sink;
  std::vector<lowbit::GgufEntry> entries;
  for (size_t i = 0; i < gguf.values().size(); ++i) {
    const lowbit::GgufValue& value = gguf.values()[i];
    const uint64_t next = i + 1 < gguf.values().size() ? gguf.values()[i + 1].begin : gguf.infos_begin();
    const uint8_t* end = reinterpret_cast<const uint8_t*>(gguf.header().data()) + next;
    Expect(gguf.Find(value.key) == &value, "a key finds its value");
    sink = Touch(value.data, static_cast<uint64_t>(end - value.data));
    if (value.type == lowbit::GgufType::kString) {
      const uint8_t* cursor = value.data;
      for (uint64_t n = 0; n < value.count; ++n) lowbit::NextString(&cursor);
      Expect(cursor == end, "the strings of a value end where it ends");
    }
    try {
      sink = lowbit::GgufUnsigned(value);
    } catch (const lowbit::FormatError&) {
    }
    entries.push_back(Entry(value, end));
    const std::string written = lowbit::EncodeEntry(entries.back());
    Expect(gguf.header().compare(value.begin, next - value.begin, written) == 0, "an entry is written as it was read");
  }
  std::vector<lowbit::GgufTensorInfo> infos;
  for (const lowbit::GgufTensor& tensor : gguf.tensors()) {
    sink = Touch(tensor.data, tensor.num_bytes);
    infos.push_back({std::string(tensor.name), tensor.type, tensor.shape});
  }
  const lowbit::GgufPlan plan = lowbit::PlanGguf(entries, std::move(infos));
  Expect(plan.num_bytes.size() == gguf.tensors().size(), "a plan has a size for each tensor");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int file = memfd_create("gguf", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  Expect(file >= 0 && ftruncate(file, 0) == 0 && pwrite(file, data, size, 0) == static_cast<ssize_t>(size), "written");
  try {
    Check(*lowbit::Gguf::OpenOne(path));
  } catch (const lowbit::Error&) {
  }
  return 0;
}
