#include "tools/flag_values.h"

#include "absl/strings/numbers.h"

namespace tidal {

absl::StatusOr<std::vector<int32_t>> ParseIntegers(const std::string& flag,
                                                   const std::vector<std::string>& words,
                                                   int32_t min, int32_t max) {
  std::vector<int32_t> values;
  for (const std::string& word : words) {
    int32_t value = 0;
    if (!absl::SimpleAtoi(word, &value) || value < min || value > max) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", word, "' is not a number in ", min, "..", max));
    }
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<std::vector<double>> ParseShares(const std::string& flag,
                                                const std::vector<std::string>& words) {
  std::vector<double> values;
  for (const std::string& word : words) {
    double value = 0;
    if (!absl::SimpleAtod(word, &value) || !(value >= 0.0 && value <= 1.0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", word, "' is not a number in 0..1"));
    }
    values.push_back(value);
  }
  return values;
}

}  // namespace tidal
