// Needle in a haystack, over the real engine: whether greedy decoding finds facts hidden in a text,
// by task, context, depth, method and token budget. A prompt is the same for all methods and
// budgets, and computed once.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model_loader.h"
#include "tools/eval_method.h"
#include "tools/needle_grammar.h"
#include "tools/result_log.h"

namespace tidal {

struct NeedleGrid {
  struct Task {
    NeedleTask task = NeedleTask::kSingle;
    int32_t size = 1;
  };
  // One of the grid's prompts: what it is made of, and its number among those alike.
  struct Prompt {
    NeedlePromptOptions options;
    int32_t case_index = 0;
  };

  std::vector<Task> tasks;
  std::vector<int32_t> contexts;  // tokens of the prompt, at most
  std::vector<double> depths;
  std::vector<int32_t> token_budgets;
  std::vector<EvalMethod> methods;
  int32_t num_cases = 1;  // prompts of each task, context and depth
  uint32_t seed = 0;      // of the first case; the others count on
  int32_t num_distractors = 0;
  Selection selection;                     // but for the budget
  std::vector<std::string> haystack = {};  // sentences; empty for the grammar's
};

// One prompt, answered by one method with one budget.
struct NeedleResult {
  std::string task;
  int32_t task_size = 1;
  int32_t num_context_tokens = 0;  // as asked for
  double depth = 0;
  int32_t case_index = 0;
  std::string method;
  int32_t token_budget = 0;  // 0 where the method has none
  int32_t num_prompt_tokens = 0;
  int32_t num_words = 0;          // of the right answer
  int32_t num_correct_words = 0;  // from its beginning on
  std::string output;

  bool found() const { return num_correct_words == num_words; }
};

nlohmann::json ToJson(const NeedleResult& result);
// INVALID_ARGUMENT where a field is missing or of a wrong type.
absl::StatusOr<NeedleResult> NeedleResultFromJson(const nlohmann::json& json);

// The words of the answer that `output` begins with, and those it has; punctuation marks and the
// number of blanks do not matter.
struct AnswerScore {
  int32_t num_words = 0;
  int32_t num_correct_words = 0;
};
AnswerScore ScoreAnswer(absl::string_view answer, absl::string_view output);

// Counts tokens inside of a text; `tokenizer` must outlive it.
TokenCounter CountTokensOf(const Tokenizer* tokenizer);

// The grid's prompts, by task, context, depth and case.
std::vector<NeedleGrid::Prompt> PromptsOf(const NeedleGrid& grid);

// How many results the grid has.
int64_t NumNeedleResults(const NeedleGrid& grid);

// Measures what `log` (which may be null) does not hold yet, and appends it; `on_progress` hears
// how many results there are after each prompt. The grid's results, those found in the log
// included.
absl::StatusOr<std::vector<NeedleResult>> RunNeedleGrid(
    ServingModel* model, const NeedleGrid& grid, ResultLog* log,
    const std::function<void(int64_t num_done)>& on_progress);

}  // namespace tidal
