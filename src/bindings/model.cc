#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"
#include "src/bindings/sampler.h"
#include "src/engine/forward.h"
#include "src/io/text.h"

namespace py = pybind11;

namespace lowbit {
namespace {

template <typename T>
using Dense = py::array_t<T, py::array::c_style>;

// The bytes of `array` as a matrix or vector of a format. Checks that their number matches the shape.
NamedTensor CheckTensor(const std::string& name, const std::string& format_name, const std::vector<size_t>& shape,
                        const py::array& array) {
  const Format& format = GetFormat(format_name);
  if (shape.empty() || shape.size() > 2)
    throw InputError(Str("tensor ", Quoted(name), " has ", shape.size(), " dimensions")).Tensor(name);
  const size_t K = shape.back(), rows = shape.size() == 2 ? shape[0] : 1;
  if (K % format.block_size != 0 || (K != 0 && rows > SIZE_MAX / 16 / K)) {
    throw InputError(
        Str("tensor ", Quoted(name), ": ", rows, " rows of ", K, " do not fit blocks of ", format.block_size))
        .Tensor(name);
  }
  if (!(array.flags() & py::array::c_style) || static_cast<size_t>(array.nbytes()) != rows * format.RowBytes(K)) {
    throw InputError(Str("tensor ", Quoted(name), ":"))
        .Tensor(name)
        .Expected(rows * format.RowBytes(K), " contiguous bytes of ", format.name)
        .Found(array.nbytes());
  }
  const auto* data = static_cast<const uint8_t*>(array.data());
  const size_t alignment = format.block_size == 1 ? format.block_bytes : 1;
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    throw InputError(Str("tensor ", Quoted(name), " is not aligned to ", alignment, " bytes")).Tensor(name);
  }
  return {&format, data, shape};
}

// The shape of a streamed matrix. Its pieces are checked when they arrive.
NamedTensor CheckStreamed(const std::string& name, const std::vector<size_t>& shape, bool has_rows) {
  if (!has_rows || shape.size() != 2) throw InputError(Str("tensor ", Quoted(name), " has no data")).Tensor(name);
  return {nullptr, nullptr, shape};
}

Matrix CheckMatrix(const std::string& format_name, size_t K, const py::array& data) {
  if (data.ndim() != 2) throw InputError("weights:").Expected("2 dimensions").Found(data.ndim());
  const NamedTensor tensor = CheckTensor("weights", format_name, {static_cast<size_t>(data.shape(0)), K}, data);
  return {tensor.format, tensor.data, tensor.shape[0], K};
}

void MatmulArrays(const Dense<float>& x, const std::string& format_name, const py::array& data, Dense<float>& out,
                  const std::string& compute, py::ssize_t threads) {
  if (x.ndim() != 2 || out.ndim() != 2) throw InputError("matmul:").Expected("x and out of 2 dimensions");
  const Matrix weights = CheckMatrix(format_name, x.shape(1), data);
  const size_t num_tokens = x.shape(0);
  if (out.shape(0) != x.shape(0) || static_cast<size_t>(out.shape(1)) != weights.N) {
    throw InputError("matmul:").Expected("out of shape (", num_tokens, ", ", weights.N, ")");
  }
  Product product;
  product.weights = weights;
  product.out = out.mutable_data();
  product.out_stride = weights.N;
  const float* rows = x.data();
  Matmul matmul(ParseCompute(compute), Threads(threads));
  MapsInUse maps;
  maps.Add(rows);
  maps.Add(weights.data);
  const GilRelease release;
  matmul(rows, num_tokens, product);
  maps.Check();
}

template <typename T>
std::vector<T> Copy(const Dense<T>& array) {
  return {array.data(), array.data() + array.size()};
}

// Reads the fields of a struct of src/engine/spec.h from the attributes of the Python object of the same name.
class FieldReader {
 public:
  explicit FieldReader(py::handle object) : object_(object) {}

  template <typename T>
  void operator()(const char* name, T& field) {
    try {
      Read(object_.attr(name), field);
    } catch (const py::cast_error&) {
      const std::string value = py::repr(object_.attr(name));
      throw InputError(Str("model description: ", name, " is ", Quoted(value)));
    }
  }

 private:
  template <typename T>
  static void Read(const py::object& value, T& field) {
    field = py::cast<T>(value);
  }

  static void Read(const py::object& value, Activation& field) {
    field = ParseActivation(py::cast<std::string>(value));
  }

  static void Read(const py::object& value, std::vector<RopeTable>& field) {
    for (py::handle rope : value) field.emplace_back().Visit(FieldReader(rope));
  }

