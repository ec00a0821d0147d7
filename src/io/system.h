// Paths and errors of the operating system, for all of src/io.
#pragma once

#include <filesystem>
#include <string>

namespace lowbit {

// Paths are UTF-8 on Windows and the system's bytes elsewhere. Throws InputError for a NUL: the system would use only
// the part before it.
std::filesystem::path ToPath(const std::string& path);
std::string ToString(const std::filesystem::path& path);

// The error of the last system call.
int LastError();

// Throws FileError: the path, "cannot ACTION: " and the system's message for `error`.
[[noreturn]] void FailSystem(const char* action, const std::string& path, int error = LastError());

}  // namespace lowbit
