// Bytes from files, made safe to show.
#pragma once

#include <string>
#include <string_view>

namespace lowbit {

// Whether the bytes are well-formed UTF-8 as Python's strict decoder sees it: no overlong forms, no surrogates, nothing
// above U+10FFFF.
bool IsUtf8(std::string_view bytes);

// The bytes in double quotes, fit for one line of an error message: what is not UTF-8 appears as \xNN, what is not
// printable as in Python's strings, and what exceeds 100 bytes so is cut.
std::string Quoted(std::string_view bytes);

}  // namespace lowbit
