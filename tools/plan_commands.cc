#include "tools/plan_commands.h"

#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"
#include "engine/layer_plan_file.h"
#include "tools/calibration.h"
#include "tools/eval_flags.h"
#include "tools/progress_bar.h"
#include "tools/recall_eval.h"

namespace tidal {
namespace {

// What both commands begin with.
struct PlanMeasurement {
  ServingModel model;
  NeedleGrid grid;  // with the one budget
  RecallResult recall;
};

absl::StatusOr<PlanMeasurement> Measure() {
  TIDAL_ASSIGN_OR_RETURN(NeedleGrid grid, NeedleGridFromFlags());
  const int32_t budget = absl::GetFlag(FLAGS_token_budget);
  TIDAL_RETURN_IF_ERROR(CheckFlag("token_budget", budget, 1, kMaxTokenBudget));
  grid.token_budgets = {budget};
  TIDAL_ASSIGN_OR_RETURN(ServingModel model,
                         LoadEvalModel(MaxTokens(grid), /*max_running_requests=*/1));
  TIDAL_ASSIGN_OR_RETURN(grid.selection,
                         SelectionFromFlags(model.config.shape, grid.token_budgets));
  std::cout << model.name << " on " << model.backend->description() << "\n\n" << std::flush;
  TIDAL_ASSIGN_OR_RETURN(const std::vector<RecallPrompt> prompts, MakeRecallPrompts(model, grid));
  Selection selection = grid.selection;
  selection.token_budget = budget;
  ProgressBar bar(static_cast<int64_t>(prompts.size()), isatty(STDERR_FILENO) == 1, &std::cerr);
  TIDAL_ASSIGN_OR_RETURN(
      RecallResult recall,
      MeasureRecall(&model, prompts, selection, [&](int64_t num_done) { bar.Update(num_done); }));
  return PlanMeasurement{std::move(model), std::move(grid), std::move(recall)};
}

absl::Status ReportRecall(const RecallResult& recall) {
  PrintRecallTables(recall, &std::cout);
  std::cout << std::flush;
  if (absl::GetFlag(FLAGS_out).empty()) return absl::OkStatus();
  TIDAL_ASSIGN_OR_RETURN(const std::string out, OutDirectory());
  TIDAL_RETURN_IF_ERROR(WriteTextFile(out + "/recall.json", ToJson(recall).dump(1) + "\n"));
  TIDAL_RETURN_IF_ERROR(WriteTextFile(out + "/recall.svg", RecallPlotSvg(recall)));
  std::cout << "written: " << out << "/recall.json, recall.svg\n\n";
  return absl::OkStatus();
}

}  // namespace

absl::Status RunRecall() {
  TIDAL_ASSIGN_OR_RETURN(const PlanMeasurement measurement, Measure());
  return ReportRecall(measurement.recall);
}

absl::Status RunCalibrate() {
  CalibrationOptions options;
  options.max_dense_layers = absl::GetFlag(FLAGS_max_dense_layers);
  TIDAL_RETURN_IF_ERROR(CheckFlag("max_dense_layers", options.max_dense_layers, 0, 10'000));
  const int32_t num_plans = absl::GetFlag(FLAGS_plans_of_each_size);
  TIDAL_RETURN_IF_ERROR(CheckFlag("plans_of_each_size", num_plans, 1, 1000));
  options.num_plans_of_each_size = static_cast<size_t>(num_plans);
  TIDAL_ASSIGN_OR_RETURN(PlanMeasurement measurement, Measure());
  TIDAL_RETURN_IF_ERROR(ReportRecall(measurement.recall));
  options.grid = measurement.grid;
  if (options.max_dense_layers == 0) {
    options.max_dense_layers = measurement.recall.num_layers() - 1;
  }
  std::cout << "needles found, and what layers lose by the selections of others, summed:\n";
  TIDAL_ASSIGN_OR_RETURN(
      const Calibration calibration,
      Calibrate(&measurement.model, measurement.recall, options, [](const TriedPlan& tried) {
        std::cout << absl::StreamFormat("%6d  loss %.4f  full %s, selection %s\n", tried.num_found,
                                        tried.candidate.loss,
                                        absl::StrJoin(tried.candidate.full_layers, ","),
                                        absl::StrJoin(tried.candidate.selection_layers, ","))
                  << std::flush;
      }));
  const PlanCandidate& chosen = calibration.tried[calibration.chosen].candidate;
  const std::string path = absl::StrCat(absl::GetFlag(FLAGS_model_path), "/", kLayerPlanFileName);
  TIDAL_RETURN_IF_ERROR(WriteTextFile(path, LayerPlanFileOf(calibration, options).dump(1) + "\n"));
  std::cout << absl::StreamFormat(
      "full attention finds %d of %d; with a budget of %d nothing is lost with\n"
      "  --full_layers=%s --selection_layers=%s\nwritten: %s\n",
      calibration.num_found_by_full, calibration.num_prompts, options.grid.token_budgets.front(),
      absl::StrJoin(chosen.full_layers, ","), absl::StrJoin(chosen.selection_layers, ","), path);
  return absl::OkStatus();
}

}  // namespace tidal
