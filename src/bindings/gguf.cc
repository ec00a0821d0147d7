#include "src/io/gguf.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"
#include "src/io/text.h"

namespace py = pybind11;

namespace lowbit {
namespace {

py::str ToStr(std::string_view utf8) { return py::str(utf8.data(), utf8.size()); }

std::string_view ToUtf8(py::handle text, std::string_view key) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (data == nullptr) {
    PyErr_Clear();
    throw InputError(Str("key ", Quoted(key), ":")).Key(key).Expected("strings that UTF-8 can encode");
  }
  return {data, static_cast<size_t>(size)};
}

struct NumberType {
  GgufType type;
  char kind;  // NumPy's kind
};

constexpr NumberType kNumberTypes[] = {
    {GgufType::kUint8, 'u'},   {GgufType::kInt8, 'i'},  {GgufType::kUint16, 'u'},  {GgufType::kInt16, 'i'},
    {GgufType::kUint32, 'u'},  {GgufType::kInt32, 'i'}, {GgufType::kUint64, 'u'},  {GgufType::kInt64, 'i'},
    {GgufType::kFloat32, 'f'}, {GgufType::kBool, 'b'},  {GgufType::kFloat64, 'f'},
};

py::dtype ToDtype(GgufType type) {
  const NumberType* number = std::find_if(std::begin(kNumberTypes), std::end(kNumberTypes),
                                          [&](const NumberType& n) { return n.type == type; });
  return py::dtype(number->kind + std::to_string(GgufTypeBytes(type)));
}

// A str, a list of str, or a NumPy array with a copy of the numbers: one axis, or none for a scalar.
py::object ToPython(const GgufValue& value) {
  const uint8_t* cursor = value.data;
  if (value.type != GgufType::kString) {
    std::vector<py::ssize_t> shape;
    if (value.is_array) shape.push_back(static_cast<py::ssize_t>(value.count));
    return py::array(ToDtype(value.type), shape, cursor);
  }
  if (!value.is_array) return ToStr(NextString(&cursor));
  py::list list(static_cast<size_t>(value.count));
  for (size_t i = 0; i < list.size(); ++i) {
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), ToStr(NextString(&cursor)).release().ptr());
  }
  return list;
}

std::optional<GgufStrings> Strings(const std::shared_ptr<Gguf>& gguf, size_t index) {
  const GgufValue& value = gguf->values().at(index);
  if (!value.is_array || value.type != GgufType::kString) return std::nullopt;
  return GgufStrings{gguf, &value};
}

// The inverse of ToPython. Arrays are contiguous and little-endian.
GgufEntry ToEntry(const std::string& key, const py::object& value) {
  GgufEntry entry{key, false, GgufType::kString, 1, {}};
  if (py::isinstance<py::str>(value)) {
    AppendString(ToUtf8(value, key), &entry.payload);
  } else if (py::isinstance<py::list>(value)) {
    const auto list = py::reinterpret_borrow<py::list>(value);
    entry.is_array = true;
    entry.count = list.size();
    for (const py::handle item : list) AppendString(ToUtf8(item, key), &entry.payload);
  } else {
    const auto array = py::array::ensure(value, py::array::c_style);
    if (!array) throw InputError(Str("key ", Quoted(key), ":")).Key(key).Expected("a str, a list of str or an array");
    const auto fits = [&](const NumberType& n) {
      return n.kind == array.dtype().kind() && static_cast<py::ssize_t>(GgufTypeBytes(n.type)) == array.itemsize();
    };
    const NumberType* number = std::find_if(std::begin(kNumberTypes), std::end(kNumberTypes), fits);
    if (number == std::end(kNumberTypes)) {
      throw InputError(
          Str("key ", Quoted(key), ": GGUF metadata has no type for ", std::string(py::str(array.dtype()))))
          .Key(key);
    }
    entry.is_array = array.ndim() > 0;
    entry.type = number->type;
    entry.count = static_cast<uint64_t>(array.size());
    entry.payload.assign(static_cast<const char*>(array.data()), static_cast<size_t>(array.nbytes()));
  }
  return entry;
}

// (name, type, shape in NumPy's order, bytes, which file of a split model, offset in it)
using TensorTuple = std::tuple<py::str, const char*, py::tuple, uint64_t, size_t, uint64_t>;

py::list Tensors(const Gguf& gguf) {
  py::list list;
  size_t file = 0;
  for (const GgufTensor& tensor : gguf.tensors()) {
    py::tuple shape(tensor.shape.num_dims);
    for (uint32_t i = 0; i < tensor.shape.num_dims; ++i) shape[tensor.shape.num_dims - 1 - i] = tensor.shape.dims[i];
    while (gguf.files()[file].get() != tensor.file.get()) ++file;  // tensors are in the order of the files
    const uint64_t offset = static_cast<uint64_t>(tensor.data - tensor.file->data());
    list.append(TensorTuple(ToStr(tensor.name), tensor.type.name, shape, tensor.num_bytes, file, offset));
  }
  return list;
}

