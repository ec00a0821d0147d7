// A packed weight matrix as stored in a file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "src/formats/format.h"

namespace lowbit {

// N rows of K weights, contiguous, without padding. Does not own the bytes.
struct Matrix {
  const Format* format = nullptr;
  const uint8_t* data = nullptr;
  size_t N = 0;
  size_t K = 0;

  size_t RowBytes() const { return format->RowBytes(K); }
  const uint8_t* Row(size_t n) const { return data + n * RowBytes(); }
};

}  // namespace lowbit
