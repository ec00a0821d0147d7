#include "src/io/gguf_types.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <limits>
#include <string_view>

#include "src/base/error.h"

namespace lowbit {
namespace {

// Tensor types without a codec in src/formats. Remove a format's row when its codec is added.
constexpr TensorType kOtherTypes[] = {
    // Plain numbers.
    {"I8", 24, 1, 1, nullptr},  {"I16", 25, 1, 2, nullptr}, {"I32", 26, 1, 4, nullptr},
    {"I64", 27, 1, 8, nullptr}, {"F64", 28, 1, 8, nullptr},
};

// Types that ggml has withdrawn.
struct WithdrawnType {
  const char* name;
  uint32_t ggml_type;
  const char* advice;
};
constexpr char kConvertAgain[] = "which ggml removed in 2023: convert the model again";
constexpr char kNowQ4_0[] = "which ggml withdrew: it was Q4_0 in another order; quantize the model to Q4_0 instead";
constexpr char kNowIq4Nl[] =
    "which ggml withdrew: it was IQ4_NL in another order; quantize the model to IQ4_NL instead";
constexpr WithdrawnType kWithdrawnTypes[] = {
    {"Q4_2", 4, kConvertAgain},    {"Q4_3", 5, kConvertAgain},    {"Q4_0_4_4", 31, kNowQ4_0},
    {"Q4_0_4_8", 32, kNowQ4_0},    {"Q4_0_8_8", 33, kNowQ4_0},    {"IQ4_NL_4_4", 36, kNowIq4Nl},
    {"IQ4_NL_4_8", 37, kNowIq4Nl}, {"IQ4_NL_8_8", 38, kNowIq4Nl},
};

struct ValueType {
  const char* name;
  size_t num_bytes;
};

// By id.
constexpr ValueType kValueTypes[] = {
    {"uint8", 1}, {"int8", 1},   {"uint16", 2}, {"int16", 2},  {"uint32", 4}, {"int32", 4},   {"float32", 4},
    {"bool", 1},  {"string", 0}, {"array", 0},  {"uint64", 8}, {"int64", 8},  {"float64", 8},
};
constexpr uint32_t kNumValueTypes = std::size(kValueTypes);

TensorType FromFormat(const Format& format) {
  return {format.name, format.ggml_type, format.block_size, format.block_bytes, &format};
}

// Returns whether a * b fits, and the product.
bool Multiply(uint64_t a, uint64_t b, uint64_t* product) {
  if (b != 0 && a > std::numeric_limits<uint64_t>::max() / b) return false;
  *product = a * b;
  return true;
}

}  // namespace

size_t GgufTypeBytes(GgufType type) {
  const uint32_t id = static_cast<uint32_t>(type);
  return id < kNumValueTypes ? kValueTypes[id].num_bytes : 0;
}

const char* GgufTypeName(GgufType type) {
  const uint32_t id = static_cast<uint32_t>(type);
  return id < kNumValueTypes ? kValueTypes[id].name : nullptr;
}

bool FindTensorType(uint32_t ggml_type, TensorType* type) {
  if (const Format* format = FindFormat(ggml_type)) {
    *type = FromFormat(*format);
    return true;
  }
  for (const TensorType& other : kOtherTypes) {
    if (other.ggml_type != ggml_type) continue;
    *type = other;
    return true;
  }
  return false;
}

std::string DescribeUnknownType(uint32_t ggml_type) {
  for (const WithdrawnType& type : kWithdrawnTypes) {
    if (type.ggml_type == ggml_type) return Str(ggml_type, " (", type.name, "), ", type.advice);
  }
  return Str(ggml_type);
}

TensorType GetTensorType(const std::string& name) {
  const auto same_letter = [](char a, char b) { return std::toupper(static_cast<unsigned char>(a)) == b; };
  for (const TensorType& other : kOtherTypes) {
    const std::string_view other_name = other.name;
    if (std::equal(name.begin(), name.end(), other_name.begin(), other_name.end(), same_letter)) return other;
  }
  return FromFormat(GetFormat(name));
}

const char* CheckShape(const TensorType& type, const GgufShape& shape, uint64_t* num_bytes) {
  if (shape.num_dims == 0 || shape.num_dims > kGgufMaxDims) return "expected 1 to 4 dimensions";
  // ggml counts elements in int64. Zeros are skipped, so that the other dimensions are checked too.
  uint64_t elements = 1;
  for (uint32_t i = 0; i < shape.num_dims; ++i) {
    if (!Multiply(elements, std::max<uint64_t>(shape.dims[i], 1), &elements))
      return "the product of dimensions overflows";
  }
  if (elements > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return "the product of dimensions overflows";
  if (shape.dims[0] % type.block_size != 0) return "the block size of its type does not divide the length of a row";
  uint64_t bytes = shape.dims[0] / type.block_size;
  for (uint32_t i = 1; i < shape.num_dims; ++i) bytes *= shape.dims[i];
  if (!Multiply(bytes, type.block_bytes, &bytes) ||
      bytes > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return "the number of bytes overflows";
  }
  *num_bytes = bytes;
  return nullptr;
}

bool IsAlignment(uint64_t alignment) {
  constexpr uint64_t kMin = 8;         // the format requires a multiple of 8
  constexpr uint64_t kMax = 2u << 20;  // the largest pages in use; a larger value is invalid
  const bool power_of_two = alignment != 0 && (alignment & (alignment - 1)) == 0;
  return power_of_two && alignment >= kMin && alignment <= kMax;
}

}  // namespace lowbit
