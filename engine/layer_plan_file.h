// tidal.json beside a checkpoint: the layer plan that was found for it (`tidal-eval calibrate`). An
// object with the members full_layers and selection_layers, arrays of layer numbers; `calibration`,
// an object that says how they were found, is for people. Nothing else may be in it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/layer_plan.h"

namespace tidal {

inline constexpr char kLayerPlanFileName[] = "tidal.json";

// INVALID_ARGUMENT names what in the text is wrong. Whether the layers suit a model is up to
// LayerPlan::Create.
absl::StatusOr<LayerPlanOptions> ParseLayerPlanFile(std::string_view text);

// Reads `directory`/tidal.json; nullopt where there is none. INVALID_ARGUMENT also names the file;
// UNAVAILABLE where it cannot be read.
absl::StatusOr<std::optional<LayerPlanOptions>> ReadLayerPlanFile(const std::string& directory);

}  // namespace tidal
