// The shapes of well-known models, for benchmarks on random weights.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/model_config.h"

namespace tidal {

// "llama-2-7b", ...
std::vector<std::string> ModelShapeNames();

// A name of the list, or the path of a config.json. INVALID_ARGUMENT lists the names.
absl::StatusOr<ModelConfig> FindModelShape(const std::string& name_or_path);

}  // namespace tidal
