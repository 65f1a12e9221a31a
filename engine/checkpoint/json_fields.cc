#include "engine/checkpoint/json_fields.h"

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/json/bounded_json.h"

namespace tidal {

using nlohmann::json;

absl::StatusOr<json> ParseJsonObject(std::string_view text) {
  TIDAL_ASSIGN_OR_RETURN(json parsed, ParseBoundedJson(text));
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON is not an object but ", DescribeJson(parsed)));
  }
  return parsed;
}

std::string DescribeJson(const json& value) {
  constexpr size_t kMaxLength = 80;
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
  if (text.size() > kMaxLength) text = text.substr(0, kMaxLength) + "...";
  return text;
}

absl::Status UnsupportedValue(absl::string_view name, const json& value,
                              absl::string_view supported) {
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", DescribeJson(value), "; supported: ", supported));
}

absl::StatusOr<int64_t> IntegerFromJson(absl::string_view name, const json& value, int64_t min,
                                        int64_t max) {
  // An unsigned number beyond int64_t must not wrap into range.
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
  if (!fits || value.get<int64_t>() < min || value.get<int64_t>() > max) {
    return UnsupportedValue(name, value, absl::StrCat("integers from ", min, " to ", max));
  }
  return value.get<int64_t>();
}

const json* JsonFields::Find(absl::string_view name) const {
  const auto found = object_.find(std::string(name));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::Contains(absl::string_view name) const {
  return object_.contains(std::string(name));
}

absl::Status JsonFields::Missing(absl::string_view name) const {
  return absl::InvalidArgumentError(absl::StrCat(FullName(name), " is missing"));
}

absl::StatusOr<int32_t> JsonFields::Integer(absl::string_view name, int32_t min, int32_t max,
                                            std::optional<int32_t> fallback) const {
  const json* value = Find(name);
  if (value == nullptr) {
    if (!fallback.has_value()) return Missing(name);
    return *fallback;
  }
  TIDAL_ASSIGN_OR_RETURN(const int64_t integer, IntegerFromJson(FullName(name), *value, min, max));
  return static_cast<int32_t>(integer);
}

absl::StatusOr<double> JsonFields::Number(absl::string_view name, double min, double max,
                                          std::optional<double> fallback) const {
  const json* value = Find(name);
  if (value == nullptr) {
    if (!fallback.has_value()) return Missing(name);
    return *fallback;
  }
  if (!value->is_number() || !(value->get<double>() >= min) || !(value->get<double>() <= max)) {
    return UnsupportedValue(FullName(name), *value,
                            absl::StrCat("numbers from ", min, " to ", max));
  }
  return value->get<double>();
}

absl::StatusOr<bool> JsonFields::Boolean(absl::string_view name, bool fallback) const {
  const json* value = Find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return UnsupportedValue(FullName(name), *value, "true, false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::String(absl::string_view name,
                                               absl::string_view fallback) const {
  const json* value = Find(name);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return UnsupportedValue(FullName(name), *value, "strings");
  return value->get<std::string>();
}

}  // namespace tidal
