#include "engine/layer_plan_file.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/json/bounded_json.h"

namespace tidal {
namespace {

absl::StatusOr<std::vector<int32_t>> ParseLayers(const nlohmann::json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is missing"));
  }
  if (!it->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is not an array of layer numbers"));
  }
  std::vector<int32_t> layers;
  for (const nlohmann::json& value : *it) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() > uint64_t{std::numeric_limits<int32_t>::max()}) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": ", value.dump(), " is not a layer's number, 0 or more"));
    }
    layers.push_back(value.get<int32_t>());
  }
  return layers;
}

}  // namespace

absl::StatusOr<LayerPlanOptions> ParseLayerPlanFile(std::string_view text) {
  TIDAL_ASSIGN_OR_RETURN(const nlohmann::json object, ParseBoundedJson(text));
  if (!object.is_object()) return absl::InvalidArgumentError("is not a JSON object");
  for (const auto& item : object.items()) {
    const std::string& name = item.key();
    if (name == "full_layers" || name == "selection_layers" || name == "calibration") continue;
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' is none of full_layers, selection_layers, calibration"));
  }
  LayerPlanOptions options;
  TIDAL_ASSIGN_OR_RETURN(options.full_layers, ParseLayers(object, "full_layers"));
  TIDAL_ASSIGN_OR_RETURN(options.selection_layers, ParseLayers(object, "selection_layers"));
  return options;
}

absl::StatusOr<std::optional<LayerPlanOptions>> ReadLayerPlanFile(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::path(directory) / kLayerPlanFileName;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::optional<LayerPlanOptions>();
  constexpr uint64_t kMaxBytes = 1 << 20;
  const uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) return absl::UnavailableError(absl::StrCat("cannot read ", path.string()));
  if (size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": has ", size, " bytes, more than ", kMaxBytes));
  }
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const absl::StatusOr<LayerPlanOptions> options = ParseLayerPlanFile(text);
  if (!options.ok()) {
    return absl::Status(options.status().code(),
                        absl::StrCat(path.string(), ": ", options.status().message()));
  }
  return std::optional<LayerPlanOptions>(*options);
}

}  // namespace tidal
