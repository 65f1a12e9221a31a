// Finds the layer plan for a checkpoint: the one with the fewest layers that read the whole cache
// which still finds every needle that full attention finds.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/needle_eval.h"
#include "tools/plan_search.h"
#include "tools/recall_eval.h"

namespace tidal {

struct CalibrationOptions {
  // Its methods are replaced; its one token budget is what the plan is for.
  NeedleGrid grid;
  int32_t max_dense_layers = 0;       // at least 1
  size_t num_plans_of_each_size = 8;  // that are tried for each number of dense layers
};

// A plan that was tried.
struct TriedPlan {
  PlanCandidate candidate;
  int32_t num_found = 0;  // of the needles that full attention finds
};

struct Calibration {
  int32_t num_prompts = 0;
  int32_t num_found_by_full = 0;
  std::vector<TriedPlan> tried;  // in the order tried; the last size is the chosen one's
  size_t chosen = 0;  // of `tried`: one that lost nothing, of these the least recall loss
};

// Every prompt of the grid, and the tokens of its answer.
absl::StatusOr<std::vector<RecallPrompt>> MakeRecallPrompts(const ServingModel& model,
                                                            const NeedleGrid& grid);

// Tries the plans that recall suggests, those with the fewest dense layers first. `on_tried` hears
// of each. FAILED_PRECONDITION where all lose something, or full attention finds nothing, with the
// numbers.
absl::StatusOr<Calibration> Calibrate(ServingModel* model, const RecallResult& recall,
                                      const CalibrationOptions& options,
                                      const std::function<void(const TriedPlan&)>& on_tried);

// What tidal.json says of the chosen plan.
nlohmann::json LayerPlanFileOf(const Calibration& calibration, const CalibrationOptions& options);

}  // namespace tidal
