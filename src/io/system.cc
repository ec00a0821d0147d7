#include "src/io/system.h"

#include <system_error>

#include "src/base/error.h"

#ifdef _WIN32
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <cerrno>
#endif

namespace lowbit {

namespace fs = std::filesystem;

fs::path ToPath(const std::string& path) {
  if (path.find('\0') != std::string::npos) throw InputError("").Path(path).Expected("a path without NUL");
#ifdef _WIN32
  return fs::u8path(path);
#else
  return fs::path(path);
#endif
}

std::string ToString(const fs::path& path) {
#ifdef _WIN32
  return path.u8string();
#else
  return path.string();
#endif
}

int LastError() {
#ifdef _WIN32
  return static_cast<int>(GetLastError());
#else
  return errno;
#endif
}

void FailSystem(const char* action, const std::string& path, int error) {
  const std::error_code code(error, std::system_category());
  throw FileError(Str("cannot ", action, ": ", code.message()))
      .Path(path)
      .ErrnoValue(code.default_error_condition().value());
}

}  // namespace lowbit
