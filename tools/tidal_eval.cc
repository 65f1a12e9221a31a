// tidal-eval: what sparse attention costs in accuracy, measured in process over the real engine.
//
//   tidal-eval needle     --model_path=models/needle --contexts=2000,10000 --out=build/needle
//   tidal-eval recall     --model_path=models/needle --contexts=10000 --token_budget=64
//   tidal-eval calibrate  --model_path=models/needle --contexts=10000 --token_budget=64
//   tidal-eval perplexity --model_path=DIRECTORY --text_file=book.txt --contexts=8192
//   tidal-eval prompt     --model_path=models/needle --contexts=2000
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/model_loader.h"
#include "tools/eval_flags.h"
#include "tools/eval_method.h"
#include "tools/flag_values.h"
#include "tools/needle_eval.h"
#include "tools/needle_report.h"
#include "tools/perplexity_eval.h"
#include "tools/plan_commands.h"
#include "tools/progress_bar.h"
#include "tools/result_log.h"

namespace tidal {
namespace {

// What all results of one directory share.
nlohmann::json SettingsOf(const ServingModel& model, const NeedleGrid& grid) {
  const char* const scopes[] = {"query_head", "kv_head", "layer"};
  return {{"measurement", "needle"},
          {"model", model.name},
          {"device", model.device == Device::kCuda ? "cuda" : "cpu"},
          {"seed", grid.seed},
          {"cases", grid.num_cases},
          {"depths", grid.depths},
          {"distractors", grid.num_distractors},
          {"haystack", absl::GetFlag(FLAGS_haystack)},
          {"selection_scope", scopes[static_cast<size_t>(grid.selection.scope)]},
          {"sink_tokens", grid.selection.num_sink_tokens},
          {"recent_tokens", grid.selection.num_recent_tokens}};
}

absl::Status RunNeedle() {
  TIDAL_ASSIGN_OR_RETURN(NeedleGrid grid, NeedleGridFromFlags());
  TIDAL_ASSIGN_OR_RETURN(const std::string out, OutDirectory());
  TIDAL_ASSIGN_OR_RETURN(
      ServingModel model,
      LoadEvalModel(MaxTokens(grid), std::max<size_t>(grid.token_budgets.size(), 1)));
  TIDAL_ASSIGN_OR_RETURN(grid.methods, MethodsFromFlags(model));
  TIDAL_ASSIGN_OR_RETURN(grid.selection,
                         SelectionFromFlags(model.config.shape, grid.token_budgets));
  const nlohmann::json settings = SettingsOf(model, grid);
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<ResultLog> log,
                         ResultLog::Open(out + "/results.jsonl", settings));
  std::cout << model.name << " on " << model.backend->description() << "\n\n" << std::flush;
  std::vector<NeedleResult> results;
  {
    ProgressBar bar(NumNeedleResults(grid), isatty(STDERR_FILENO) == 1, &std::cerr);
    TIDAL_ASSIGN_OR_RETURN(results, RunNeedleGrid(&model, grid, log.get(),
                                                  [&](int64_t num_done) { bar.Update(num_done); }));
  }
  PrintNeedleTables(results, &std::cout);
  const nlohmann::json summary = {{"settings", settings},
                                  {"device", model.backend->description()},
                                  {"results", NeedleSummary(results)}};
  TIDAL_RETURN_IF_ERROR(WriteTextFile(out + "/summary.json", summary.dump(1) + "\n"));
  TIDAL_RETURN_IF_ERROR(WriteTextFile(out + "/heatmap.svg", NeedleHeatMapSvg(results)));
  std::cout << "written: " << out << "/results.jsonl, summary.json, heatmap.svg\n";
  return absl::OkStatus();
}

absl::Status RunPrompt() {
  TIDAL_ASSIGN_OR_RETURN(const NeedleGrid grid, NeedleGridFromFlags());
  TIDAL_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                         LoadTokenizer(absl::GetFlag(FLAGS_model_path)));
  const TokenCounter count_tokens = CountTokensOf(tokenizer.get());
  for (const NeedleGrid::Prompt& prompt : PromptsOf(grid)) {
    const NeedlePrompt needle = MakeNeedlePrompt(prompt.options, count_tokens, grid.haystack);
    std::cout << nlohmann::json{{"prompt", needle.text}, {"answer", needle.answer}}.dump() << "\n";
  }
  return absl::OkStatus();
}

