// tidal-bench: times decode and prefill steps in process.
//
//   tidal-bench decode  --model_path=models/needle --contexts=2048,8192 --streams=1,8
//   tidal-bench prefill --model_path=models/needle --contexts=8192
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/backend/status_macros.h"
#include "engine/model_loader.h"
#include "tools/bench_report.h"
#include "tools/step_bench.h"

ABSL_FLAG(std::string, model_path, "", "Checkpoint directory");
ABSL_FLAG(std::string, load_format, "auto", "auto, or dummy for random weights");
ABSL_FLAG(int32_t, cpu_threads, 0, "Threads of the CPU backend; 0 = all cores");
ABSL_FLAG(std::vector<std::string>, contexts, std::vector<std::string>({"2048", "8192", "32768"}),
          "Context lengths (decode) or prompt lengths (prefill), tokens");
ABSL_FLAG(std::vector<std::string>, streams, std::vector<std::string>({"1", "8"}),
          "Numbers of streams that decode together");
ABSL_FLAG(std::vector<std::string>, methods, std::vector<std::string>({"full", "tidal"}),
          "Attention: full, tidal");
ABSL_FLAG(std::vector<std::string>, token_budgets, std::vector<std::string>({"256"}),
          "Token budgets of tidal");
ABSL_FLAG(std::vector<std::string>, full_layers, {}, "Layers with full attention");
ABSL_FLAG(std::vector<std::string>, selection_layers, {}, "Layers that select positions");
ABSL_FLAG(int32_t, max_batch_tokens, 512, "Tokens a step; the chunk size of prefill");
ABSL_FLAG(int32_t, warmup, 8, "Decode steps that do not count");
ABSL_FLAG(int32_t, steps, 64, "Decode steps that count");
ABSL_FLAG(int32_t, runs, 5, "Prefills that count");
ABSL_FLAG(std::string, json, "", "Also write the results to this file");

