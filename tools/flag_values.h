// Values of the tools' flags. INVALID_ARGUMENT names the flag, the value and what it may be.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tidal {

absl::StatusOr<std::vector<int32_t>> ParseIntegers(const std::string& flag,
                                                   const std::vector<std::string>& words,
                                                   int32_t min, int32_t max);

absl::StatusOr<std::vector<double>> ParseShares(const std::string& flag,
                                                const std::vector<std::string>& words);

template <typename Value>
absl::StatusOr<Value> ParseChoice(const std::string& flag, const std::string& word,
                                  const std::map<std::string, Value>& choices) {
  const auto it = choices.find(word);
  if (it != choices.end()) return it->second;
  const auto name = [](std::string* out, const auto& choice) { out->append(choice.first); };
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": '", word, "' is not one of ",
                                                 absl::StrJoin(choices, ", ", name)));
}

}  // namespace tidal