  py::handle object_;
};

// A Transformer with the Python objects whose memory it reads.
class Model {
 public:
  Model(const py::object& spec_fields, const py::dict& tensors, const std::string& compute, py::ssize_t threads,
        size_t max_length, size_t max_sequences, const py::object& rows) {
    ModelSpec spec;
    spec.Visit(FieldReader(spec_fields));
    TensorMap map;
    MapsInUse maps;
    for (const auto& [key, value] : tensors) {
      const auto name = py::cast<std::string>(key);
      const auto [format, shape, data] = py::cast<std::tuple<std::string, std::vector<size_t>, py::object>>(value);
      map[name] = data.is_none() ? CheckStreamed(name, shape, !rows.is_none())
                                 : CheckTensor(name, format, shape, py::cast<py::array>(data));
      kept_.append(data);
      if (maps.Add(map[name].data)) mapped_.push_back(map[name].data);
    }
    transformer_ = std::make_unique<Transformer>(spec, map, ParseCompute(compute), Threads(threads), max_length,
                                                 max_sequences, Rows(rows, map));
    maps.Check();
  }

  Dense<float> Forward(const Dense<int32_t>& tokens, const Dense<int32_t>& positions, const Dense<int32_t>& sequences,
                       const Dense<bool>& wants_logits, size_t expected_length,
                       const std::optional<Dense<float>>& out) {
    return Run(tokens, positions, sequences, wants_logits, expected_length, out, nullptr);
  }

  // The same with the stages: name, layer or None, seconds.
  auto ForwardProfiled(const Dense<int32_t>& tokens, const Dense<int32_t>& positions, const Dense<int32_t>& sequences,
                       const Dense<bool>& wants_logits, size_t expected_length) {
    Profile profile;
    Dense<float> logits = Run(tokens, positions, sequences, wants_logits, expected_length, std::nullopt, &profile);
    std::vector<std::tuple<const char*, std::optional<size_t>, double>> times;
    for (const StageTime& time : profile.times()) times.emplace_back(time.stage, time.layer, time.seconds);
    return std::make_pair(std::move(logits), std::move(times));
  }

  // Adds a token to a sequence and draws the next one. The logits stay with the sampler.
  std::optional<int32_t> Step(StepSampler& sampler, int32_t token, int32_t position, int32_t sequence) {
    const size_t vocab_size = transformer_->spec().vocab_size;
    const bool wants_logits = true;
    MapsInUse maps;
    for (const uint8_t* data : mapped_) maps.Add(data);
    const GilRelease release;
    sampler.logits.resize(vocab_size);
    transformer_->Forward({1, &token, &position, &sequence, &wants_logits, 0}, sampler.logits.data());
    maps.Check();
    sampler.Accept(&token, 1);
    return sampler.Sample(sampler.logits.data(), vocab_size);
  }

  size_t Length(int32_t sequence) {
    const GilRelease release;
    return transformer_->Length(sequence);
  }

  bool IsLong(int32_t sequence) {
    const GilRelease release;
    return transformer_->IsLong(sequence);
  }

  void Truncate(int32_t sequence, size_t length) {
    const GilRelease release;
    transformer_->Truncate(sequence, length);
  }

  void RaiseMaxLength(size_t max_length) {
    const GilRelease release;
    transformer_->RaiseMaxLength(max_length);
  }

  void SetObserver(py::object callback) {
    const GilRelease release;
    const Transformer::Turn turn(*transformer_);
    const GilAcquire acquire;
    Transformer::Observer observer;
    if (!callback.is_none()) {
      observer = [this](const std::string& name, const float* x, size_t num_tokens, size_t K) {
        Observe(name, x, num_tokens, K);
      };
    }
    transformer_->SetObserver(turn, std::move(observer));
    std::swap(observer_, callback);  // the old one is released when the caller has the lock again
  }

  // For Python's cycle collector: a callback may refer to its model. No other member refers to Python objects.
  static int Traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (Model* model = Made(self)) {
      Py_VISIT(model->observer_.ptr());
      Py_VISIT(model->rows_.ptr());
    }
    return 0;
  }

  static int Clear(PyObject* self) {
    if (Model* model = Made(self)) {
      const py::object observer = std::move(model->observer_), rows = std::move(model->rows_);
    }
    return 0;
  }

 private:
  Dense<float> Run(const Dense<int32_t>& tokens, const Dense<int32_t>& positions, const Dense<int32_t>& sequences,
                   const Dense<bool>& wants_logits, size_t expected_length, const std::optional<Dense<float>>& given,
                   Profile* profile) {
    for (const py::array* array :
         {static_cast<const py::array*>(&tokens), static_cast<const py::array*>(&positions),
          static_cast<const py::array*>(&sequences), static_cast<const py::array*>(&wants_logits)}) {
      if (array->ndim() != 1 || array->size() != tokens.size()) {
        throw InputError("forward:").Expected("tokens, positions, sequences and wants_logits of one length");
      }
    }
    const std::vector<int32_t> ids = Copy(tokens), places = Copy(positions), owners = Copy(sequences);
    const auto* mask = reinterpret_cast<const uint8_t*>(wants_logits.data());  // a byte of a bool can have any value
    const std::unique_ptr<bool[]> wants(new bool[ids.size()]);
    size_t wanted = 0;
    for (size_t i = 0; i < ids.size(); ++i) wanted += (wants[i] = mask[i] != 0) ? 1 : 0;
    const size_t vocab_size = transformer_->spec().vocab_size;
    Dense<float> logits = given ? *given : Dense<float>({wanted, vocab_size});
    if (logits.ndim() != 2 || logits.shape(0) != py::ssize_t(wanted) || logits.shape(1) != py::ssize_t(vocab_size)) {
      throw InputError("out:").Expected("float32 array of shape (", wanted, ", ", vocab_size, ")");
    }
    float* out = logits.mutable_data();
    MapsInUse maps;
    for (const uint8_t* data : mapped_) maps.Add(data);
    const GilRelease release;
    const Batch batch = {ids.size(), ids.data(), places.data(), owners.data(), wants.get(), expected_length};
    transformer_->Forward(batch, out, profile);
    maps.Check();
    return logits;
  }