py::list Paths(const Gguf& gguf) {
  py::list list;
  for (const auto& file : gguf.files()) list.append(py::bytes(file->path()));
  return list;
}

py::array TensorData(const Gguf& gguf, size_t index) {
  const GgufTensor& tensor = gguf.tensors().at(index);
  tensor.file->Check();
  return MappedBytes(tensor.file, tensor.data, tensor.num_bytes);
}

using InfoTuple = std::tuple<std::string, std::string, std::vector<uint64_t>>;

GgufTensorInfo ToInfo(const InfoTuple& tuple) {
  const auto& [name, type, shape] = tuple;
  if (shape.size() > kGgufMaxDims) {
    throw InputError(Str("tensor ", Quoted(name), ":")).Tensor(name).Expected("1 to 4 dimensions").Found(shape.size());
  }
  GgufTensorInfo info{name, GetTensorType(type), {}};
  info.shape.num_dims = static_cast<uint32_t>(shape.size());
  std::copy(shape.rbegin(), shape.rend(), info.shape.dims.begin());
  return info;
}

GgufPlan Plan(const std::vector<std::pair<std::string, py::object>>& metadata, const std::vector<InfoTuple>& infos) {
  std::vector<GgufEntry> entries;
  entries.reserve(metadata.size());
  for (const auto& [key, value] : metadata) entries.push_back(ToEntry(key, value));
  std::vector<GgufTensorInfo> tensors;
  tensors.reserve(infos.size());
  for (const InfoTuple& info : infos) tensors.push_back(ToInfo(info));
  return PlanGguf(entries, std::move(tensors));
}

std::string PathOf(GgufWriter& writer) {
  const GilRelease release;
  return writer.TemporaryPath();
}

void Write(GgufWriter& writer, const py::buffer& buffer) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> release_view(&view, PyBuffer_Release);
  const GilRelease release;
  writer.Write(view.buf, static_cast<uint64_t>(view.len));
}

}  // namespace

void BindGguf(py::module_& m) {
  py::class_<GgufStrings>(m, "GgufStrings").def("__len__", [](const GgufStrings& strings) {
    return strings.value->count;
  });

  py::class_<Gguf, std::shared_ptr<Gguf>>(m, "GgufFile")
      .def_static("open", &Gguf::Open, py::arg("path"), py::call_guard<GilRelease>())
      .def_static("open_one", &Gguf::OpenOne, py::arg("path"), py::call_guard<GilRelease>())
      .def_property_readonly("version", &Gguf::version)
      .def_property_readonly("alignment", &Gguf::alignment)
      .def("keys",
           [](const Gguf& gguf) {
             py::list keys;
             for (const GgufValue& value : gguf.values()) keys.append(ToStr(value.key));
             return keys;
           })
      .def(
          "value", [](const Gguf& gguf, size_t index) { return ToPython(gguf.values().at(index)); }, py::arg("index"))
      .def("strings", &Strings, py::arg("index"))
      .def("header", [](const Gguf& gguf) { return py::bytes(gguf.header()); })
      .def("entry_begins",
           [](const Gguf& gguf) {
             py::list begins;
             for (const GgufValue& value : gguf.values()) begins.append(value.begin);
             return begins;
           })
      .def_property_readonly("infos_begin", &Gguf::infos_begin)
      .def_property_readonly("data_begin", &Gguf::data_begin)
      .def("paths", &Paths)
      .def("tensors", &Tensors)
      .def("data", &TensorData, py::arg("index"));

  m.def(
      "tensor_block",
      [](const std::string& name) {
        const TensorType type = GetTensorType(name);
        return std::make_pair(type.block_size, type.block_bytes);
      },
      py::arg("format"));

  m.def(
      "gguf_entry",
      [](const std::string& key, const py::object& value) { return py::bytes(EncodeEntry(ToEntry(key, value))); },
      py::arg("key"), py::arg("value"));

  py::class_<GgufPlan>(m, "GgufPlan")
      .def(py::init(&Plan), py::arg("metadata"), py::arg("tensors"))
      .def_readonly("file_size", &GgufPlan::file_size);

  py::class_<GgufWriter>(m, "GgufWriter")
      .def(py::init<const std::string&, GgufPlan>(), py::arg("path"), py::arg("plan"), py::call_guard<GilRelease>())
      .def_property_readonly("temporary_path", [](GgufWriter& writer) { return py::bytes(PathOf(writer)); })
      .def("write", &Write, py::arg("buffer"))
      .def("finish", &GgufWriter::Finish, py::call_guard<GilRelease>())
      .def("abort", &GgufWriter::Abort, py::call_guard<GilRelease>());
}

}  // namespace lowbit
