#include "tools/needle_eval.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/backend/status_macros.h"
#include "tools/eval_engine.h"

namespace tidal {
namespace {

// Tokens that an answer may have beyond the right ones: a full stop spelt otherwise, an end.
constexpr int32_t kSpareTokens = 3;

// What names a result; depths as whole millionths, so that they compare.
using ResultKey = std::tuple<std::string, int32_t, int32_t, int64_t, int32_t, std::string, int32_t>;

ResultKey KeyOf(const NeedleResult& result) {
  return {result.task,
          result.task_size,
          result.num_context_tokens,
          std::llround(result.depth * 1e6),
          result.case_index,
          result.method,
          result.token_budget};
}

std::vector<int32_t> BudgetsOf(const NeedleGrid& grid, const EvalMethod& method) {
  return method.has_budget() ? grid.token_budgets : std::vector<int32_t>{0};
}

std::string_view AsStd(absl::string_view text) { return {text.data(), text.size()}; }

class NeedleRun {
 public:
  NeedleRun(ServingModel* model, const NeedleGrid& grid, ResultLog* log)
      : model_(model),
        grid_(grid),
        log_(log),
        count_tokens_(CountTokensOf(model->tokenizer.get())),
        engine_(model, static_cast<int32_t>(std::max<size_t>(grid.token_budgets.size(), 1))) {}

  absl::Status ReadLog();
  // All results of one prompt.
  absl::Status RunPrompt(const NeedleGrid::Prompt& prompt);
  std::vector<NeedleResult> TakeResults() { return std::move(results_); }
  int64_t num_results() const { return static_cast<int64_t>(results_.size()); }

 private:
  absl::Status RunMethod(const EvalMethod& method, const NeedlePrompt& needle,
                         const std::vector<int32_t>& prompt_token_ids,
                         const std::vector<NeedleResult>& wanted);
  // The results of a method that the log does not have; the others count as done.
  std::vector<NeedleResult> TakeMissing(const EvalMethod& method, NeedleResult prompt);

  ServingModel* model_;
  const NeedleGrid& grid_;
  ResultLog* log_;
  TokenCounter count_tokens_;
  EvalEngine engine_;
  std::map<ResultKey, NeedleResult> known_;
  std::vector<NeedleResult> results_;
};

absl::Status NeedleRun::ReadLog() {
  if (log_ == nullptr) return absl::OkStatus();
  for (const nlohmann::json& json : log_->results()) {
    TIDAL_ASSIGN_OR_RETURN(NeedleResult result, NeedleResultFromJson(json));
    ResultKey key = KeyOf(result);
    known_.insert_or_assign(std::move(key), std::move(result));
  }
  return absl::OkStatus();
}

std::vector<NeedleResult> NeedleRun::TakeMissing(const EvalMethod& method, NeedleResult prompt) {
  std::vector<NeedleResult> missing;
  prompt.method = method.name;
  for (const int32_t budget : BudgetsOf(grid_, method)) {
    prompt.token_budget = budget;
    const auto it = known_.find(KeyOf(prompt));
    it == known_.end() ? missing.push_back(prompt) : results_.push_back(it->second);
  }
  return missing;
}

absl::Status NeedleRun::RunPrompt(const NeedleGrid::Prompt& prompt) {
  NeedleResult result;
  result.task = std::string(NeedleTaskName(prompt.options.task));
  result.task_size = prompt.options.size;
  result.num_context_tokens = prompt.options.num_tokens;
  result.depth = prompt.options.depth;
  result.case_index = prompt.case_index;
  std::vector<std::pair<const EvalMethod*, std::vector<NeedleResult>>> missing;
  for (const EvalMethod& method : grid_.methods) {
    std::vector<NeedleResult> results = TakeMissing(method, result);
    if (!results.empty()) missing.emplace_back(&method, std::move(results));
  }
  if (missing.empty()) return absl::OkStatus();
  const NeedlePrompt needle = MakeNeedlePrompt(prompt.options, count_tokens_, grid_.haystack);
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> prompt_token_ids,
                         model_->tokenizer->Encode(needle.text, {}));
  for (const auto& [method, results] : missing) {
    TIDAL_RETURN_IF_ERROR(RunMethod(*method, needle, prompt_token_ids, results));
  }
  return absl::OkStatus();
}

absl::Status NeedleRun::RunMethod(const EvalMethod& method, const NeedlePrompt& needle,
                                  const std::vector<int32_t>& prompt_token_ids,
                                  const std::vector<NeedleResult>& wanted) {
  std::vector<EvalRequest> requests;
  for (const NeedleResult& result : wanted) {
    EvalRequest request = {.prompt_token_ids = prompt_token_ids,
                           .attention = {.mode = method.mode,
                                         .selection = grid_.selection,
                                         .correction_interval = method.correction_interval},
                           .max_new_tokens = count_tokens_(needle.answer) + kSpareTokens};
    request.attention.selection.token_budget = result.token_budget;
    requests.push_back(std::move(request));
  }
  TIDAL_ASSIGN_OR_RETURN(const std::vector<EvalOutput> outputs,
                         engine_.Generate(method.plan, requests));
  for (size_t i = 0; i < wanted.size(); ++i) {
    NeedleResult result = wanted[i];
    const AnswerScore score = ScoreAnswer(needle.answer, outputs[i].text);
    result.num_prompt_tokens = static_cast<int32_t>(prompt_token_ids.size());
    result.num_words = score.num_words;
    result.num_correct_words = score.num_correct_words;
    result.output = outputs[i].text;
    if (log_ != nullptr) TIDAL_RETURN_IF_ERROR(log_->Append(ToJson(result)));
    results_.push_back(std::move(result));
  }
  return absl::OkStatus();
}

std::vector<std::string> WordsOf(absl::string_view text) {
  return absl::StrSplit(text, absl::ByAnyChar(" \t\r\n.,:;?!"), absl::SkipEmpty());
}

}  // namespace

