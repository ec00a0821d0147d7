// Every format on any bytes: blocks of a file are decoded and multiplied, the bytes as floats are encoded.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "src/formats/format.h"
#include "src/kernels/activations.h"
#include "src/kernels/int8_matmul.h"

namespace {

using lowbit::Format;

// Copies of the exact size, so that a byte too many is seen.
void DecodeAndMultiply(const Format& format, const uint8_t* data, size_t size) {
  const size_t num_blocks = size / format.block_bytes;
  const std::vector<uint8_t> blocks(data, data + num_blocks * format.block_bytes);
  std::vector<float> values(num_blocks * format.block_size);
  format.decode(blocks.data(), num_blocks, values.data());

  const size_t K = values.size() / 32 * 32;
  if (format.unpack_panel == nullptr || K == 0 || K != values.size()) return;
  std::vector<float> x(K + 3);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i % 255) - 127);
  // One row, and as many rows as are unpacked without a copy.
  for (const size_t num_rows : {size_t{1}, lowbit::StripRows()}) {
    const size_t row = num_blocks / num_rows * format.block_size;
    if (row == 0 || row % 32 != 0) continue;
    const std::vector<uint8_t> rows(data, data + num_rows * format.RowBytes(row));
    const lowbit::Matrix weights = {&format, rows.data(), num_rows, row};
    for (const size_t num_tokens : {1, 3}) {
      lowbit::ActivationBuffer buffer;
      lowbit::GroupStarts starts;
      buffer.Reserve(num_tokens, row);
      const lowbit::Activations rounded = buffer.View(num_tokens, row);
      starts.Reserve(format, rounded);
      for (size_t t = 0; t < num_tokens; ++t) {
        buffer.Round(x.data() + t, t, num_tokens, row);
        starts.Compute(format, rounded, t);
      }
      std::vector<float> products(num_tokens * num_rows);
      lowbit::MultiplyInt8(weights, 0, num_rows, rounded, starts.data(), products.data(), num_rows);
    }
  }
}

void Encode(const Format& format, const uint8_t* data, size_t size) {
  const size_t K = size / sizeof(float) / format.block_size * format.block_size;
  if (K == 0) return;
  std::vector<float> weights(K);
  std::memcpy(weights.data(), data, K * sizeof(float));
  std::vector<float> importance(K);
  for (size_t i = 0; i < K; ++i) importance[i] = static_cast<float>(data[i]);  // some of them zero
  std::vector<uint8_t> out(format.RowBytes(K));
  format.encode(weights.data(), importance.data(), 1, K, out.data());
  if (!format.needs_imatrix) format.encode(weights.data(), nullptr, 1, K, out.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const Format& format = *lowbit::Formats()[data[0] % lowbit::Formats().size()];
  if (data[1] % 2 == 0) {
    DecodeAndMultiply(format, data + 2, size - 2);
  } else {
    Encode(format, data + 2, size - 2);
  }
  return 0;
}
