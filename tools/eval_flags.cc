#include "tools/eval_flags.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "tools/flag_values.h"

using Words = std::vector<std::string>;

ABSL_FLAG(std::string, model_path, "", "Checkpoint directory");
ABSL_FLAG(std::string, device, "auto", "auto, cpu or cuda");
ABSL_FLAG(int32_t, cpu_threads, 0, "Threads of the CPU backend; 0 = all cores");
ABSL_FLAG(double, gpu_memory_fraction, 0.0,
          "Share of the device's memory, as the server's flag; 0 = the device's default");
ABSL_FLAG(int32_t, max_batch_tokens, 0,
          "Tokens a step, the chunk size of prefill; 0 = the device's default");
ABSL_FLAG(Words, contexts, Words({"2000"}), "Tokens of the prompts, or before the decoded ones");
ABSL_FLAG(Words, methods, Words({"full", "tidal"}), "full, tidal, quest");
ABSL_FLAG(Words, token_budgets, Words({"32", "64", "128", "256", "512"}), "Token budgets");
ABSL_FLAG(Words, full_layers, {}, "Layers with full attention");
ABSL_FLAG(Words, selection_layers, {}, "Layers that select positions");
ABSL_FLAG(Words, reselection_layers, {},
          "Instead of one plan, one for each of these layers: 0 and 1 full, 2 and this selecting");
ABSL_FLAG(std::string, selection_scope, "auto", "auto, query_head, kv_head or layer");
ABSL_FLAG(Words, correction_intervals, Words({"0"}),
          "needle: generated tokens after which tidal and quest correct the KV cache; 0 = never");
ABSL_FLAG(int32_t, sink_tokens, 0, "First positions that a selection always keeps");
ABSL_FLAG(int32_t, recent_tokens, 0, "Last positions that a selection always keeps");
ABSL_FLAG(int32_t, token_budget, 64, "recall, calibrate: positions that a sparse layer attends");
ABSL_FLAG(int32_t, max_dense_layers, 0,
          "calibrate: most layers that may read the whole cache; 0 = all but one");
ABSL_FLAG(int32_t, plans_of_each_size, 8,
          "calibrate: plans that are tried for each number of such layers");
ABSL_FLAG(std::string, out, "", "Directory for results; what it holds already is not run again");

ABSL_FLAG(Words, tasks, Words({"single"}), "needle: single, several, chain, verse");
ABSL_FLAG(Words, depths, Words({"0", "0.25", "0.5", "0.75", "1"}),
          "needle: where the first fact lies, 0 = start of the text, 1 = its end");
ABSL_FLAG(int32_t, cases, 10, "needle: prompts for each task, context and depth");
ABSL_FLAG(uint32_t, seed, 5'000'000, "needle: of the first prompt; the others count on");
ABSL_FLAG(int32_t, num_needles, 2, "needle: facts asked at once in the task several");
ABSL_FLAG(int32_t, verse_words, 64, "needle: words of the task verse, 64 to 512");
ABSL_FLAG(int32_t, distractors, 0, "needle: facts of other keys in the text");
ABSL_FLAG(std::string, haystack, "",
          "needle: a text file whose sentences hide the facts; by default the embedded model's "
          "grammar");
ABSL_FLAG(std::string, text_file, "",
          "perplexity: the text; by default sentences of the embedded model's grammar");
ABSL_FLAG(int32_t, num_tokens, 256, "perplexity: tokens decoded and predicted");

namespace tidal {
namespace {

constexpr int32_t kMaxLayer = 10'000;

absl::StatusOr<std::optional<std::vector<int32_t>>> LayersFromFlag(const char* flag,
                                                                   const Words& words) {
  if (words.empty()) return std::optional<std::vector<int32_t>>();
  TIDAL_ASSIGN_OR_RETURN(std::vector<int32_t> layers, ParseIntegers(flag, words, 0, kMaxLayer));
  return std::make_optional(std::move(layers));
}

}  // namespace

absl::Status CheckFlag(const char* flag, int32_t value, int32_t min, int32_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, ": ", value, " is not in ", min, "..", max));
}

absl::StatusOr<std::string> ReadTextFile(const char* flag, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(absl::StrCat("--", flag, ": cannot read ", path));
  }
  return text;
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

absl::StatusOr<ServingModel> LoadEvalModel(int32_t max_tokens, size_t max_running_requests) {
  ModelLoadOptions options{.model_path = absl::GetFlag(FLAGS_model_path),
                           .cpu_threads = absl::GetFlag(FLAGS_cpu_threads),
                           .max_model_len = max_tokens,
                           .max_batch_tokens = absl::GetFlag(FLAGS_max_batch_tokens),
                           .max_running_requests = static_cast<int32_t>(max_running_requests),
                           .memory_fraction = absl::GetFlag(FLAGS_gpu_memory_fraction)};
  if (options.model_path.empty()) {
    return absl::InvalidArgumentError("--model_path: is missing: the checkpoint's directory");
  }
  options.on_warning = [](absl::string_view warning) { std::cerr << warning << "\n"; };
  TIDAL_ASSIGN_OR_RETURN(options.device, ParseChoice<Device>("device", absl::GetFlag(FLAGS_device),
                                                             {{"auto", Device::kAuto},
                                                              {"cpu", Device::kCpu},
                                                              {"cuda", Device::kCuda}}));
  if (options.max_batch_tokens != 0) {
    TIDAL_RETURN_IF_ERROR(
        CheckFlag("max_batch_tokens", options.max_batch_tokens, kBlockSize, 1 << 20));
  }
  TIDAL_ASSIGN_OR_RETURN(options.layer_plan.full_layers,
                         LayersFromFlag("full_layers", absl::GetFlag(FLAGS_full_layers)));
  TIDAL_ASSIGN_OR_RETURN(options.layer_plan.selection_layers,
                         LayersFromFlag("selection_layers", absl::GetFlag(FLAGS_selection_layers)));
  TIDAL_ASSIGN_OR_RETURN(ServingModel model, LoadServingModel(options));
  if (model.tokenizer == nullptr) {
    return absl::InvalidArgumentError("--model_path: the checkpoint has no tokenizer");
  }
  return model;
}

