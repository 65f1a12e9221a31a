// What Unicode 16.0 adds to the general categories of Unicode 14.0. Debian's PCRE2 10.42
// knows 14.0, Hugging Face's regular expressions 16.0; with this both see the same letters, marks
// and numbers. Pure function.
#pragma once

#include <string>
#include <string_view>

namespace tidal::tokenization {

// The code points added to `category` ("L", "Lu", ...), as members of a PCRE2 class.
std::string UnicodeAdditions(std::string_view category);

}  // namespace tidal::tokenization
