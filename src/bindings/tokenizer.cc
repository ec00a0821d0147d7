#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "src/base/error.h"
#include "src/bindings/bindings.h"
#include "src/bindings/gil.h"
#include "src/tokenizer/bpe.h"

namespace py = pybind11;

namespace lowbit {
namespace {

using SharedIndex = std::shared_ptr<TokenIndex>;
using SharedMerges = std::shared_ptr<Merges>;

// Strings in Python or in a file.
using TextList = std::variant<GgufStrings, py::list>;

std::string_view ToUtf8(py::handle text, std::string_view what, size_t index) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
  if (data == nullptr) {
    PyErr_Clear();
    throw FormatError(Str(what, ":")).Expected("strings that UTF-8 can encode at index ", index);
  }
  return {data, static_cast<size_t>(size)};
}

// The UTF-8 of the strings, valid as long as they exist.
std::vector<std::string_view> Views(const TextList& texts, std::string_view what) {
  std::vector<std::string_view> views;
  if (const auto* strings = std::get_if<GgufStrings>(&texts)) {
    views.reserve(strings->value->count);
    const uint8_t* cursor = strings->value->data;
    while (views.size() < strings->value->count) views.push_back(NextString(&cursor));
  } else {
    const auto& list = std::get<py::list>(texts);
    views.reserve(list.size());
    for (const py::handle text : list) views.push_back(ToUtf8(text, what, views.size()));
  }
  return views;
}

// changed: other texts, by id.
SharedIndex MakeIndex(const TextList& texts, const py::dict& changed) {
  constexpr char kWhat[] = "tokenizer.ggml.tokens";
  std::vector<std::string_view> views = Views(texts, kWhat);
  for (const auto& [id, text] : changed) {
    const auto at = id.cast<size_t>();
    views.at(at) = ToUtf8(text, kWhat, at);
  }
  return std::make_shared<TokenIndex>(views);
}

std::optional<uint32_t> Known(uint32_t id) { return id == kNoToken ? std::nullopt : std::optional(id); }

// A text that UTF-8 cannot encode (lone surrogates) is not a token.
std::optional<uint32_t> Find(const TokenIndex& index, const py::str& text) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data == nullptr) PyErr_Clear();
  return data == nullptr ? std::nullopt : Known(index.Find({data, static_cast<size_t>(size)}));
}

// A text that a later id has too is not this id's.
py::object Text(const TokenIndex& index, size_t id) {
  const std::string_view text = id < index.size() ? index.text(static_cast<uint32_t>(id)) : std::string_view();
  if (text.empty() || (index.repeated() != kNoToken && index.Find(text) != id)) return py::none();
  return py::str(text.data(), text.size());
}

py::list Texts(const TokenIndex& index, const std::vector<size_t>& ids) {
  py::list texts(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) texts[i] = Text(index, ids[i]);
  return texts;
}

std::vector<uint32_t> Blank(const TokenIndex& index) {
  std::vector<uint32_t> ids;
  for (uint32_t id = 0; id < index.size(); ++id) {
    if (index.text(id).empty()) ids.push_back(id);
  }
  return ids;
}

py::list Spellings(const TokenIndex& index, const std::vector<uint32_t>& ids) {
  py::list texts(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= index.size()) throw py::index_error();
    const std::string_view text = index.text(ids[i]);
    texts[i] = py::str(text.data(), text.size());
  }
  return texts;
}

py::dict Ids(const TokenIndex& index) {
  py::dict ids;
  for (uint32_t id = 0; id < index.size(); ++id) {
    if (const py::object text = Text(index, id); !text.is_none()) ids[text] = id;
  }
  return ids;
}

SharedMerges MergesOfLines(const SharedIndex& index, const TextList& lines, const std::string& key) {
  return std::make_shared<ListedMerges>(index, Views(lines, key), key);
}

