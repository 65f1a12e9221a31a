#include "tools/calibration.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

using PromptKey = std::tuple<std::string, int32_t, double, int32_t>;

PromptKey KeyOf(const NeedleResult& result) {
  return {result.task, result.num_context_tokens, result.depth, result.case_index};
}

std::string NameOf(const PlanCandidate& plan) {
  return absl::StrCat("full ", absl::StrJoin(plan.full_layers, ","), " select ",
                      absl::StrJoin(plan.selection_layers, ","));
}

class CalibrationRun {
 public:
  CalibrationRun(ServingModel* model, const CalibrationOptions& options)
      : model_(model), grid_(options.grid) {}

  absl::Status RunFull();
  // Tries plans of one size.
  absl::StatusOr<std::vector<TriedPlan>> Try(const std::vector<PlanCandidate>& plans);
  int32_t num_prompts() const { return num_prompts_; }
  int32_t num_found_by_full() const { return static_cast<int32_t>(found_by_full_.size()); }

 private:
  ServingModel* model_;
  NeedleGrid grid_;
  int32_t num_prompts_ = 0;
  std::set<PromptKey> found_by_full_;
};

absl::Status CalibrationRun::RunFull() {
  grid_.methods = {{"full", AttentionMode::kFull, model_->plan}};
  TIDAL_ASSIGN_OR_RETURN(const std::vector<NeedleResult> results,
                         RunNeedleGrid(model_, grid_, /*log=*/nullptr, [](int64_t) {}));
  num_prompts_ = static_cast<int32_t>(results.size());
  for (const NeedleResult& result : results) {
    if (result.found()) found_by_full_.insert(KeyOf(result));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TriedPlan>> CalibrationRun::Try(
    const std::vector<PlanCandidate>& plans) {
  grid_.methods.clear();
  std::map<std::string, TriedPlan> by_name;
  for (const PlanCandidate& plan : plans) {
    TIDAL_ASSIGN_OR_RETURN(LayerPlan layer_plan,
                           LayerPlan::Create(model_->config.shape.num_layers,
                                             {.full_layers = plan.full_layers,
                                              .selection_layers = plan.selection_layers}));
    grid_.methods.push_back({NameOf(plan), AttentionMode::kTidal, std::move(layer_plan)});
    by_name[NameOf(plan)].candidate = plan;
  }
  TIDAL_ASSIGN_OR_RETURN(const std::vector<NeedleResult> results,
                         RunNeedleGrid(model_, grid_, /*log=*/nullptr, [](int64_t) {}));
  for (const NeedleResult& result : results) {
    const bool counts = result.found() && found_by_full_.count(KeyOf(result)) > 0;
    if (counts) ++by_name[result.method].num_found;
  }
  std::vector<TriedPlan> tried;
  tried.reserve(plans.size());
  for (const PlanCandidate& plan : plans) tried.push_back(by_name[NameOf(plan)]);
  return tried;
}

}  // namespace

absl::StatusOr<std::vector<RecallPrompt>> MakeRecallPrompts(const ServingModel& model,
                                                            const NeedleGrid& grid) {
  std::vector<RecallPrompt> prompts;
  const TokenCounter count_tokens = CountTokensOf(model.tokenizer.get());
  for (const NeedleGrid::Prompt& prompt : PromptsOf(grid)) {
    const NeedlePrompt needle = MakeNeedlePrompt(prompt.options, count_tokens, grid.haystack);
    RecallPrompt& tokens = prompts.emplace_back();
    TIDAL_ASSIGN_OR_RETURN(tokens.prompt_token_ids, model.tokenizer->Encode(needle.text, {}));
    TIDAL_ASSIGN_OR_RETURN(tokens.answer_token_ids,
                           model.tokenizer->Encode(needle.answer, {.add_special_tokens = false}));
  }
  return prompts;
}

absl::StatusOr<Calibration> Calibrate(ServingModel* model, const RecallResult& recall,
                                      const CalibrationOptions& options,
                                      const std::function<void(const TriedPlan&)>& on_tried) {
  CalibrationRun run(model, options);
  TIDAL_RETURN_IF_ERROR(run.RunFull());
  Calibration calibration;
  calibration.num_prompts = run.num_prompts();
  calibration.num_found_by_full = run.num_found_by_full();
  if (calibration.num_found_by_full == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("full attention finds none of ", run.num_prompts(),
                     " needles: they cannot tell a good plan from a bad one"));
  }
  const std::vector<PlanCandidate> candidates =
      SearchPlans(recall, options.max_dense_layers, options.num_plans_of_each_size);
  for (auto begin = candidates.begin(); begin != candidates.end();) {
    const auto end = std::find_if(begin, candidates.end(), [&](const PlanCandidate& plan) {
      return plan.num_dense_layers() != begin->num_dense_layers();
    });
    TIDAL_ASSIGN_OR_RETURN(const std::vector<TriedPlan> tried, run.Try({begin, end}));
    for (const TriedPlan& plan : tried) {
      on_tried(plan);
      calibration.tried.push_back(plan);
    }
    const size_t first = calibration.tried.size() - tried.size();
    for (size_t i = first; i < calibration.tried.size(); ++i) {
      if (calibration.tried[i].num_found < calibration.num_found_by_full) continue;
      calibration.chosen = i;
      return calibration;
    }
    begin = end;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "each of ", calibration.tried.size(), " plans of at most ", options.max_dense_layers,
      " dense layers loses some of the ", calibration.num_found_by_full,
      " needles that full attention finds with a budget of ", options.grid.token_budgets.front()));
}

nlohmann::json LayerPlanFileOf(const Calibration& calibration, const CalibrationOptions& options) {
  const TriedPlan& chosen = calibration.tried[calibration.chosen];
  nlohmann::json tasks = nlohmann::json::array();
  for (const NeedleGrid::Task& task : options.grid.tasks) {
    tasks.push_back(NeedleTaskName(task.task));
  }
  return {{"full_layers", chosen.candidate.full_layers},
          {"selection_layers", chosen.candidate.selection_layers},
          {"calibration",
           {{"token_budget", options.grid.token_budgets.front()},
            {"tasks", std::move(tasks)},
            {"contexts", options.grid.contexts},
            {"seed", options.grid.seed},
            {"prompts", calibration.num_prompts},
            {"found_by_full_attention", calibration.num_found_by_full},
            {"found", chosen.num_found}}}};
}

}  // namespace tidal