  // Null until the constructor has finished.
  static Model* Made(PyObject* self) {
    const py::detail::value_and_holder made = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder();
    return made.holder_constructed() ? static_cast<Model*>(made.value_ptr()) : nullptr;
  }

  // Calls Python from inside the transformer.
  template <class... Arguments>
  static py::object Call(const py::object& callback, const Arguments&... arguments) {
    PyObject* result =
        CallPython([&] { return PyObject_CallFunctionObjArgs(callback.ptr(), arguments.ptr()..., nullptr); });
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }

  // The observer gets a copy, which it may keep. The copy is cheap compared with the product. NumPy would release the
  // lock to copy, and the thread could end there, outside CallPython.
  void Observe(const std::string& name, const float* x, size_t num_tokens, size_t K) {
    const GilAcquire acquire;
    const py::object callback = observer_;
    if (!callback) return;  // cleared by the collector
    py::array_t<float> values({num_tokens, K});
    std::copy_n(x, num_tokens * K, values.mutable_data());
    Call(callback, py::str(name), values);
  }

  // Rows from the callback; each piece is kept until the next.
  Transformer::RowSource Rows(const py::object& callback, const TensorMap& tensors) {
    if (callback.is_none()) return nullptr;
    rows_ = callback;
    std::map<std::string, size_t> columns;
    for (const auto& [name, tensor] : tensors) columns[name] = tensor.shape.back();
    return [this, columns](const std::string& name, size_t first, size_t num, int32_t sequence) {
      const GilAcquire acquire;
      const py::object source = rows_;
      if (!source) throw InputError("the source of the model's rows was collected");
      const py::object piece = Call(source, py::str(name), py::int_(first), py::int_(num), py::int_(sequence));
      const auto [format, data] = py::cast<std::pair<std::string, py::array>>(piece);
      piece_ = data;
      const Matrix matrix = CheckMatrix(format, columns.at(name), data);
      if (matrix.N != num)
        throw InputError(Str("tensor ", Quoted(name), ":")).Tensor(name).Expected(num, " rows").Found(matrix.N);
      return matrix;
    };
  }

  py::list kept_;
  std::vector<const uint8_t*> mapped_;  // weights in maps, one pointer per map
  py::object observer_;                 // changed only with Python's lock and the transformer's turn held
  py::object rows_, piece_;
  std::unique_ptr<Transformer> transformer_;
};

}  // namespace

void BindModel(py::module_& m) {
  m.def("matmul", &MatmulArrays, py::arg("x").noconvert(), py::arg("format"), py::arg("data"),
        py::arg("out").noconvert(), py::arg("compute"), py::arg("threads"));

  const auto collected = py::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = &Model::Traverse;
    type.tp_clear = &Model::Clear;
  });
  py::class_<Model>(m, "Model", collected)
      .def(py::init<const py::object&, const py::dict&, const std::string&, py::ssize_t, size_t, size_t,
                    const py::object&>(),
           py::arg("spec"), py::arg("tensors"), py::arg("compute"), py::arg("threads"), py::arg("max_length"),
           py::arg("max_sequences"), py::arg("rows") = py::none())
      .def("forward", &Model::Forward, py::arg("tokens"), py::arg("positions"), py::arg("sequences"),
           py::arg("wants_logits"), py::arg("expected_length") = 0, py::arg("out").noconvert() = py::none())
      .def("forward_profiled", &Model::ForwardProfiled, py::arg("tokens"), py::arg("positions"), py::arg("sequences"),
           py::arg("wants_logits"), py::arg("expected_length") = 0)
      .def("step", &Model::Step, py::arg("sampler"), py::arg("token"), py::arg("position"), py::arg("sequence"))
      .def("is_long", &Model::IsLong, py::arg("sequence"))
      .def("length", &Model::Length, py::arg("sequence"))
      .def("truncate", &Model::Truncate, py::arg("sequence"), py::arg("length"))
      .def("raise_max_length", &Model::RaiseMaxLength, py::arg("max_length"))
      .def("set_observer", &Model::SetObserver, py::arg("callback"));
}

}  // namespace lowbit
