#include "engine/tokenizer/json_fields.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/tokenizer/limits.h"
#include "engine/tokenizer/string_map.h"

namespace tidal::tokenization {
namespace {

const nlohmann::json& NullJson() {
  static const nlohmann::json& null = *new nlohmann::json();
  return null;
}

}  // namespace

JsonField JsonField::Member(std::string_view name) const {
  JsonField member = {&NullJson(),
                      path.empty() ? std::string(name) : absl::StrCat(path, ".", ToAbsl(name))};
  if (!value->is_object()) return member;
  const auto it = value->find(name);
  if (it != value->end()) member.value = &*it;
  return member;
}

JsonField JsonField::Element(size_t index) const {
  return {&(*value)[index], absl::StrCat(path, "[", index, "]")};
}

absl::Status FieldError(const JsonField& field, std::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(field.path, " ", ToAbsl(problem)));
}

absl::StatusOr<std::string> ReadString(const JsonField& field, size_t max_bytes) {
  if (!field.value->is_string()) return FieldError(field, "is not a string");
  const auto& text = field.value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    return FieldError(field,
                      absl::StrCat("has ", text.size(), " bytes, at most ", max_bytes, " allowed"));
  }
  return text;
}

absl::StatusOr<bool> ReadBool(const JsonField& field, std::optional<bool> default_value) {
  if (field.is_null() && default_value) return *default_value;
  if (!field.value->is_boolean()) return FieldError(field, "is not true or false");
  return field.value->get<bool>();
}

absl::StatusOr<int64_t> ReadInt(const JsonField& field, int64_t max_value) {
  const auto* value = field.value->get_ptr<const nlohmann::json::number_unsigned_t*>();
  if (value == nullptr) return FieldError(field, "is not a whole number of at least 0");
  if (*value > static_cast<uint64_t>(max_value)) {
    return FieldError(field, absl::StrCat("is ", *value, ", at most ", max_value, " allowed"));
  }
  return static_cast<int64_t>(*value);
}

absl::Status CheckArray(const JsonField& field, size_t max_size) {
  if (!field.value->is_array()) return FieldError(field, "is not an array");
  if (field.value->size() > max_size) {
    return FieldError(field, absl::StrCat("has ", field.value->size(), " elements, at most ",
                                          max_size, " allowed"));
  }
  return absl::OkStatus();
}

absl::Status CheckMembers(const JsonField& field, std::initializer_list<std::string_view> names) {
  if (!field.value->is_object()) return FieldError(field, "is not an object");
  for (const auto& item : field.value->items()) {
    if (std::find(names.begin(), names.end(), item.key()) == names.end()) {
      return FieldError(field, absl::StrCat("has the unknown member \"", item.key(), "\""));
    }
  }
  return absl::OkStatus();
}

}  // namespace tidal::tokenization
