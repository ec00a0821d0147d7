// The descriptor of a format. The format's own source file fills it in; all other code uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "src/formats/activations.h"
#include "src/formats/panel.h"

namespace lowbit {

// A row of K weights consists of blocks of block_size weights, stored in block_bytes each. K is a multiple of
// block_size.
struct Format {
  const char* name;      // ggml's name in upper case: "Q4_K"
  uint32_t ggml_type;    // id in GGUF files
  uint32_t block_size;   // weights per block
  uint32_t block_bytes;  // bytes per block
  bool needs_imatrix;    // cannot be encoded without importances

  // Encodes num_rows contiguous rows of K weights. `importance` is null or has one finite, non-negative value per
  // column. Writes num_rows * RowBytes(K) bytes. Byte-identical to ggml_quantize_chunk on every SIMD target. Blocks
  // with NaN or infinity are encoded to unspecified bytes, without a fault.
  void (*encode)(const float* weights, const float* importance, size_t num_rows, size_t K, uint8_t* out);

  // Decodes num_blocks blocks, bit-identical to ggml's to_float.
  void (*decode)(const uint8_t* blocks, size_t num_blocks, float* out);

  // Unpacks num_blocks blocks (up to Panel::kMaxK weights) of each of R rows (panel.h) for the integer products. Null
  // for float formats (F32, F16, BF16), which are multiplied as floats.
  void (*unpack_panel)(PackedRows rows, size_t num_blocks, Panel& panel);
  // sums[t * R + r] += product of row r and token t of x, which has at most kMostFewTokens (few_tokens-inl.h), for R rows;
  // the result of MultiplyInt8 (src/kernels/int8_matmul.h), but the codes stay in registers. starts: of GroupStarts.
  void (*multiply_few)(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums);
  PanelKind panel;

  // Unpacks num_blocks blocks to small integers: weight i is scales[i / 16] * levels[i] - minima[i / 16], rounded once, to
  // the value that `decode` returns. Scales of more than 16 weights are repeated. Null for float formats.
  void (*unpack)(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima);

  size_t RowBytes(size_t K) const { return K / block_size * block_bytes; }
  double BitsPerWeight() const { return 8.0 * block_bytes / block_size; }
};

// All formats, ordered by ggml_type.
const std::vector<const Format*>& Formats();

// Returns null for an unknown id.
const Format* FindFormat(uint32_t ggml_type);

// Looks up a name in any case. Throws an InputError that lists the names.
const Format& GetFormat(const std::string& name);

// `static const RegisterFormat registered(kFormat);` in a format's file registers it. Two formats with the same name or
// id are a programming error: the program ends at load time.
class RegisterFormat {
 public:
  explicit RegisterFormat(const Format& format);
};

}  // namespace lowbit

// Registers a format with the functions lowbit::HWY_NAMESPACE::SCOPE::{Encode,Decode,ToPanel,Few,Levels,PanelOf}. SCOPE is
// a namespace or a class; the other arguments are the first five fields of the descriptor. Use it in the HWY_ONCE part of
// the format's file. The functions in the descriptor dispatch when they are called: Highway knows the CPU only after the program has
// loaded.
#define LOWBIT_REGISTER_FORMAT(SCOPE, ...)                                                                     \
  LOWBIT_DISPATCH_CODEC(SCOPE)                                                                                 \
  HWY_EXPORT_T(PanelTable, SCOPE::ToPanel);                                                                    \
  HWY_EXPORT_T(FewTable, SCOPE::Few);                                                                          \
  HWY_EXPORT_T(LevelsTable, SCOPE::Levels);                                                                    \
  void ToPanel(PackedRows rows, size_t num_blocks, Panel& panel) {                                             \
    HWY_DYNAMIC_DISPATCH_T(PanelTable)(rows, num_blocks, panel);                                               \
  }                                                                                                            \
  void Few(PackedRows rows, size_t K, const Activations& x, const int32_t* starts, float* sums) {              \
    HWY_DYNAMIC_DISPATCH_T(FewTable)(rows, K, x, starts, sums);                                                \
  }                                                                                                            \
  void Levels(const uint8_t* blocks, size_t num_blocks, int8_t* levels, float* scales, float* minima) {        \
    HWY_DYNAMIC_DISPATCH_T(LevelsTable)(blocks, num_blocks, levels, scales, minima);                           \
  }                                                                                                            \
  const Format kFormat = {__VA_ARGS__, Encode, Decode, ToPanel, Few, HWY_NAMESPACE::SCOPE::PanelOf(), Levels}; \
  const RegisterFormat registered(kFormat);                                                                    \
  } /* namespace */                                                                                            \
  } /* namespace lowbit */

// The same for float formats, which have only Encode and Decode.
#define LOWBIT_REGISTER_FLOAT_FORMAT(SCOPE, ...)                                       \
  LOWBIT_DISPATCH_CODEC(SCOPE)                                                         \
  const Format kFormat = {__VA_ARGS__, Encode, Decode, nullptr, nullptr, {}, nullptr}; \
  const RegisterFormat registered(kFormat);                                            \
  } /* namespace */                                                                    \
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
