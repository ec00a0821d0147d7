// What all of src/io needs of the operating system's paths and errors.
#pragma once

#include <filesystem>
#include <string>

namespace lowbit {

// Paths are UTF-8 on Windows and the system's bytes elsewhere. Throws InputError for a NUL: the system would take what
// stands before it for the whole path.
std::filesystem::path ToPath(const std::string& path);
std::string ToString(const std::filesystem::path& path);

// Of the last call of the system.
int LastError();

// Throws FileError: the path, "cannot ACTION: " and what the system says of `error`.
[[noreturn]] void FailSystem(const char* action, const std::string& path, int error = LastError());

}  // namespace lowbit
