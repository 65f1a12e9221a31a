// Reading small JSON files of unknown origin: bounded in size and depth, and every field checked
// for type and range. Errors are INVALID_ARGUMENT and name the field, its value and what is
// supported. Stateless; a JsonFields refers to the object it was made from.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tidal {

// Parses one JSON object, bounded as ParseBoundedJson says.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

// `value` as text for an error message, cut to a line's length.
std::string DescribeJson(const nlohmann::json& value);

// INVALID_ARGUMENT "`name` is `value`; supported: `supported`".
absl::Status UnsupportedValue(absl::string_view name, const nlohmann::json& value,
                              absl::string_view supported);

// An integer within [min, max]; `name` is for the message.
absl::StatusOr<int64_t> IntegerFromJson(absl::string_view name, const nlohmann::json& value,
                                        int64_t min, int64_t max);

// Typed access to an object's fields. A field that is null counts as absent. An absent field yields
// `fallback`, or is an error where there is none.
class JsonFields {
 public:
  // `object` must be a JSON object and outlive this. `prefix` opens field names in messages.
  explicit JsonFields(const nlohmann::json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // The field, or null where it is absent or null.
  const nlohmann::json* Find(absl::string_view name) const;
  // Whether the field is written at all, be it as null.
  bool Contains(absl::string_view name) const;
  // The field's name as messages show it.
  std::string FullName(absl::string_view name) const { return prefix_ + std::string(name); }

  absl::StatusOr<int32_t> Integer(absl::string_view name, int32_t min, int32_t max,
                                  std::optional<int32_t> fallback = std::nullopt) const;
  absl::StatusOr<double> Number(absl::string_view name, double min, double max,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Boolean(absl::string_view name, bool fallback) const;
  absl::StatusOr<std::string> String(absl::string_view name, absl::string_view fallback) const;

 private:
  absl::Status Missing(absl::string_view name) const;

  const nlohmann::json& object_;
  std::string prefix_;
};

}  // namespace tidal
