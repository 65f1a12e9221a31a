// A number of bytes as people write it: "4GiB", "512MiB", "1000000". Works as the type of a flag.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace tidal::server {

struct ByteSize {
  int64_t bytes = 0;

  friend bool operator==(ByteSize a, ByteSize b) { return a.bytes == b.bytes; }
};

// Accepts a decimal number, with or without fraction, and one of the units B, KiB, MiB, GiB, TiB,
// KB, MB, GB, TB (none = B; letters' case does not matter). False, with *error, for anything else,
// and for sizes below 0 or beyond int64.
bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error);

// In the largest binary unit that divides the size.
std::string AbslUnparseFlag(ByteSize size);

}  // namespace tidal::server
