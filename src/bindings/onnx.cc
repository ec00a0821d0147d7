#include "src/io/onnx.h"

#include <pybind11/numpy.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"
#include "src/io/mapped_file.h"
#include "src/io/text.h"

namespace py = pybind11;

namespace lowbit {
namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

// Fields that the schema does not know, as in the file with their tags: the key in a message's dict.
constexpr char kUnknown[] = "?";

OnnxMessage MessageOf(const std::string& name) {
  const OnnxMessage message = FindOnnxMessage(name);
  if (message == OnnxMessage::kNone) throw InputError(Str("ONNX has no message ", Quoted(name)));
  return message;
}

py::object Number(OnnxType type, uint64_t bits) {
  if (type == OnnxType::kInt) return py::int_(static_cast<int64_t>(bits));
  if (type == OnnxType::kDouble) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return py::float_(value);
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return py::float_(value);
}

// The bytes of one message, and how its fields become Python objects.
class Fields {
 public:
  Fields(const std::string& name, const Bytes& data) : message_(MessageOf(name)), data_(data) {
    maps_.Add(data.data());
  }

  // Name -> value: int, float, str, or views of the bytes (messages too); lists of them for repeated fields. A tensor's
  // elements are left out.
  py::dict ToDict() {
    py::dict dict;
    OnnxReader reader = Reader();
    OnnxItem item;
    while (reader.Next(&item)) {
      if (item.field == nullptr) {
        List(dict, kUnknown).append(View(item.wire.begin, item.wire.end));
      } else if (IsOnnxTensorData(message_, *item.field)) {
        dict[item.field->name] = py::none();
      } else if (!item.field->repeated) {
        dict[item.field->name] = Value(item);
      } else if (item.field->type <= OnnxType::kDouble) {
        py::list list = List(dict, item.field->name);
        reader.ForEachNumber(item, [&](uint64_t bits) { list.append(Number(item.field->type, bits)); });
      } else {
        List(dict, item.field->name).append(Value(item));
      }
    }
    maps_.Check();
    return dict;
  }

  // A tensor's elements in `field`: an array, or a list of bytes for string_data.
  py::object Elements(const std::string& field) {
    const OnnxType type = TypeOf(field);
    uint64_t num = 0;
    if (type != OnnxType::kBytes) {
      ForEachItem(field, [&](const OnnxReader& reader, const OnnxItem& item) {
        reader.ForEachNumber(item, [&num](uint64_t) { ++num; });
      });
    }
    py::object elements = type == OnnxType::kBytes    ? Strings(field)
                          : type == OnnxType::kFloat  ? Numbers<float>(field, num)
                          : type == OnnxType::kDouble ? Numbers<double>(field, num)
                                                      : Numbers<int64_t>(field, num);
    maps_.Check();
    return elements;
  }

 private:
  OnnxReader Reader() const { return {message_, data_.data(), 0, static_cast<uint64_t>(data_.size())}; }

  py::array View(uint64_t begin, uint64_t end) const {
    Bytes view(static_cast<py::ssize_t>(end - begin), data_.data() + begin, data_);
    py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return std::move(view);
  }

  static py::list List(const py::dict& dict, const char* name) {
    if (!dict.contains(name)) dict[name] = py::list();
    return dict[name];
  }