namespace tidal {
namespace {

absl::StatusOr<std::vector<int32_t>> ParseIntegers(const std::string& flag,
                                                   const std::vector<std::string>& words,
                                                   int32_t min, int32_t max) {
  std::vector<int32_t> values;
  for (const std::string& word : words) {
    int32_t value = 0;
    if (!absl::SimpleAtoi(word, &value) || value < min || value > max) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", word, "' is not a number in ", min, "..", max));
    }
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<ModelLoadOptions> LoadOptionsFromFlags(int32_t max_streams) {
  ModelLoadOptions options{.model_path = absl::GetFlag(FLAGS_model_path),
                           .cpu_threads = absl::GetFlag(FLAGS_cpu_threads),
                           .max_batch_tokens = absl::GetFlag(FLAGS_max_batch_tokens),
                           .max_running_requests = max_streams,
                           .memory_fraction = 0.8};
  if (options.model_path.empty()) return absl::InvalidArgumentError("--model_path is missing");
  if (options.max_batch_tokens < kBlockSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max_batch_tokens: ", options.max_batch_tokens, " is below ", kBlockSize));
  }
  const std::string load_format = absl::GetFlag(FLAGS_load_format);
  if (load_format == "dummy") {
    options.load_format = LoadFormat::kDummy;
  } else if (load_format != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("--load_format: '", load_format, "' is not auto or dummy"));
  }
  constexpr int32_t kMaxLayer = 10'000;
  const auto full_layers = absl::GetFlag(FLAGS_full_layers);
  const auto selection_layers = absl::GetFlag(FLAGS_selection_layers);
  if (!full_layers.empty()) {
    TIDAL_ASSIGN_OR_RETURN(options.layer_plan.full_layers,
                           ParseIntegers("full_layers", full_layers, 0, kMaxLayer));
  }
  if (!selection_layers.empty()) {
    TIDAL_ASSIGN_OR_RETURN(options.layer_plan.selection_layers,
                           ParseIntegers("selection_layers", selection_layers, 0, kMaxLayer));
  }
  return options;
}

absl::StatusOr<std::vector<DecodeCase>> DecodeCasesFromFlags(const ModelShape& shape,
                                                             const std::vector<int32_t>& streams,
                                                             const std::vector<int32_t>& contexts) {
  TIDAL_ASSIGN_OR_RETURN(
      const std::vector<int32_t> budgets,
      ParseIntegers("token_budgets", absl::GetFlag(FLAGS_token_budgets), 1, kMaxTokenBudget));
  const std::vector<std::string> methods = absl::GetFlag(FLAGS_methods);
  std::vector<DecodeCase> cases;
  for (const int32_t context : contexts) {
    for (const int32_t num_streams : streams) {
      for (const std::string& method : methods) {
        if (method == "full") {
          cases.push_back({.num_streams = num_streams, .num_context_tokens = context});
        } else if (method == "tidal") {
          for (const int32_t budget : budgets) {
            cases.push_back(
                {.num_streams = num_streams,
                 .num_context_tokens = context,
                 .mode = AttentionMode::kTidal,
                 .selection = {.scope = DefaultSelectionScope(shape), .token_budget = budget}});
          }
        } else {
          return absl::InvalidArgumentError(
              absl::StrCat("--methods: '", method, "' is not full or tidal"));
        }
      }
    }
  }
  return cases;
}

absl::Status WriteJson(nlohmann::json results, const std::string& command,
                       const ServingModel& model) {
  const std::string path = absl::GetFlag(FLAGS_json);
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << nlohmann::json{{"command", command},
                         {"model", model.name},
                         {"device", model.backend->description()},
                         {"results", std::move(results)}}
              .dump(1)
       << "\n";
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("--json: cannot write ", path));
  return absl::OkStatus();
}

absl::Status RunDecode(ServingModel* model, const std::vector<int32_t>& streams,
                       const std::vector<int32_t>& contexts) {
  TIDAL_ASSIGN_OR_RETURN(const std::vector<DecodeCase> cases,
                         DecodeCasesFromFlags(model->config.shape, streams, contexts));
  StepBench bench(model);
  std::vector<DecodeResult> results;
  nlohmann::json json = nlohmann::json::array();
  for (const DecodeCase& decode_case : cases) {
    TIDAL_ASSIGN_OR_RETURN(
        const DecodeResult result,
        bench.Decode(decode_case, absl::GetFlag(FLAGS_warmup), absl::GetFlag(FLAGS_steps)));
    results.push_back(result);
    json.push_back(ToJson(result));
  }
  PrintTable(results, &std::cout);
  return WriteJson(std::move(json), "decode", *model);
}

absl::Status RunPrefill(ServingModel* model, const std::vector<int32_t>& contexts) {
  StepBench bench(model);
  std::vector<PrefillResult> results;
  nlohmann::json json = nlohmann::json::array();
  for (const int32_t context : contexts) {
    TIDAL_ASSIGN_OR_RETURN(const PrefillResult result,
                           bench.Prefill(context, absl::GetFlag(FLAGS_runs)));
    results.push_back(result);
    json.push_back(ToJson(result));
  }
  PrintTable(results, &std::cout);
  return WriteJson(std::move(json), "prefill", *model);
}

absl::Status Run(const std::string& command) {
  if (command != "decode" && command != "prefill") {
    return absl::InvalidArgumentError(
        absl::StrCat("command '", command, "' is not decode or prefill"));
  }
  if (absl::GetFlag(FLAGS_steps) < 1 || absl::GetFlag(FLAGS_runs) < 1 ||
      absl::GetFlag(FLAGS_warmup) < 0) {
    return absl::InvalidArgumentError("--steps and --runs are at least 1, --warmup at least 0");
  }
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> streams,
                         ParseIntegers("streams", absl::GetFlag(FLAGS_streams), 1, 4096));
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> contexts,
                         ParseIntegers("contexts", absl::GetFlag(FLAGS_contexts), 1, 1 << 24));
  const int32_t max_streams =
      command == "decode" ? *std::max_element(streams.begin(), streams.end()) : 1;
  TIDAL_ASSIGN_OR_RETURN(ModelLoadOptions options, LoadOptionsFromFlags(max_streams));
  options.on_warning = [](absl::string_view warning) { std::cerr << warning << "\n"; };
  TIDAL_ASSIGN_OR_RETURN(ServingModel model, LoadServingModel(options));
  std::cout << model.name << " on " << model.backend->description() << "\n";
  return command == "decode" ? RunDecode(&model, streams, contexts) : RunPrefill(&model, contexts);
}

}  // namespace
}  // namespace tidal

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "tidal-bench decode|prefill --model_path=DIRECTORY [flags]\n"
      "Times the engine's steps in process: successive greedy decodes of several streams at given\n"
      "contexts, or the prefill of a prompt in chunks.");
  const std::vector<char*> arguments = absl::ParseCommandLine(argc, argv);
  if (arguments.size() != 2) {
    std::fprintf(stderr, "%s\n", std::string(absl::ProgramUsageMessage()).c_str());
    return 2;
  }
  const absl::Status status = tidal::Run(arguments[1]);
  if (status.ok()) return 0;
  std::fprintf(stderr, "tidal-bench: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}