nlohmann::json ToJson(const NeedleResult& result) {
  return {{"task", result.task},
          {"size", result.task_size},
          {"context", result.num_context_tokens},
          {"depth", result.depth},
          {"case", result.case_index},
          {"method", result.method},
          {"token_budget", result.token_budget},
          {"prompt_tokens", result.num_prompt_tokens},
          {"words", result.num_words},
          {"correct_words", result.num_correct_words},
          {"output", result.output}};
}

absl::StatusOr<NeedleResult> NeedleResultFromJson(const nlohmann::json& json) {
  try {
    return NeedleResult{.task = json.at("task"),
                        .task_size = json.at("size"),
                        .num_context_tokens = json.at("context"),
                        .depth = json.at("depth"),
                        .case_index = json.at("case"),
                        .method = json.at("method"),
                        .token_budget = json.at("token_budget"),
                        .num_prompt_tokens = json.at("prompt_tokens"),
                        .num_words = json.at("words"),
                        .num_correct_words = json.at("correct_words"),
                        .output = json.at("output")};
  } catch (const nlohmann::json::exception& exception) {
    return absl::InvalidArgumentError(
        absl::StrCat("no result of a needle: ", exception.what(), ": ", json.dump()));
  }
}

AnswerScore ScoreAnswer(absl::string_view answer, absl::string_view output) {
  const std::vector<std::string> expected = WordsOf(answer);
  const std::vector<std::string> actual = WordsOf(output);
  const size_t size = std::min(expected.size(), actual.size());
  const auto end = std::mismatch(expected.begin(), expected.begin() + static_cast<int64_t>(size),
                                 actual.begin());
  return {.num_words = static_cast<int32_t>(expected.size()),
          .num_correct_words = static_cast<int32_t>(end.first - expected.begin())};
}

TokenCounter CountTokensOf(const Tokenizer* tokenizer) {
  return [tokenizer](absl::string_view text) {
    const auto token_ids = tokenizer->Encode(AsStd(text), {.add_special_tokens = false});
    // What is not UTF-8 is refused as part of the prompt.
    return token_ids.ok() ? static_cast<int32_t>(token_ids->size()) : 0;
  };
}

std::vector<NeedleGrid::Prompt> PromptsOf(const NeedleGrid& grid) {
  std::vector<NeedleGrid::Prompt> prompts;
  for (const NeedleGrid::Task& task : grid.tasks) {
    for (const int32_t context : grid.contexts) {
      // Depths have prompts of their own, so that a lucky one does not count more than once.
      uint32_t seed = grid.seed;
      for (const double depth : grid.depths) {
        for (int32_t index = 0; index < grid.num_cases; ++index) {
          prompts.push_back({.options = {.task = task.task,
                                         .size = task.size,
                                         .num_tokens = context,
                                         .depth = depth,
                                         .seed = seed++,
                                         .num_distractors = grid.num_distractors},
                             .case_index = index});
        }
      }
    }
  }
  return prompts;
}

int64_t NumNeedleResults(const NeedleGrid& grid) {
  size_t num_results_of_prompt = 0;
  for (const EvalMethod& method : grid.methods) {
    num_results_of_prompt += BudgetsOf(grid, method).size();
  }
  return static_cast<int64_t>(PromptsOf(grid).size() * num_results_of_prompt);
}

absl::StatusOr<std::vector<NeedleResult>> RunNeedleGrid(
    ServingModel* model, const NeedleGrid& grid, ResultLog* log,
    const std::function<void(int64_t num_done)>& on_progress) {
  NeedleRun run(model, grid, log);
  TIDAL_RETURN_IF_ERROR(run.ReadLog());
  for (const NeedleGrid::Prompt& prompt : PromptsOf(grid)) {
    TIDAL_RETURN_IF_ERROR(run.RunPrompt(prompt));
    on_progress(run.num_results());
  }
  return run.TakeResults();
}

}  // namespace tidal
