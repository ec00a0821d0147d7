// The messages of an ONNX file, IR versions 3 to 14: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lowbit {

enum class OnnxType : uint8_t {
  kInt,      // int32, int64, uint64, enums: a varint
  kFloat,    // fixed32
  kDouble,   // fixed64
  kString,   // text
  kBytes,    // any bytes
  kMessage,  // another message
};

enum class OnnxMessage : uint8_t {
  kNone,
  kAttribute,
  kDeviceConfiguration,
  kDimension,
  kFunction,
  kGraph,
  kIntIntListEntry,
  kModel,
  kNode,
  kNodeDeviceConfiguration,
  kOperatorSetId,
  kSegment,
  kShardedDim,
  kShardingSpec,
  kSimpleShardedDim,
  kSparseTensor,
  kStringStringEntry,
  kTensor,
  kTensorAnnotation,
  kTensorShape,
  kTrainingInfo,
  kType,
  kTypeMap,
  kTypeOpaque,
  kTypeOptional,
  kTypeSequence,
  kTypeSparseTensor,
  kTypeTensor,
  kValueInfo,
  kCount,
};

struct OnnxField {
  uint32_t number;
  const char* name;
  OnnxType type;
  bool repeated = false;
  OnnxMessage message = OnnxMessage::kNone;  // of kMessage
};

struct OnnxSchema {
  const char* name;         // "NodeProto"
  const OnnxField* fields;  // by ascending number
  size_t num_fields;

  // Returns null for an unknown field.
  const OnnxField* Find(uint32_t number) const;
};

const OnnxSchema& SchemaOf(OnnxMessage message);

// The message of a name such as "NodeProto"; kNone if there is none.
OnnxMessage FindOnnxMessage(std::string_view name);

}  // namespace lowbit
