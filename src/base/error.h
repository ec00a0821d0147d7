// The exceptions of the core. Each becomes the Python class of the same name (python/lowbit/base/errors.py), which
// makes the message: the path, the text, what was expected and found.
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace lowbit {

// Concatenates its arguments as an ostream would print them: Str("row ", row, ": expected ", n).
template <typename... Args>
std::string Str(Args&&... args) {
  std::ostringstream out;
  (out << ... << std::forward<Args>(args));
  return out.str();
}

// Base class: catch it to catch every error that lowbit raises on purpose. what() is the text alone.
class Error : public std::runtime_error {
 public:
  // The subject of the error; fields that do not apply are empty.
  struct Fields {
    std::optional<std::string> path, tensor, key, expected, found;
    std::optional<uint64_t> offset;
    std::optional<int> errno_value;
    std::string rest;  // follows what was expected and found
  };

  explicit Error(const std::string& text, Fields fields = {}) : std::runtime_error(text), fields_(std::move(fields)) {}

  const Fields& fields() const { return fields_; }

 protected:
  Fields fields_;
};

// Sets fields where an error is thrown: throw FormatError("type:").Key(key).Expected("a string").Found(name).
template <class Self>
class ErrorWithFields : public Error {
 public:
  using Error::Error;

  Self& Path(const std::string& path) { return fields_.path = path, self(); }
  Self& Tensor(std::string_view name) { return fields_.tensor = name, self(); }
  Self& Key(std::string_view name) { return fields_.key = name, self(); }
  Self& Offset(uint64_t offset) { return fields_.offset = offset, self(); }
  Self& ErrnoValue(int value) { return fields_.errno_value = value, self(); }

  // The following are concatenated as by Str.
  template <typename... Args>
  Self& Expected(Args&&... args) {
    return fields_.expected = Str(std::forward<Args>(args)...), self();
  }
  template <typename... Args>
  Self& Found(Args&&... args) {
    return fields_.found = Str(std::forward<Args>(args)...), self();
  }
  template <typename... Args>
  Self& Rest(Args&&... args) {
    return fields_.rest = Str(std::forward<Args>(args)...), self();
  }

 private:
  Self& self() { return static_cast<Self&>(*this); }
};

// A file's content is not what its format allows.
class FormatError : public ErrorWithFields<FormatError> {
 public:
  using ErrorWithFields::ErrorWithFields;
};

// The operating system refused: missing file, no permission, disk full. Also an OSError in Python.
class FileError : public ErrorWithFields<FileError> {
 public:
  using ErrorWithFields::ErrorWithFields;
};

// A valid file with something that lowbit does not support: an unknown architecture or tensor type.
class UnsupportedError : public ErrorWithFields<UnsupportedError> {
 public:
  using ErrorWithFields::ErrorWithFields;
};

// An argument is wrong: shape, dtype, range, NaN in the weights. Also a ValueError in Python.
class InputError : public ErrorWithFields<InputError> {
 public:
  using ErrorWithFields::ErrorWithFields;
};

// The key-value cache has no room for the tokens of a call.
class ContextFullError : public ErrorWithFields<ContextFullError> {
 public:
  using ErrorWithFields::ErrorWithFields;
};

}  // namespace lowbit