  py::object Value(const OnnxItem& item) const {
    if (item.field->type <= OnnxType::kDouble) return Number(item.field->type, item.wire.value);
    if (item.field->type != OnnxType::kString) return View(item.wire.payload, item.wire.end);
    const char* text = reinterpret_cast<const char*>(data_.data() + item.wire.payload);
    const auto size = static_cast<Py_ssize_t>(item.wire.end - item.wire.payload);
    PyObject* decoded = PyUnicode_DecodeUTF8(text, size, "surrogateescape");
    if (decoded == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(decoded);
  }

  // The type of a field of tensor data.
  OnnxType TypeOf(const std::string& name) const {
    const OnnxSchema& schema = SchemaOf(message_);
    for (size_t i = 0; i < schema.num_fields; ++i) {
      const OnnxField& field = schema.fields[i];
      if (name == field.name && IsOnnxTensorData(message_, field)) return field.type;
    }
    throw InputError(Str(schema.name, " has no elements in ", Quoted(name)));
  }

  // Calls visit(reader, item) for each item of a field.
  template <class Visitor>
  void ForEachItem(const std::string& field, Visitor&& visit) const {
    OnnxReader reader = Reader();
    OnnxItem item;
    while (reader.Next(&item)) {
      if (item.field != nullptr && field == item.field->name) visit(reader, item);
    }
  }

  template <class T>
  py::object Numbers(const std::string& field, uint64_t num) const {
    py::array_t<T> array(static_cast<py::ssize_t>(num));
    T* out = array.mutable_data();
    const T* end = out + num;
    ForEachItem(field, [&](const OnnxReader& reader, const OnnxItem& item) {
      reader.ForEachNumber(item, [&](uint64_t bits) {
        if (out != end) std::memcpy(out++, &bits, sizeof(T));  // a file that changes meanwhile can have more
      });
    });
    while (out != end) *out++ = 0;
    return std::move(array);
  }

  py::object Strings(const std::string& field) const {
    py::list list;
    ForEachItem(field, [&](const OnnxReader&, const OnnxItem& item) {
      const char* text = reinterpret_cast<const char*>(data_.data() + item.wire.payload);
      list.append(py::bytes(text, static_cast<size_t>(item.wire.end - item.wire.payload)));
    });
    return std::move(list);
  }

  OnnxMessage message_;
  Bytes data_;
  MapsInUse maps_;
};

// Bytes to write: small ones are copied together, large ones stay where they are.
class Pieces {
 public:
  uint64_t size() const { return size_; }

  void Append(const char* data, size_t num_bytes) {
    text_.append(data, num_bytes);
    size_ += num_bytes;
  }

  void AppendVarint(uint64_t value) {
    uint8_t bytes[kMaxVarint];
    Append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(PutVarint(value, bytes) - bytes));
  }

  // `object`: a buffer, or an object with the attribute nbytes, which the caller turns into bytes when it writes.
  void AppendBuffer(const py::object& object, const char* field) {
    if (!PyObject_CheckBuffer(object.ptr()) && py::hasattr(object, "nbytes")) {
      Flush();
      list_.append(object);
      size_ += py::cast<uint64_t>(object.attr("nbytes"));
      return;
    }
    if (!PyObject_CheckBuffer(object.ptr())) {
      throw InputError(Str("field ", field, ":")).Expected("bytes").Found(Py_TYPE(object.ptr())->tp_name);
    }
    Py_buffer view;
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw py::error_already_set();
    const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> release(&view, PyBuffer_Release);
    const auto num_bytes = static_cast<size_t>(view.len);
    if (num_bytes < kLarge) {
      MapsInUse maps;
      maps.Add(view.buf);
      Append(static_cast<const char*>(view.buf), num_bytes);
      maps.Check();
    } else {
      Flush();
      list_.append(object);
      size_ += num_bytes;
    }
  }

  void Append(Pieces&& other) {
    if (py::len(other.list_) > 0) {
      Flush();
      for (const py::handle piece : other.list_) list_.append(piece);
    }
    text_ += other.text_;
    size_ += other.size_;
  }

  py::list Finish() {
    Flush();
    return std::move(list_);
  }

 private:
  static constexpr size_t kLarge = 1 << 16;

  void Flush() {
    if (!text_.empty()) list_.append(py::bytes(text_));
    text_.clear();
  }

  py::list list_;
  std::string text_;  // follows list_
  uint64_t size_ = 0;
};

void AppendNumber(const OnnxField& field, const py::handle value, Pieces* out) {
  if (field.type == OnnxType::kInt) {
    const auto integer = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    int overflow = 0;
    const long long number = integer ? PyLong_AsLongLongAndOverflow(integer.ptr(), &overflow) : 0;
    if (!integer || overflow != 0) {
      PyErr_Clear();
      throw InputError(Str("field ", field.name, ":"))
          .Expected("an integer of 64 bits")
          .Found(std::string(py::repr(value)));
    }
    out->AppendVarint(static_cast<uint64_t>(number));
    return;
  }
  const double number = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw InputError(Str("field ", field.name, ":")).Expected("a number").Found(std::string(py::repr(value)));
  }
  if (field.type == OnnxType::kDouble) return out->Append(reinterpret_cast<const char*>(&number), sizeof(number));
  if (std::isfinite(number) && std::abs(number) > std::numeric_limits<float>::max()) {
    throw InputError(Str("field ", field.name, ": ", number, " exceeds float32"));
  }
  const auto single = static_cast<float>(number);
  out->Append(reinterpret_cast<const char*>(&single), sizeof(single));
}

