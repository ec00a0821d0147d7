// What lowbit knows of a format: one descriptor, filled in by the format's own source file, used by everything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "src/formats/activations.h"

namespace lowbit {

// Rows of K weights are cut into blocks of block_size, each stored in block_bytes. K is a multiple of block_size.
struct Format {
  const char* name;      // as ggml prints it, upper case: "Q4_K"
  uint32_t ggml_type;    // the id in GGUF files
  uint32_t block_size;   // weights a block
  uint32_t block_bytes;  // bytes a block
  bool needs_imatrix;    // cannot be encoded without importances

  // Encodes num_rows contiguous rows of K weights. `importance` is null or holds one finite, non-negative value a
  // column. Writes num_rows * RowBytes(K). Byte-identical to ggml_quantize_chunk on every SIMD target; blocks with NaN
  // or infinities give some bytes and no fault.
  void (*encode)(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out);

  // Decodes num_blocks blocks, bit-identical to ggml's to_float.
  void (*decode)(const uint8_t* blocks, size_t num_blocks, float* out);

  // Matrix product of one token or a few with rows straight from the file: out[t * out_stride + n] is the inner product
  // of row n (of num_rows, row_bytes apart) and token t (of x.num_tokens). Exact integer products in each group of 32,
  // scaled in float. Null where the weights are floats (F32, F16, BF16): those are multiplied as floats.
  void (*dot_int8)(const uint8_t* rows, size_t row_bytes, size_t num_rows, const Activations& x, float* out,
                   size_t out_stride);

  size_t RowBytes(size_t K) const { return K / block_size * block_bytes; }
  double BitsPerWeight() const { return 8.0 * block_bytes / block_size; }
};

// Every format, ordered by ggml_type.
const std::vector<const Format*>& Formats();

// Null if there is none.
const Format* FindFormat(uint32_t ggml_type);

// By name, in any case. Throws InputError that lists the names.
const Format& GetFormat(const std::string& name);

// `static const RegisterFormat registered(kFormat);` in a format's file makes it known. Two with one name or id
// are a bug in the build and end the program as it loads.
class RegisterFormat {
 public:
  explicit RegisterFormat(const Format& format);
};

}  // namespace lowbit

// Registers a format whose functions are lowbit::HWY_NAMESPACE::SCOPE::{Encode,Decode,Dot}, SCOPE being a namespace or
// a class; the rest of the arguments are the first five fields of its descriptor. Goes into the HWY_ONCE part of the
// format's file. The descriptor holds plain functions that dispatch when called: Highway knows the CPU only after the
// program has loaded.
#define LOWBIT_REGISTER_FORMAT(SCOPE, ...)                                                                            \
  LOWBIT_DISPATCH_CODEC(SCOPE)                                                                                        \
  HWY_EXPORT_T(DotTable, SCOPE::Dot);                                                                                 \
  void Dot(const uint8_t* rows, size_t row_bytes, size_t num_rows, const Activations& x, float* out, size_t stride) { \
    HWY_DYNAMIC_DISPATCH_T(DotTable)(rows, row_bytes, num_rows, x, out, stride);                                      \
  }                                                                                                                   \
  const Format kFormat = {__VA_ARGS__, Encode, Decode, Dot};                                                          \
  const RegisterFormat registered(kFormat);                                                                           \
  } /* namespace */                                                                                                   \
  } /* namespace lowbit */

// The same for weights that are floats: there is no Dot.
#define LOWBIT_REGISTER_FLOAT_FORMAT(SCOPE, ...)                 \
  LOWBIT_DISPATCH_CODEC(SCOPE)                                   \
  const Format kFormat = {__VA_ARGS__, Encode, Decode, nullptr}; \
  const RegisterFormat registered(kFormat);                      \
  } /* namespace */                                              \
  } /* namespace lowbit */

#define LOWBIT_DISPATCH_CODEC(SCOPE)                                                                    \
  namespace lowbit {                                                                                    \
  namespace {                                                                                           \
  HWY_EXPORT_T(EncodeTable, SCOPE::Encode);                                                             \
  HWY_EXPORT_T(DecodeTable, SCOPE::Decode);                                                             \
  void Encode(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out) { \
    HWY_DYNAMIC_DISPATCH_T(EncodeTable)(weights, importance, num_rows, K, out);                         \
  }                                                                                                     \
  void Decode(const uint8_t* blocks, size_t num_blocks, float* out) {                                   \
    HWY_DYNAMIC_DISPATCH_T(DecodeTable)(blocks, num_blocks, out);                                       \
  }
