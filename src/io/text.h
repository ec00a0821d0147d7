// Makes bytes from files safe to show.
#pragma once

#include <string>
#include <string_view>

namespace lowbit {

// Whether the bytes are valid for Python's strict UTF-8 decoder: no overlong forms, no surrogates, nothing above
// U+10FFFF.
bool IsUtf8(std::string_view bytes);

// Quotes bytes for one line of an error message. Bytes that are not UTF-8 become \xNN, unprintable characters are
// escaped as in Python's strings, and the result is cut at 100 bytes.
std::string Quoted(std::string_view bytes);

}  // namespace lowbit
