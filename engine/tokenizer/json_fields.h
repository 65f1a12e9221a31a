// Typed access to a parsed JSON file, with error messages that name the field by its path
// ("pre_tokenizer.pretokenizers[0].behavior"). Nothing here throws. Pure functions.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace tidal::tokenization {

// A value and where it stands in the file. Does not own the value.
struct JsonField {
  const nlohmann::json* value;
  std::string path;

  // The member, or a null field where it is missing or this is no object.
  JsonField Member(std::string_view name) const;
  JsonField Element(size_t index) const;
  bool is_null() const { return value->is_null(); }
};

// The errors of all of these are INVALID_ARGUMENT.
absl::Status FieldError(const JsonField& field, std::string_view problem);
absl::StatusOr<std::string> ReadString(const JsonField& field, size_t max_bytes);
absl::StatusOr<bool> ReadBool(const JsonField& field, std::optional<bool> default_value);
absl::StatusOr<int64_t> ReadInt(const JsonField& field, int64_t max_value);
absl::Status CheckArray(const JsonField& field, size_t max_size);
// An object whose members all have one of `names`.
absl::Status CheckMembers(const JsonField& field, std::initializer_list<std::string_view> names);

}  // namespace tidal::tokenization
