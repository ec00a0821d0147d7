// The exceptions of the core. Each becomes the Python class of the same name (src/bindings/module.cc).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace lowbit {

// Base of all: catch this to catch everything lowbit raises on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A file's content is not what its format allows.
class FormatError : public Error {
 public:
  using Error::Error;
};

// The operating system refused: missing file, no permission, disk full.
class FileError : public Error {
 public:
  using Error::Error;
};

// Well-formed, but something lowbit does not do (unknown architecture, unknown tensor type).
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

// An argument is wrong: shape, dtype, range, NaN in the weights. Also a Python ValueError.
class InputError : public Error {
 public:
  using Error::Error;
};

// The key-value cache has no room for the tokens of a call.
class ContextFullError : public Error {
 public:
  using Error::Error;
};

// Concatenates its arguments as an ostream would print them: Str("row ", row, ": expected ", n).
template <typename... Args>
std::string Str(Args&&... args) {
  std::ostringstream out;
  (out << ... << std::forward<Args>(args));
  return out.str();
}

}  // namespace lowbit
