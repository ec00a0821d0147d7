#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"
#include "src/formats/format.h"
#include "src/kernels/blockwise.h"
#include "src/kernels/compare.h"
#include "src/kernels/quantize.h"

namespace py = pybind11;

namespace lowbit {
namespace {

// Requirements for reading through a pointer to T: contiguous, aligned to T.
constexpr int kPlain = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

std::string Describe(const py::array& array) {
  std::string shape;
  for (py::ssize_t i = 0; i < array.ndim(); ++i) shape += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return Str(py::str(array.dtype()).cast<std::string>(), " array of shape (", shape, array.ndim() == 1 ? ",)" : ")");
}

void CheckTwoDimensional(const char* name, const py::array& array) {
  if (array.ndim() != 2) throw InputError(Str(name, ":")).Expected("two dimensions").Found(Describe(array));
}

WeightView::Type TypeOf(const py::array& array) {
  const py::dtype dtype = array.dtype();
  if (dtype.attr("isnative").cast<bool>()) {
    // By name: for NumPy, bfloat16 is a type that another package defines. Not dtype.name: that runs Python code,
    // during which other threads can run.
    const std::string name = dtype.attr("type").attr("__name__").cast<std::string>();
    if (name == "float32") return WeightView::Type::kF32;
    if (name == "float16") return WeightView::Type::kF16;
    if (name == "bfloat16") return WeightView::Type::kBF16;
  }
  throw InputError("weights:").Expected("float32, float16 or bfloat16").Found(Describe(array));
}

// An array that the core writes: type T, rows x columns, contiguous.
template <class T>
T* Output(const char* name, py::array& out, py::ssize_t rows, py::ssize_t columns) {
  if (!py::isinstance<py::array_t<T>>(out) || out.ndim() != 2 || out.shape(0) != rows || out.shape(1) != columns) {
    throw InputError(Str(name, ":"))
        .Expected(py::str(py::dtype::of<T>()).cast<std::string>(), " array of shape (", rows, ", ", columns, ")")
        .Found(Describe(out));
  }
  if ((out.flags() & kPlain) != kPlain) throw InputError(Str(name, ":")).Expected("an aligned, C-contiguous array");
  return static_cast<T*>(out.mutable_data());  // throws if it is read-only
}

WeightView View(const py::array& weights) {
  CheckTwoDimensional("weights", weights);
  return {static_cast<const uint8_t*>(weights.data()),
          TypeOf(weights),
          weights.strides(0),
          weights.strides(1),
          static_cast<size_t>(weights.shape(0)),
          static_cast<size_t>(weights.shape(1))};
}

std::unique_ptr<float[]> CopyImportance(const char* name, const py::array& importance, size_t K) {
  if (!py::isinstance<py::array_t<float>>(importance) || importance.ndim() != 1 ||
      importance.shape(0) != static_cast<py::ssize_t>(K) || (importance.flags() & kPlain) != kPlain) {
    throw InputError(Str(name, ":")).Expected("float32 array of shape (", K, ",)").Found(Describe(importance));
  }
  std::unique_ptr<float[]> columns(new float[K]);
  std::copy_n(static_cast<const float*>(importance.data()), K, columns.get());
  return columns;
}

void QuantizeArray(const py::array& weights, const std::string& format_name, const std::optional<py::array>& importance,
                   py::array out, bool allow_nonfinite, py::ssize_t threads) {
  const Format& format = GetFormat(format_name);
  const WeightView view = View(weights);
  const std::unique_ptr<float[]> columns = importance ? CopyImportance("imatrix", *importance, view.K) : nullptr;
  uint8_t* bytes = Output<uint8_t>("out", out, weights.shape(0), static_cast<py::ssize_t>(format.RowBytes(view.K)));
  const size_t num_threads = Threads(threads);
  MapsInUse maps;
  maps.Add(view.data);
  const GilRelease release;
  QuantizeRows(view, format, columns.get(), allow_nonfinite, num_threads, bytes);
  maps.Check();
}

template <class T>
T Choice(const char* name, const std::string& value, std::initializer_list<std::pair<const char*, T>> choices) {
  std::string expected;
  for (const auto& [text, choice] : choices) {
    if (value == text) return choice;
    expected += Str(expected.empty() ? "" : ", ", text);
  }
  throw InputError(Str(name, ":")).Expected("one of ", expected).Found(value);
}

// Codes, scales, zero points, and the squared error and squared weight.
py::tuple QuantizeBlocks(const py::array& weights, int bits, size_t block_size, bool symmetric,
                         const std::string& scale_type, const std::string& method, const std::string& layout,
                         bool is_signed, const std::optional<py::array>& importance, py::ssize_t threads) {
  using Method = BlockwiseSpec::Method;
  using Layout = BlockwiseSpec::Layout;
  const BlockwiseSpec spec = {
      bits,
      block_size,
      symmetric,
      Choice<bool>("scale_type", scale_type, {{"float32", false}, {"float16", true}}),
      is_signed,
      Choice<Method>("method", method, {{"round", Method::kRound}, {"search", Method::kSearch}, {"hqq", Method::kHqq}}),
      Choice<Layout>("layout", layout, {{"rows", Layout::kRows}, {"columns", Layout::kColumns}})};
  CheckBlockwise(spec);
  const WeightView view = View(weights);
  const std::unique_ptr<float[]> columns = importance ? CopyImportance("importances", *importance, view.K) : nullptr;
  const auto num_rows = static_cast<py::ssize_t>(view.num_rows);
  const auto num_blocks = static_cast<py::ssize_t>(spec.NumBlocks(view.K));
  const bool in_rows = spec.layout == Layout::kRows;
  const py::ssize_t shape[2] = {in_rows ? num_rows : num_blocks, in_rows ? num_blocks : num_rows};
  py::array_t<uint8_t> codes(static_cast<py::ssize_t>(spec.CodeBytes(view.num_rows, view.K)));
  py::array_t<float> scales({shape[0], shape[1]});
  py::array_t<uint8_t> zero_points({shape[0], shape[1]});
  const BlockwiseOutput out = {codes.mutable_data(), scales.mutable_data(), zero_points.mutable_data()};
  const size_t num_threads = Threads(threads);
  BlockwiseError error;
  MapsInUse maps;
  maps.Add(view.data);
  {
    const GilRelease release;
    error = QuantizeBlockwise(view, spec, columns.get(), num_threads, out);
  }
  maps.Check();
  return py::make_tuple(codes, scales, zero_points, error.squared_error, error.squared_weight);
}

// Rows of packed bytes, each contiguous. *K is the number of weights per row.
const uint8_t* PackedRows(const py::array& data, const Format& format, size_t* K) {
  CheckTwoDimensional("data", data);
  if (!py::isinstance<py::array_t<uint8_t>>(data) || (data.size() != 0 && data.shape(1) > 1 && data.strides(1) != 1)) {
    throw InputError("data:").Expected("uint8 array with contiguous rows").Found(Describe(data));
  }
  if (data.shape(1) % format.block_bytes != 0) {
    throw InputError(Str("data: rows have ", data.shape(1), " bytes"))
        .Expected("a multiple of ", format.block_bytes, " for ", format.name)
        .Found(data.shape(1));
  }
  *K = static_cast<size_t>(data.shape(1)) / format.block_bytes * format.block_size;
  return static_cast<const uint8_t*>(data.data());
}

// Squared error, squared weight and largest error of each row.
py::array_t<double> CompareArrays(const py::array& weights, const py::array& data, const std::string& format_name,
                                  py::ssize_t threads) {
  const Format& format = GetFormat(format_name);
  size_t K;
  const WeightView view = View(weights);
  const uint8_t* rows = PackedRows(data, format, &K);
  if (data.shape(0) != weights.shape(0) || K != view.K) {
    throw InputError("data:")
        .Expected(view.num_rows, " rows of ", view.K, " weights")
        .Found(data.shape(0), " rows of ", K);
  }
  const ptrdiff_t stride = data.strides(0);
  const size_t num_threads = Threads(threads);
  py::array_t<double> result({weights.shape(0), py::ssize_t{3}});
  static_assert(sizeof(RowError) == 3 * sizeof(double));
  auto* errors = reinterpret_cast<RowError*>(result.mutable_data());
  MapsInUse maps;
  maps.Add(view.data);
  maps.Add(rows);
  {
    const GilRelease release;
    CompareRows(view, rows, stride, format, num_threads, errors);
  }
  maps.Check();
  return result;
}

void DequantizeArray(const py::array& data, const std::string& format_name, py::array out, py::ssize_t threads) {
  const Format& format = GetFormat(format_name);
  size_t K;
  const uint8_t* rows = PackedRows(data, format, &K);
  const size_t num_rows = static_cast<size_t>(data.shape(0));
  float* floats = Output<float>("out", out, data.shape(0), static_cast<py::ssize_t>(K));
  const py::ssize_t stride = data.strides(0);
  const size_t num_threads = Threads(threads);
  MapsInUse maps;
  maps.Add(rows);
  const GilRelease release;
  DequantizeRows(rows, stride, format, num_rows, K, num_threads, floats);
  maps.Check();
}

void UnpackArray(const py::array& data, const std::string& format_name, py::array levels, py::array scales,
                 py::array minima, py::ssize_t threads) {
  const Format& format = GetFormat(format_name);
  size_t K;
  const uint8_t* rows = PackedRows(data, format, &K);
  const py::ssize_t num_rows = data.shape(0), columns = static_cast<py::ssize_t>(K);
  int8_t* level = Output<int8_t>("levels", levels, num_rows, columns);
  float* scale = Output<float>("scales", scales, num_rows, columns / 16);
  float* minimum = Output<float>("minima", minima, num_rows, columns / 16);
  const py::ssize_t stride = data.strides(0);
  const size_t num_threads = Threads(threads);
  MapsInUse maps;
  maps.Add(rows);
  {
    const GilRelease release;
    UnpackRows(rows, stride, format, static_cast<size_t>(num_rows), K, num_threads, level, scale, minimum);
  }
  maps.Check();
}

void CheckScalesArray(const py::array& data, const std::string& format_name, size_t first_row, py::ssize_t threads) {
  const Format& format = GetFormat(format_name);
  size_t K;
  const uint8_t* rows = PackedRows(data, format, &K);
  if (!(data.flags() & py::array::c_style)) throw InputError("data:").Expected("a C-contiguous array");
  const size_t num_rows = static_cast<size_t>(data.shape(0));
  const size_t num_threads = Threads(threads);
  MapsInUse maps;
  maps.Add(rows);
  const GilRelease release;
  CheckScales(rows, format, num_rows, K, num_threads, first_row);
  maps.Check();
}

}  // namespace

size_t Threads(py::ssize_t threads) {
  constexpr py::ssize_t kMost = 1024;
  if (threads < 1 || threads > kMost) throw InputError("threads:").Expected("1 to ", kMost).Found(threads);
  return static_cast<size_t>(threads);
}

void BindFormats(py::module_& m) {
  // Descriptors belong to the registry: no Python object changes or deletes one.
  py::class_<Format, std::unique_ptr<Format, py::nodelete>>(
      m, "Format", "A format, by name in any case: `formats()` has all. Equal and hashed by ggml's id.")
      .def(py::init([](const std::string& name) { return const_cast<Format*>(&GetFormat(name)); }), py::arg("name"))
      .def_property_readonly("name", [](const Format& f) { return f.name; })
      .def_readonly("ggml_type", &Format::ggml_type)
      .def_readonly("block_size", &Format::block_size)
      .def_readonly("block_bytes", &Format::block_bytes)
      .def_readonly("needs_imatrix", &Format::needs_imatrix)
      .def_property_readonly("bits_per_weight", &Format::BitsPerWeight)
      .def(
          "__eq__", [](const Format& a, const Format& b) { return a.ggml_type == b.ggml_type; }, py::is_operator())
      .def("__hash__", [](const Format& f) { return f.ggml_type; })
      .def("__reduce__",
           [](const py::object& f) { return py::make_tuple(py::type::of(f), py::make_tuple(f.attr("name"))); })
      .def("__repr__",
           [](const Format& f) {
             return Str("<Format ", f.name, ": ", f.block_size, " weight", f.block_size == 1 ? "" : "s", " in ",
                        f.block_bytes, " bytes>");
           })
      .attr("__module__") = "lowbit";  // its public name, which is used in pickles
  m.def("formats", &Formats, py::return_value_policy::reference);
  m.def("quantize_rows", &QuantizeArray, py::arg("weights"), py::arg("format"), py::arg("importance").none(true),
        py::arg("out"), py::arg("allow_nonfinite"), py::arg("threads"));
  m.def("quantize_blockwise", &QuantizeBlocks, py::arg("weights"), py::kw_only(), py::arg("bits"),
        py::arg("block_size"), py::arg("symmetric"), py::arg("scale_type"), py::arg("method"), py::arg("layout"),
        py::arg("is_signed"), py::arg("importance").none(true), py::arg("threads"));
  m.def("dequantize_rows", &DequantizeArray, py::arg("data"), py::arg("format"), py::arg("out"), py::arg("threads"));
  m.def("unpack_rows", &UnpackArray, py::arg("data"), py::arg("format"), py::arg("levels"), py::arg("scales"),
        py::arg("minima"), py::arg("threads"));
  m.def("compare_rows", &CompareArrays, py::arg("weights"), py::arg("data"), py::arg("format"), py::arg("threads"));
  m.def("check_scales", &CheckScalesArray, py::arg("data"), py::arg("format"), py::arg("first_row"),
        py::arg("threads"));
}

}  // namespace lowbit
