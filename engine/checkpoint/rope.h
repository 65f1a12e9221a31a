// Rotary position embedding as config.json describes it, in the spellings of old and new
// transformers releases, and the frequencies that follow from it. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint/json_fields.h"

namespace tidal {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3 };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                               // kLinear, kLlama3
  double low_freq_factor = 1.0;                      // kLlama3
  double high_freq_factor = 4.0;                     // kLlama3; above low_freq_factor
  double original_max_position_embeddings = 8192.0;  // kLlama3

  bool operator==(const RopeConfig&) const = default;
};

// Reads `rope_theta` with `rope_scaling` {type or rope_type, ...}, or `rope_parameters`
// {rope_type, rope_theta, ...}. INVALID_ARGUMENT also where both are given and disagree.
// UNIMPLEMENTED for other types, for parameters by layer type, and for partial rotation.
absl::StatusOr<RopeConfig> ParseRopeConfig(const JsonFields& config);

// [head_dim / 2] radians a position. The formulas of transformers' modeling_rope_utils.py
// (`_compute_linear_scaling_rope_parameters`, `_compute_llama3_parameters`), computed in double.
std::vector<float> RopeInverseFrequencies(const RopeConfig& rope, int32_t head_dim);

}  // namespace tidal