SharedMerges MergesOfScores(const SharedIndex& index, const py::array_t<double, py::array::c_style>& scores,
                            const py::array_t<bool, py::array::c_style>& is_mergeable) {
  const auto count = static_cast<py::ssize_t>(index->size());
  if (scores.ndim() != 1 || is_mergeable.ndim() != 1 || scores.size() != count || is_mergeable.size() != count) {
    throw InputError("merges:").Expected(count, " scores and flags").Found(scores.size(), " and ", is_mergeable.size());
  }
  return std::make_shared<ScoredMerges>(index, scores.data(), reinterpret_cast<const uint8_t*>(is_mergeable.data()));
}

py::list Pairs(const Merges& merges) {
  std::vector<py::str> texts;
  texts.reserve(merges.index().size());
  for (uint32_t id = 0; id < merges.index().size(); ++id) {
    const std::string_view text = merges.index().text(id);
    texts.emplace_back(text.data(), text.size());
  }
  const auto found = merges.Pairs();
  py::list pairs(found.size());
  size_t i = 0;
  for (const auto& [left, right] : found) pairs[i++] = py::make_tuple(texts[left], texts[right]);
  return pairs;
}

// BPE for the words in an encoding of the tokenizers library.
//
// ids_of: ids of the library's encoding -> ids of the vocabulary; none for words.
struct BpeEncoder {
  BpeEncoder(const SharedMerges& merges, std::vector<std::optional<uint32_t>> ids_of, std::optional<uint32_t> unknown,
             bool fuse_unknown, bool byte_fallback, bool ignore_merges)
      : bpe(merges, {unknown.value_or(kNoToken), fuse_unknown, byte_fallback, ignore_merges}),
        ids_of(std::move(ids_of)) {}

  Bpe bpe;
  std::vector<std::optional<uint32_t>> ids_of;
};

// The ids of an encoding. parts, ids, is_frame: for each token of the encoding its text, its id, and whether the
// post-processor added it; the ids of added ones are ids of the vocabulary.
std::vector<uint32_t> Encode(const BpeEncoder& encoder, const py::list& parts, const std::vector<uint32_t>& ids,
                             const std::vector<uint32_t>& is_frame) {
  const std::vector<std::string_view> words = Views(TextList(parts), "text");
  if (words.size() != ids.size() || words.size() != is_frame.size())
    throw InputError("encoding:").Expected("an id for each part");
  const GilRelease release;
  std::vector<uint32_t> found;
  Bpe::Scratch scratch;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::optional<uint32_t> id = is_frame[i] != 0 ? ids[i] : encoder.ids_of.at(ids[i]);
    if (id) {
      found.push_back(*id);
    } else {
      encoder.bpe.Encode(words[i], &scratch, &found);
    }
  }
  return found;
}

}  // namespace

void BindTokenizer(py::module_& m) {
  py::class_<TokenIndex, SharedIndex>(m, "TokenIndex")
      .def(py::init(&MakeIndex), py::arg("texts"), py::arg("changed") = py::dict())
      .def("__len__", &TokenIndex::size)
      .def("find", &Find, py::arg("text"))
      .def("text", &Text, py::arg("id"))
      .def("texts", &Texts, py::arg("ids"))
      .def("spellings", &Spellings, py::arg("ids"))
      .def("ids", &Ids)
      .def("blank", &Blank)
      .def_property_readonly("repeated", [](const TokenIndex& index) { return Known(index.repeated()); });
  py::class_<Merges, SharedMerges>(m, "Merges")
      .def_static("of_lines", &MergesOfLines, py::arg("index"), py::arg("lines"), py::arg("key"))
      .def_static("of_scores", &MergesOfScores, py::arg("index"), py::arg("scores"), py::arg("is_mergeable"))
      .def("pairs", &Pairs);
  py::class_<BpeEncoder>(m, "Bpe")
      .def(py::init<const SharedMerges&, std::vector<std::optional<uint32_t>>, std::optional<uint32_t>, bool, bool,
                    bool>(),
           py::arg("merges"), py::arg("ids_of"), py::arg("unknown"), py::arg("fuse_unknown"), py::arg("byte_fallback"),
           py::arg("ignore_merges"))
      .def("encode", &Encode, py::arg("parts"), py::arg("ids"), py::arg("is_frame"));
}

}  // namespace lowbit
