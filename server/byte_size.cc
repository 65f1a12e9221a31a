#include "server/byte_size.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace tidal::server {
namespace {

struct Unit {
  absl::string_view name;  // lower case
  int64_t bytes;
};

constexpr int64_t kKibi = 1024;
constexpr int64_t kKilo = 1000;

// Binary units first, largest first: AbslUnparseFlag goes through them in this order.
constexpr std::array<Unit, 10> kUnits = {{
    {"tib", kKibi* kKibi* kKibi* kKibi},
    {"gib", kKibi* kKibi* kKibi},
    {"mib", kKibi* kKibi},
    {"kib", kKibi},
    {"b", 1},
    {"", 1},
    {"tb", kKilo* kKilo* kKilo* kKilo},
    {"gb", kKilo* kKilo* kKilo},
    {"mb", kKilo* kKilo},
    {"kb", kKilo},
}};

}  // namespace

bool AbslParseFlag(absl::string_view text, ByteSize* size, std::string* error) {
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  const size_t number_size = std::min(trimmed.find_first_not_of("0123456789."), trimmed.size());
  const std::string unit_name =
      absl::AsciiStrToLower(absl::StripAsciiWhitespace(trimmed.substr(number_size)));
  for (const Unit& unit : kUnits) {
    if (unit.name != unit_name) continue;
    double number = 0.0;
    if (!absl::SimpleAtod(trimmed.substr(0, number_size), &number)) break;
    const double bytes = number * static_cast<double>(unit.bytes);
    if (bytes >= 9.2e18) {
      *error = absl::StrCat("'", text, "' is more than an int64 holds");
      return false;
    }
    size->bytes = static_cast<int64_t>(bytes);
    return true;
  }
  *error = absl::StrCat("'", text,
                        "' is not a size: a number with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB");
  return false;
}

std::string AbslUnparseFlag(ByteSize size) {
  constexpr std::array<absl::string_view, 4> kBinaryNames = {"TiB", "GiB", "MiB", "KiB"};
  for (size_t i = 0; i < kBinaryNames.size(); ++i) {
    if (size.bytes != 0 && size.bytes % kUnits[i].bytes == 0) {
      return absl::StrCat(size.bytes / kUnits[i].bytes, kBinaryNames[i]);
    }
  }
  return absl::StrCat(size.bytes);
}

}  // namespace tidal::server