absl::StatusOr<std::vector<EvalMethod>> MethodsFromFlags(const ServingModel& model) {
  TIDAL_ASSIGN_OR_RETURN(
      const std::vector<int32_t> reselection_layers,
      ParseIntegers("reselection_layers", absl::GetFlag(FLAGS_reselection_layers), 3, kMaxLayer));
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> correction_intervals,
                         ParseIntegers("correction_intervals",
                                       absl::GetFlag(FLAGS_correction_intervals), 0, kMaxContext));
  return MakeEvalMethods({.methods = absl::GetFlag(FLAGS_methods),
                          .plan = model.plan,
                          .reselection_layers = reselection_layers,
                          .correction_intervals = correction_intervals});
}

absl::StatusOr<Selection> SelectionFromFlags(const ModelShape& shape,
                                             const std::vector<int32_t>& budgets) {
  Selection selection;
  TIDAL_ASSIGN_OR_RETURN(
      selection.scope,
      ParseChoice<SelectionScope>("selection_scope", absl::GetFlag(FLAGS_selection_scope),
                                  {{"auto", DefaultSelectionScope(shape)},
                                   {"query_head", SelectionScope::kQueryHead},
                                   {"kv_head", SelectionScope::kKvHead},
                                   {"layer", SelectionScope::kLayer}}));
  selection.num_sink_tokens = absl::GetFlag(FLAGS_sink_tokens);
  selection.num_recent_tokens = absl::GetFlag(FLAGS_recent_tokens);
  TIDAL_RETURN_IF_ERROR(CheckFlag("sink_tokens", selection.num_sink_tokens, 0, kMaxTokenBudget));
  TIDAL_RETURN_IF_ERROR(
      CheckFlag("recent_tokens", selection.num_recent_tokens, 0, kMaxTokenBudget));
  const int32_t num_kept = selection.num_sink_tokens + std::max(selection.num_recent_tokens, 1);
  for (const int32_t budget : budgets) {
    if (budget >= num_kept) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--token_budgets: ", budget, " is less than the ", num_kept,
        " positions that --sink_tokens and --recent_tokens (at least the current one) keep"));
  }
  return selection;
}

absl::StatusOr<NeedleGrid> NeedleGridFromFlags() {
  NeedleGrid grid;
  for (const std::string& name : absl::GetFlag(FLAGS_tasks)) {
    TIDAL_ASSIGN_OR_RETURN(const NeedleTask task, ParseNeedleTask(name));
    const int32_t size = task == NeedleTask::kSeveral ? absl::GetFlag(FLAGS_num_needles)
                         : task == NeedleTask::kVerse ? absl::GetFlag(FLAGS_verse_words)
                                                      : DefaultNeedleTaskSize(task);
    grid.tasks.push_back({task, size});
  }
  TIDAL_RETURN_IF_ERROR(CheckFlag("num_needles", absl::GetFlag(FLAGS_num_needles), 2, 64));
  TIDAL_RETURN_IF_ERROR(CheckFlag("verse_words", absl::GetFlag(FLAGS_verse_words), 64, 512));
  TIDAL_ASSIGN_OR_RETURN(grid.contexts,
                         ParseIntegers("contexts", absl::GetFlag(FLAGS_contexts), 1, kMaxContext));
  TIDAL_ASSIGN_OR_RETURN(grid.depths, ParseShares("depths", absl::GetFlag(FLAGS_depths)));
  TIDAL_ASSIGN_OR_RETURN(
      grid.token_budgets,
      ParseIntegers("token_budgets", absl::GetFlag(FLAGS_token_budgets), 1, kMaxTokenBudget));
  grid.num_cases = absl::GetFlag(FLAGS_cases);
  TIDAL_RETURN_IF_ERROR(CheckFlag("cases", grid.num_cases, 1, 1'000'000));
  grid.seed = absl::GetFlag(FLAGS_seed);
  grid.num_distractors = absl::GetFlag(FLAGS_distractors);
  TIDAL_RETURN_IF_ERROR(CheckFlag("distractors", grid.num_distractors, 0, 1000));
  const std::string path = absl::GetFlag(FLAGS_haystack);
  if (!path.empty()) {
    TIDAL_ASSIGN_OR_RETURN(const std::string text, ReadTextFile("haystack", path));
    grid.haystack = SplitIntoSentences(text);
    if (grid.haystack.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("--haystack: ", path, " has no sentences"));
    }
  }
  return grid;
}

absl::StatusOr<std::string> OutDirectory() {
  const std::string directory = absl::GetFlag(FLAGS_out);
  if (directory.empty()) {
    return absl::InvalidArgumentError("--out: is missing: the directory for results");
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error)
    return absl::UnavailableError(absl::StrCat("--out: ", directory, ": ", error.message()));
  return directory;
}

int32_t MaxTokens(const NeedleGrid& grid) {
  constexpr int32_t kTokensPerWord = 8;
  int32_t longest = *std::max_element(grid.contexts.begin(), grid.contexts.end());
  int32_t num_words = 16;
  for (const NeedleGrid::Task& task : grid.tasks) {
    num_words = std::max(num_words, 16 * task.size);
  }
  return longest + kTokensPerWord * num_words + grid.num_distractors * kTokensPerWord * 16;
}

}  // namespace tidal
