// Shared by GGUF's reader and writer: value types, tensor types, shapes and their rules.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "src/formats/format.h"

namespace lowbit {

// Types of metadata values, by their ids in the file.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of one value; 0 for strings, arrays and unknown ids.
size_t GgufTypeBytes(GgufType type);

// "uint32", "string", ...; null for unknown ids.
const char* GgufTypeName(GgufType type);

// How a tensor type is stored. `format` is null if lowbit has no codec: for integers and doubles, which are plain
// arrays, and for formats of ggml that lowbit cannot decode.
struct TensorType {
  const char* name;
  uint32_t ggml_type;
  uint32_t block_size;
  uint32_t block_bytes;
  const Format* format;
};

// Returns false for an unknown type.
bool FindTensorType(uint32_t ggml_type, TensorType* type);

// Describes an id that FindTensorType does not know: its former meaning and what to do instead.
std::string DescribeUnknownType(uint32_t ggml_type);

// By name, in any case. Throws InputError.
TensorType GetTensorType(const std::string& name);

constexpr uint32_t kGgufMaxDims = 4;

// Dimensions in GGUF order: the first is the length of a row.
struct GgufShape {
  uint32_t num_dims = 0;
  std::array<uint64_t, kGgufMaxDims> dims = {1, 1, 1, 1};
};

// Checks for reading and writing. Returns null, or the error of a tensor with this type and shape. *num_bytes is its
// size.
const char* CheckShape(const TensorType& type, const GgufShape& shape, uint64_t* num_bytes);

bool IsAlignment(uint64_t alignment);
constexpr char kExpectedAlignment[] = "a power of two from 8 to 2097152";

constexpr char kGgufEditMagic[] = "EDIT";  // instead of "GGUF" while the header is rewritten in place
constexpr char kAlignmentKey[] = "general.alignment";
constexpr uint32_t kDefaultAlignment = 32;
constexpr size_t kMaxTensorName = 63;  // ggml stores names in 64 bytes with a final zero, and refuses longer ones

}  // namespace lowbit
