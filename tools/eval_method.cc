#include "tools/eval_method.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

// The layers that the paper's plans have in common.
const std::vector<int32_t>& PaperFullLayers() {
  static const std::vector<int32_t> layers = {0, 1};
  return layers;
}
constexpr int32_t kPaperSelectionLayer = 2;

// The method with each correction interval.
void AddCorrected(const EvalMethod& method, const EvalMethodOptions& options,
                  std::vector<EvalMethod>* methods) {
  for (const int32_t interval : options.correction_intervals) {
    EvalMethod& corrected = methods->emplace_back(method);
    corrected.correction_interval = interval;
    if (interval > 0) absl::StrAppend(&corrected.name, " C", interval);
  }
}

absl::Status AddTidalMethods(const EvalMethodOptions& options, std::vector<EvalMethod>* methods) {
  if (options.reselection_layers.empty()) {
    if (!options.plan.has_sparse_layers()) {
      return absl::InvalidArgumentError(
          absl::StrCat("methods: tidal is full attention here: no layer of the plan is sparse (",
                       options.plan.num_layers(), " layers)"));
    }
    AddCorrected({NameOfPlan(options.plan), AttentionMode::kTidal, options.plan}, options, methods);
    return absl::OkStatus();
  }
  for (const int32_t layer : options.reselection_layers) {
    TIDAL_ASSIGN_OR_RETURN(
        LayerPlan plan,
        LayerPlan::Create(options.plan.num_layers(),
                          {.full_layers = PaperFullLayers(),
                           .selection_layers = std::vector<int32_t>{kPaperSelectionLayer, layer}}));
    AddCorrected({NameOfPlan(plan), AttentionMode::kTidal, plan}, options, methods);
  }
  return absl::OkStatus();
}

}  // namespace

std::string NameOfPlan(const LayerPlan& plan) {
  const std::vector<int32_t> full = plan.LayersWithRole(LayerRole::kFull);
  const std::vector<int32_t> selecting = plan.LayersWithRole(LayerRole::kSelect);
  if (full == PaperFullLayers() && selecting.size() == 2 &&
      selecting.front() == kPaperSelectionLayer) {
    return absl::StrCat("TD+L", selecting.back());
  }
  return absl::StrCat("TD full ", absl::StrJoin(full, ","), " select ",
                      absl::StrJoin(selecting, ","));
}

absl::StatusOr<std::vector<EvalMethod>> MakeEvalMethods(const EvalMethodOptions& options) {
  std::vector<EvalMethod> methods;
  for (const std::string& name : options.methods) {
    if (name == "full") {
      methods.push_back({name, AttentionMode::kFull, options.plan});
    } else if (name == "tidal") {
      TIDAL_RETURN_IF_ERROR(AddTidalMethods(options, &methods));
    } else if (name == "quest") {
      AddCorrected({name, AttentionMode::kQuest, options.plan}, options, &methods);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("methods: '", name, "' is not full, tidal or quest"));
    }
  }
  return methods;
}

}  // namespace tidal
