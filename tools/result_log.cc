#include "tools/result_log.h"

#include <filesystem>
#include <iterator>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/backend/status_macros.h"
#include "engine/json/bounded_json.h"

namespace tidal {
namespace {

std::string ReadWhole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

absl::StatusOr<nlohmann::json> ParseLine(const std::string& path, size_t number,
                                         std::string_view line) {
  absl::StatusOr<nlohmann::json> value = ParseBoundedJson(line);
  if (value.ok() && value->is_object()) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ":", number, ": ",
                   value.ok() ? "is not a JSON object" : std::string(value.status().message())));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ResultLog>> ResultLog::Open(const std::string& path,
                                                           const nlohmann::json& settings) {
  auto log = std::unique_ptr<ResultLog>(new ResultLog(path));
  TIDAL_RETURN_IF_ERROR(log->Read(settings));
  const bool is_new = !std::filesystem::exists(path) || std::filesystem::file_size(path) == 0;
  log->file_.open(path, std::ios::binary | std::ios::app);
  if (!log->file_) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  if (is_new) TIDAL_RETURN_IF_ERROR(log->WriteLine(settings));
  return log;
}

absl::Status ResultLog::Read(const nlohmann::json& settings) {
  std::string text = ReadWhole(path_);
  const size_t whole_size = text.rfind('\n') + 1;  // 0 where there is no line
  if (whole_size < text.size()) {
    text.resize(whole_size);
    std::error_code error;
    std::filesystem::resize_file(path_, whole_size, error);
    if (error) return absl::UnavailableError(absl::StrCat(path_, ": ", error.message()));
  }
  size_t number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    TIDAL_ASSIGN_OR_RETURN(nlohmann::json value,
                           ParseLine(path_, ++number, {line.data(), line.size()}));
    if (number > 1) {
      results_.push_back(std::move(value));
    } else if (value != settings) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": was made with other settings, ",
                                                     value.dump(), ", than ", settings.dump(),
                                                     "; name another --out, or remove it"));
    }
  }
  return absl::OkStatus();
}

absl::Status ResultLog::Append(nlohmann::json result) {
  TIDAL_RETURN_IF_ERROR(WriteLine(result));
  results_.push_back(std::move(result));
  return absl::OkStatus();
}

absl::Status ResultLog::WriteLine(const nlohmann::json& value) {
  file_ << value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  file_.flush();
  return file_ ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path_));
}

}  // namespace tidal
