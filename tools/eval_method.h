// What an accuracy measurement compares: an attention mode under a layer plan, with a name that
// tells it from others in tables and result files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/layer_plan.h"
#include "engine/request.h"

namespace tidal {

struct EvalMethod {
  std::string name;  // "full", "quest", "TD+L13", "TD full 0,1 select 2,5,6", "TD+L13 C16"
  AttentionMode mode = AttentionMode::kFull;
  LayerPlan plan;
  int32_t correction_interval = 0;  // generated tokens; 0 = never

  // Full attention has no budget: it is measured once.
  bool has_budget() const { return mode != AttentionMode::kFull; }
};

// Named as in the paper, by the last selection layer, where the plan is the paper's but for it.
std::string NameOfPlan(const LayerPlan& plan);

struct EvalMethodOptions {
  std::vector<std::string> methods = {"full", "tidal"};
  LayerPlan plan;  // of tidal, unless re-selection layers are named
  // Each is a plan of its own, with layers 0 and 1 full, and 2 selecting.
  std::vector<int32_t> reselection_layers = {};
  // Each is measured of every method but full; 0 = without correction.
  std::vector<int32_t> correction_intervals = {0};
};

// INVALID_ARGUMENT names a method that does not exist, or a layer that cannot re-select.
absl::StatusOr<std::vector<EvalMethod>> MakeEvalMethods(const EvalMethodOptions& options);

}  // namespace tidal