Pieces Encode(OnnxMessage message, const py::dict& dict, int depth);

WireType TypeOf(const OnnxField& field) {
  if (field.type == OnnxType::kInt) return WireType::kVarint;
  if (field.type == OnnxType::kFloat) return WireType::kFixed32;
  return field.type == OnnxType::kDouble ? WireType::kFixed64 : WireType::kBytes;
}

// depth: of the messages in the field.
void AppendValue(const OnnxField& field, const py::object& value, int depth, Pieces* out) {
  out->AppendVarint(WireTag(field.number, TypeOf(field)));
  if (field.type <= OnnxType::kDouble) return AppendNumber(field, value, out);
  Pieces payload;
  if (field.type == OnnxType::kString) {
    if (!PyUnicode_Check(value.ptr())) {
      throw InputError(Str("field ", field.name, ":")).Expected("a string").Found(Py_TYPE(value.ptr())->tp_name);
    }
    PyObject* encoded = PyUnicode_AsEncodedString(value.ptr(), "utf-8", "surrogateescape");
    if (encoded == nullptr) {
      PyErr_Clear();
      throw InputError(Str("field ", field.name, ":")).Expected("a string that UTF-8 can encode");
    }
    payload.AppendBuffer(py::reinterpret_steal<py::object>(encoded), field.name);
  } else if (field.type == OnnxType::kMessage && py::isinstance<py::dict>(value)) {
    payload = Encode(field.message, py::reinterpret_borrow<py::dict>(value), depth);
  } else {
    payload.AppendBuffer(value, field.name);
  }
  out->AppendVarint(payload.size());
  out->Append(std::move(payload));
}

// The inverse of Fields::ToDict. A message may be given as its bytes.
Pieces Encode(OnnxMessage message, const py::dict& dict, int depth) {
  const OnnxSchema& schema = SchemaOf(message);
  if (depth > kMaxOnnxDepth) {
    throw InputError(Str(schema.name, ": messages are nested deeper than ", kMaxOnnxDepth));
  }
  Pieces out;
  size_t known = 0;
  for (size_t i = 0; i < schema.num_fields; ++i) {
    const OnnxField& field = schema.fields[i];
    if (!dict.contains(field.name)) continue;
    ++known;
    const py::object value = dict[field.name];
    if (value.is_none()) continue;
    if (!field.repeated) {
      AppendValue(field, value, depth + 1, &out);
    } else {
      for (const py::handle each : value) AppendValue(field, py::reinterpret_borrow<py::object>(each), depth + 1, &out);
    }
  }
  if (dict.contains(kUnknown)) {
    ++known;
    for (const py::handle each : dict[kUnknown]) out.AppendBuffer(py::reinterpret_borrow<py::object>(each), kUnknown);
  }
  if (known != dict.size()) throw InputError(Str(schema.name, ": some of the fields are unknown"));
  return out;
}

void Check(const Bytes& data) {
  MapsInUse maps;
  const uint8_t* bytes = data.data();
  const auto size = static_cast<uint64_t>(data.size());
  maps.Add(bytes);
  const GilRelease release;
  CheckOnnx(bytes, size);
  maps.Check();
}

}  // namespace

void BindOnnx(py::module_& m) {
  m.def("check_onnx", &Check, py::arg("data").noconvert());
  m.def(
      "onnx_fields", [](const std::string& message, const Bytes& data) { return Fields(message, data).ToDict(); },
      py::arg("message"), py::arg("data").noconvert());
  m.def(
      "onnx_elements",
      [](const Bytes& data, const std::string& field) { return Fields("TensorProto", data).Elements(field); },
      py::arg("tensor").noconvert(), py::arg("field"));
  m.def(
      "encode_onnx",
      [](const std::string& message, const py::dict& fields) { return Encode(MessageOf(message), fields, 1).Finish(); },
      py::arg("message"), py::arg("fields"));
}

}  // namespace lowbit
