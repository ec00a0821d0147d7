#include "src/io/onnx_schema.h"

#include <algorithm>
#include <iterator>

namespace lowbit {
namespace {

using T = OnnxType;
using M = OnnxMessage;
constexpr bool kOne = false, kMany = true;

constexpr OnnxField kAttributeFields[] = {
    {1, "name", T::kString},
    {2, "f", T::kFloat},
    {3, "i", T::kInt},
    {4, "s", T::kBytes},
    {5, "t", T::kMessage, kOne, M::kTensor},
    {6, "g", T::kMessage, kOne, M::kGraph},
    {7, "floats", T::kFloat, kMany},
    {8, "ints", T::kInt, kMany},
    {9, "strings", T::kBytes, kMany},
    {10, "tensors", T::kMessage, kMany, M::kTensor},
    {11, "graphs", T::kMessage, kMany, M::kGraph},
    {13, "doc_string", T::kString},
    {14, "tp", T::kMessage, kOne, M::kType},
    {15, "type_protos", T::kMessage, kMany, M::kType},
    {20, "type", T::kInt},
    {21, "ref_attr_name", T::kString},
    {22, "sparse_tensor", T::kMessage, kOne, M::kSparseTensor},
    {23, "sparse_tensors", T::kMessage, kMany, M::kSparseTensor},
};

constexpr OnnxField kDeviceConfigurationFields[] = {
    {1, "name", T::kString},
    {2, "num_devices", T::kInt},
    {3, "device", T::kString, kMany},
};

constexpr OnnxField kDimensionFields[] = {
    {1, "dim_value", T::kInt},
    {2, "dim_param", T::kString},
    {3, "denotation", T::kString},
};

constexpr OnnxField kFunctionFields[] = {
    {1, "name", T::kString},
    {4, "input", T::kString, kMany},
    {5, "output", T::kString, kMany},
    {6, "attribute", T::kString, kMany},
    {7, "node", T::kMessage, kMany, M::kNode},
    {8, "doc_string", T::kString},
    {9, "opset_import", T::kMessage, kMany, M::kOperatorSetId},
    {10, "domain", T::kString},
    {11, "attribute_proto", T::kMessage, kMany, M::kAttribute},
    {12, "value_info", T::kMessage, kMany, M::kValueInfo},
    {13, "overload", T::kString},
    {14, "metadata_props", T::kMessage, kMany, M::kStringStringEntry},
};

constexpr OnnxField kGraphFields[] = {
    {1, "node", T::kMessage, kMany, M::kNode},
    {2, "name", T::kString},
    {5, "initializer", T::kMessage, kMany, M::kTensor},
    {10, "doc_string", T::kString},
    {11, "input", T::kMessage, kMany, M::kValueInfo},
    {12, "output", T::kMessage, kMany, M::kValueInfo},
    {13, "value_info", T::kMessage, kMany, M::kValueInfo},
    {14, "quantization_annotation", T::kMessage, kMany, M::kTensorAnnotation},
    {15, "sparse_initializer", T::kMessage, kMany, M::kSparseTensor},
    {16, "metadata_props", T::kMessage, kMany, M::kStringStringEntry},
};

constexpr OnnxField kIntIntListEntryFields[] = {
    {1, "key", T::kInt},
    {2, "value", T::kInt, kMany},
};

constexpr OnnxField kModelFields[] = {
    {1, "ir_version", T::kInt},
    {2, "producer_name", T::kString},
    {3, "producer_version", T::kString},
    {4, "domain", T::kString},
    {5, "model_version", T::kInt},
    {6, "doc_string", T::kString},
    {7, "graph", T::kMessage, kOne, M::kGraph},
    {8, "opset_import", T::kMessage, kMany, M::kOperatorSetId},
    {14, "metadata_props", T::kMessage, kMany, M::kStringStringEntry},
    {20, "training_info", T::kMessage, kMany, M::kTrainingInfo},
    {25, "functions", T::kMessage, kMany, M::kFunction},
    {26, "configuration", T::kMessage, kMany, M::kDeviceConfiguration},
};

constexpr OnnxField kNodeFields[] = {
    {1, "input", T::kString, kMany},
    {2, "output", T::kString, kMany},
    {3, "name", T::kString},
    {4, "op_type", T::kString},
    {5, "attribute", T::kMessage, kMany, M::kAttribute},
    {6, "doc_string", T::kString},
    {7, "domain", T::kString},
    {8, "overload", T::kString},
    {9, "metadata_props", T::kMessage, kMany, M::kStringStringEntry},
    {10, "device_configurations", T::kMessage, kMany, M::kNodeDeviceConfiguration},
};

constexpr OnnxField kNodeDeviceConfigurationFields[] = {
    {1, "configuration_id", T::kString},
    {2, "sharding_spec", T::kMessage, kMany, M::kShardingSpec},
    {3, "pipeline_stage", T::kInt},
};

constexpr OnnxField kOperatorSetIdFields[] = {
    {1, "domain", T::kString},
    {2, "version", T::kInt},
};

constexpr OnnxField kSegmentFields[] = {
    {1, "begin", T::kInt},
    {2, "end", T::kInt},
};

constexpr OnnxField kShardedDimFields[] = {
    {1, "axis", T::kInt},
    {2, "simple_sharding", T::kMessage, kMany, M::kSimpleShardedDim},
};

constexpr OnnxField kShardingSpecFields[] = {
    {1, "tensor_name", T::kString},
    {2, "device", T::kInt, kMany},
    {3, "index_to_device_group_map", T::kMessage, kMany, M::kIntIntListEntry},
    {4, "sharded_dim", T::kMessage, kMany, M::kShardedDim},
};

constexpr OnnxField kSimpleShardedDimFields[] = {
    {1, "dim_value", T::kInt},
    {2, "dim_param", T::kString},
    {3, "num_shards", T::kInt},
};

constexpr OnnxField kSparseTensorFields[] = {
    {1, "values", T::kMessage, kOne, M::kTensor},
    {2, "indices", T::kMessage, kOne, M::kTensor},
    {3, "dims", T::kInt, kMany},
};

constexpr OnnxField kStringStringEntryFields[] = {
    {1, "key", T::kString},
    {2, "value", T::kString},
};

constexpr OnnxField kTensorFields[] = {
    {1, "dims", T::kInt, kMany},
    {2, "data_type", T::kInt},
    {3, "segment", T::kMessage, kOne, M::kSegment},
    {4, "float_data", T::kFloat, kMany},
    {5, "int32_data", T::kInt, kMany},
    {6, "string_data", T::kBytes, kMany},
    {7, "int64_data", T::kInt, kMany},
    {8, "name", T::kString},
    {9, "raw_data", T::kBytes},
    {10, "double_data", T::kDouble, kMany},
    {11, "uint64_data", T::kInt, kMany},
    {12, "doc_string", T::kString},
    {13, "external_data", T::kMessage, kMany, M::kStringStringEntry},
    {14, "data_location", T::kInt},
    {16, "metadata_props", T::kMessage, kMany, M::kStringStringEntry},
};

constexpr OnnxField kTensorAnnotationFields[] = {
    {1, "tensor_name", T::kString},
    {2, "quant_parameter_tensor_names", T::kMessage, kMany, M::kStringStringEntry},
};

constexpr OnnxField kTensorShapeFields[] = {
    {1, "dim", T::kMessage, kMany, M::kDimension},
};

constexpr OnnxField kTrainingInfoFields[] = {
    {1, "initialization", T::kMessage, kOne, M::kGraph},
    {2, "algorithm", T::kMessage, kOne, M::kGraph},
    {3, "initialization_binding", T::kMessage, kMany, M::kStringStringEntry},
    {4, "update_binding", T::kMessage, kMany, M::kStringStringEntry},
};

constexpr OnnxField kTypeFields[] = {
    {1, "tensor_type", T::kMessage, kOne, M::kTypeTensor},
    {4, "sequence_type", T::kMessage, kOne, M::kTypeSequence},
    {5, "map_type", T::kMessage, kOne, M::kTypeMap},
    {6, "denotation", T::kString},
    {7, "opaque_type", T::kMessage, kOne, M::kTypeOpaque},
    {8, "sparse_tensor_type", T::kMessage, kOne, M::kTypeSparseTensor},
    {9, "optional_type", T::kMessage, kOne, M::kTypeOptional},
};

constexpr OnnxField kTypeMapFields[] = {
    {1, "key_type", T::kInt},
    {2, "value_type", T::kMessage, kOne, M::kType},
};

constexpr OnnxField kTypeOpaqueFields[] = {
    {1, "domain", T::kString},
    {2, "name", T::kString},
};

constexpr OnnxField kTypeOptionalFields[] = {
    {1, "elem_type", T::kMessage, kOne, M::kType},
};

constexpr OnnxField kTypeSequenceFields[] = {
    {1, "elem_type", T::kMessage, kOne, M::kType},
};

constexpr OnnxField kTypeSparseTensorFields[] = {
    {1, "elem_type", T::kInt},
    {2, "shape", T::kMessage, kOne, M::kTensorShape},
};

constexpr OnnxField kTypeTensorFields[] = {
    {1, "elem_type", T::kInt},
    {2, "shape", T::kMessage, kOne, M::kTensorShape},
};

constexpr OnnxField kValueInfoFields[] = {
    {1, "name", T::kString},
    {2, "type", T::kMessage, kOne, M::kType},
    {3, "doc_string", T::kString},
    {4, "metadata_props", T::kMessage, kMany, M::kStringStringEntry},
};

template <size_t N>
constexpr OnnxSchema Schema(const char* name, const OnnxField (&fields)[N]) {
  return {name, fields, N};
}

// In the order of OnnxMessage.
constexpr OnnxSchema kSchemas[] = {
    {"", nullptr, 0},
    Schema("AttributeProto", kAttributeFields),
    Schema("DeviceConfigurationProto", kDeviceConfigurationFields),
    Schema("TensorShapeProto.Dimension", kDimensionFields),
    Schema("FunctionProto", kFunctionFields),
    Schema("GraphProto", kGraphFields),
    Schema("IntIntListEntryProto", kIntIntListEntryFields),
    Schema("ModelProto", kModelFields),
    Schema("NodeProto", kNodeFields),
    Schema("NodeDeviceConfigurationProto", kNodeDeviceConfigurationFields),
    Schema("OperatorSetIdProto", kOperatorSetIdFields),
    Schema("TensorProto.Segment", kSegmentFields),
    Schema("ShardedDimProto", kShardedDimFields),
    Schema("ShardingSpecProto", kShardingSpecFields),
    Schema("SimpleShardedDimProto", kSimpleShardedDimFields),
    Schema("SparseTensorProto", kSparseTensorFields),
    Schema("StringStringEntryProto", kStringStringEntryFields),
    Schema("TensorProto", kTensorFields),
    Schema("TensorAnnotation", kTensorAnnotationFields),
    Schema("TensorShapeProto", kTensorShapeFields),
    Schema("TrainingInfoProto", kTrainingInfoFields),
    Schema("TypeProto", kTypeFields),
    Schema("TypeProto.Map", kTypeMapFields),
    Schema("TypeProto.Opaque", kTypeOpaqueFields),
    Schema("TypeProto.Optional", kTypeOptionalFields),
    Schema("TypeProto.Sequence", kTypeSequenceFields),
    Schema("TypeProto.SparseTensor", kTypeSparseTensorFields),
    Schema("TypeProto.Tensor", kTypeTensorFields),
    Schema("ValueInfoProto", kValueInfoFields),
};
static_assert(std::size(kSchemas) == static_cast<size_t>(OnnxMessage::kCount));

}  // namespace

const OnnxField* OnnxSchema::Find(uint32_t number) const {
  const OnnxField* end = fields + num_fields;
  const OnnxField* field =
      std::lower_bound(fields, end, number, [](const OnnxField& f, uint32_t wanted) { return f.number < wanted; });
  return field != end && field->number == number ? field : nullptr;
}

const OnnxSchema& SchemaOf(OnnxMessage message) { return kSchemas[static_cast<size_t>(message)]; }

OnnxMessage FindOnnxMessage(std::string_view name) {
  if (name.empty()) return OnnxMessage::kNone;
  const OnnxSchema* schema =
      std::find_if(std::begin(kSchemas), std::end(kSchemas), [&](const OnnxSchema& s) { return name == s.name; });
  return schema == std::end(kSchemas) ? OnnxMessage::kNone : static_cast<OnnxMessage>(schema - kSchemas);
}

}  // namespace lowbit