absl::Status RunPerplexity() {
  PerplexityOptions options;
  TIDAL_ASSIGN_OR_RETURN(options.contexts,
                         ParseIntegers("contexts", absl::GetFlag(FLAGS_contexts), 1, kMaxContext));
  TIDAL_ASSIGN_OR_RETURN(
      options.token_budgets,
      ParseIntegers("token_budgets", absl::GetFlag(FLAGS_token_budgets), 1, kMaxTokenBudget));
  options.num_tokens = absl::GetFlag(FLAGS_num_tokens);
  TIDAL_RETURN_IF_ERROR(CheckFlag("num_tokens", options.num_tokens, 1, 1 << 20));
  const int32_t num_needed =
      *std::max_element(options.contexts.begin(), options.contexts.end()) + options.num_tokens + 1;
  TIDAL_ASSIGN_OR_RETURN(ServingModel model, LoadEvalModel(num_needed, 1));
  TIDAL_ASSIGN_OR_RETURN(options.methods, MethodsFromFlags(model));
  for (const EvalMethod& method : options.methods) {
    if (method.correction_interval == 0) continue;
    return absl::InvalidArgumentError(
        "--correction_intervals: perplexity decodes without correction; leave it out");
  }
  TIDAL_ASSIGN_OR_RETURN(options.selection,
                         SelectionFromFlags(model.config.shape, options.token_budgets));
  const std::string path = absl::GetFlag(FLAGS_text_file);
  std::string text;
  if (path.empty()) {
    // A sentence more than is needed, since they do not end where the tokens do.
    constexpr int32_t kSpareTokens = 64;
    text = MakeNeedleText(num_needed + kSpareTokens, absl::GetFlag(FLAGS_seed),
                          CountTokensOf(model.tokenizer.get()));
  } else {
    TIDAL_ASSIGN_OR_RETURN(text, ReadTextFile("text_file", path));
  }
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> token_ids, model.tokenizer->Encode(text, {}));
  std::cout << model.name << " on " << model.backend->description() << "\n\n" << std::flush;
  int64_t num_results = 0;
  for (const EvalMethod& method : options.methods) {
    num_results += method.has_budget() ? static_cast<int64_t>(options.token_budgets.size()) : 1;
  }
  num_results *= static_cast<int64_t>(options.contexts.size());
  std::vector<PerplexityResult> results;
  {
    ProgressBar bar(num_results, isatty(STDERR_FILENO) == 1, &std::cerr);
    TIDAL_ASSIGN_OR_RETURN(results,
                           MeasurePerplexity(&model, token_ids, options,
                                             [&](int64_t num_done) { bar.Update(num_done); }));
  }
  PrintTable(results, &std::cout);
  if (absl::GetFlag(FLAGS_out).empty()) return absl::OkStatus();
  TIDAL_ASSIGN_OR_RETURN(const std::string out, OutDirectory());
  nlohmann::json json = nlohmann::json::array();
  for (const PerplexityResult& result : results) json.push_back(ToJson(result));
  return WriteTextFile(out + "/perplexity.json", json.dump(1) + "\n");
}

absl::Status Run(const std::string& command) {
  if (command == "needle") return RunNeedle();
  if (command == "recall") return RunRecall();
  if (command == "calibrate") return RunCalibrate();
  if (command == "perplexity") return RunPerplexity();
  if (command == "prompt") return RunPrompt();
  return absl::InvalidArgumentError(absl::StrCat(
      "command '", command, "' is not needle, recall, calibrate, perplexity or prompt"));
}

}  // namespace
}  // namespace tidal

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "tidal-eval needle|recall|calibrate|perplexity|prompt --model_path=DIRECTORY [flags]\n"
      "Measures what sparse attention costs in accuracy, in process over the real engine: facts "
      "found in\n"
      "long texts, the positions that layers agree on, and the perplexity of a text decoded token "
      "by token.\n"
      "`calibrate` writes the checkpoint's layer plan, `prompt` prints needle prompts as JSON.");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 2) {
    std::fprintf(stderr, "%s\n", std::string(absl::ProgramUsageMessage()).c_str());
    return 2;
  }
  const absl::Status status = tidal::Run(arguments[1]);
  if (status.ok()) return 0;
  std::fprintf(stderr, "tidal-eval: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}
