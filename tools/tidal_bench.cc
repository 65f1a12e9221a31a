// tidal-bench: times the engine's steps, or attention alone, in process.
//
//   tidal-bench decode    --model_path=models/needle --contexts=2048,8192 --streams=1,8
//   tidal-bench prefill   --shape=llama-2-7b --contexts=32768
//   tidal-bench attention --shape=llama-3-8b --kinds=full,select,sparse --contexts=102400
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/backend/status_macros.h"
#include "engine/model_loader.h"
#include "tools/attention_bench.h"
#include "tools/bench_report.h"
#include "tools/flag_values.h"
#include "tools/model_shapes.h"
#include "tools/step_bench.h"

using Words = std::vector<std::string>;

ABSL_FLAG(std::string, model_path, "", "Checkpoint directory");
ABSL_FLAG(std::string, shape, "",
          "Instead of a checkpoint: random weights of this shape, llama-2-7b, llama-3-8b or the "
          "path of a config.json");
ABSL_FLAG(std::string, load_format, "auto", "auto, or dummy for random weights");
ABSL_FLAG(std::string, device, "auto", "auto, cpu or cuda");
ABSL_FLAG(int32_t, cpu_threads, 0, "Threads of the CPU backend; 0 = all cores");
ABSL_FLAG(double, gpu_memory_fraction, 0.0,
          "Share of the device's memory, as the server's flag; 0 = the device's default");
ABSL_FLAG(Words, contexts, Words({"2048", "8192", "32768"}),
          "Context lengths (decode, attention) or prompt lengths (prefill), tokens");
ABSL_FLAG(Words, streams, Words({"1", "8"}), "Numbers of streams that decode together");
ABSL_FLAG(Words, methods, Words({"full", "tidal"}), "decode: full, tidal, projections");
ABSL_FLAG(Words, kinds, Words({"full", "select", "sparse", "prefill"}),
          "attention: full, select, sparse, prefill");
ABSL_FLAG(Words, token_budgets, Words({"256"}), "Token budgets of tidal, select and sparse");
ABSL_FLAG(Words, full_layers, {}, "Layers with full attention");
ABSL_FLAG(Words, selection_layers, {}, "Layers that select positions");
ABSL_FLAG(int32_t, max_batch_tokens, 0,
          "Tokens a step, the chunk size of prefill; 0 = the device's default");
ABSL_FLAG(int32_t, warmup, 8, "Decode steps that do not count");
ABSL_FLAG(int32_t, steps, 64, "Decode steps that count");
ABSL_FLAG(int32_t, runs, 5, "Prefills, or attention measurements, that count");
ABSL_FLAG(std::string, json, "", "Also write the results to this file");

namespace tidal {
namespace {

absl::StatusOr<ModelLoadOptions> LoadOptionsFromFlags(int32_t max_streams) {
  ModelLoadOptions options{.model_path = absl::GetFlag(FLAGS_model_path),
                           .cpu_threads = absl::GetFlag(FLAGS_cpu_threads),
                           .max_batch_tokens = absl::GetFlag(FLAGS_max_batch_tokens),
                           .max_running_requests = max_streams,
                           .memory_fraction = absl::GetFlag(FLAGS_gpu_memory_fraction)};
  options.on_warning = [](absl::string_view warning) { std::cerr << warning << "\n"; };
  TIDAL_ASSIGN_OR_RETURN(options.device, ParseChoice<Device>("device", absl::GetFlag(FLAGS_device),
                                                             {{"auto", Device::kAuto},
                                                              {"cpu", Device::kCpu},
                                                              {"cuda", Device::kCuda}}));
  TIDAL_ASSIGN_OR_RETURN(
      options.load_format,
      ParseChoice<LoadFormat>("load_format", absl::GetFlag(FLAGS_load_format),
                              {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}}));
  const std::string shape = absl::GetFlag(FLAGS_shape);
  if (shape.empty() == options.model_path.empty()) {
    return absl::InvalidArgumentError("either --model_path or --shape is needed");
  }
  if (!shape.empty()) {
    TIDAL_ASSIGN_OR_RETURN(options.dummy_config, FindModelShape(shape));
    options.load_format = LoadFormat::kDummy;
    options.model_path = shape;
  }
  if (options.max_batch_tokens != 0 && options.max_batch_tokens < kBlockSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max_batch_tokens: ", options.max_batch_tokens, " is below ", kBlockSize));
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
        if (method == "full" || method == "projections") {
          cases.push_back({.work = method == "full" ? DecodeCase::Work::kWholeStep
                                                    : DecodeCase::Work::kProjections,
                           .num_streams = num_streams,
                           .num_context_tokens = context});
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
              absl::StrCat("--methods: '", method, "' is not full, tidal or projections"));
        }
      }
    }
  }
  return cases;
}

absl::StatusOr<std::vector<AttentionCase>> AttentionCasesFromFlags(
    const ModelShape& shape, const std::vector<int32_t>& streams,
    const std::vector<int32_t>& contexts) {
  using Kind = AttentionCase::Kind;
  TIDAL_ASSIGN_OR_RETURN(
      const std::vector<int32_t> budgets,
      ParseIntegers("token_budgets", absl::GetFlag(FLAGS_token_budgets), 1, kMaxTokenBudget));
  std::vector<AttentionCase> cases;
  for (const int32_t context : contexts) {
    for (const int32_t num_streams : streams) {
      for (const std::string& word : absl::GetFlag(FLAGS_kinds)) {
        AttentionCase attention_case = {.num_streams = num_streams, .num_context_tokens = context};
        TIDAL_ASSIGN_OR_RETURN(attention_case.kind,
                               ParseChoice<Kind>("kinds", word,
                                                 {{"full", Kind::kFull},
                                                  {"select", Kind::kSelect},
                                                  {"sparse", Kind::kSparse},
                                                  {"prefill", Kind::kPrefill}}));
        const bool selects =
            attention_case.kind == Kind::kSelect || attention_case.kind == Kind::kSparse;
        for (const int32_t budget : selects ? budgets : std::vector<int32_t>{0}) {
          attention_case.selection = {.scope = DefaultSelectionScope(shape),
                                      .token_budget = budget};
          // A budget that covers the context leaves nothing to select.
          if (budget < context) cases.push_back(attention_case);
        }
      }
    }
  }
  return cases;
}

// The model, and what its device reads at best.
struct Bench {
  ServingModel model;
  double read_bandwidth = 0;  // bytes a second
};

absl::Status WriteJson(nlohmann::json results, const std::string& command, const Bench& bench) {
  const std::string path = absl::GetFlag(FLAGS_json);
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << nlohmann::json{{"command", command},
                         {"model", bench.model.name},
                         {"device", bench.model.backend->description()},
                         {"read_bandwidth", bench.read_bandwidth},
                         {"results", std::move(results)}}
              .dump(1)
       << "\n";
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("--json: cannot write ", path));
  return absl::OkStatus();
}

// Measures each case, then prints and writes all results.
template <typename Result, typename Case>
absl::Status RunCases(const std::string& command, const Bench& bench,
                      const std::vector<Case>& cases,
                      const std::function<absl::StatusOr<Result>(const Case&)>& run) {
  std::vector<Result> results;
  nlohmann::json json = nlohmann::json::array();
  for (const Case& bench_case : cases) {
    TIDAL_ASSIGN_OR_RETURN(const Result result, run(bench_case));
    results.push_back(result);
    json.push_back(ToJson(result));
  }
  PrintTable(results, &std::cout);
  return WriteJson(std::move(json), command, bench);
}

absl::Status Run(const std::string& command) {
  if (command != "decode" && command != "prefill" && command != "attention") {
    return absl::InvalidArgumentError(
        absl::StrCat("command '", command, "' is not decode, prefill or attention"));
  }
  const int num_runs = absl::GetFlag(FLAGS_runs);
  const int num_steps = absl::GetFlag(FLAGS_steps);
  const int num_warmup = absl::GetFlag(FLAGS_warmup);
  if (num_steps < 1 || num_runs < 1 || num_warmup < 0) {
    return absl::InvalidArgumentError("--steps and --runs are at least 1, --warmup at least 0");
  }
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> streams,
                         ParseIntegers("streams", absl::GetFlag(FLAGS_streams), 1, 4096));
  TIDAL_ASSIGN_OR_RETURN(const std::vector<int32_t> contexts,
                         ParseIntegers("contexts", absl::GetFlag(FLAGS_contexts), 1, 1 << 24));
  const int32_t max_streams =
      command == "prefill" ? 1 : *std::max_element(streams.begin(), streams.end());
  TIDAL_ASSIGN_OR_RETURN(const ModelLoadOptions options, LoadOptionsFromFlags(max_streams));
  TIDAL_ASSIGN_OR_RETURN(ServingModel loaded, LoadServingModel(options));
  TIDAL_ASSIGN_OR_RETURN(const double read_bandwidth, loaded.backend->MeasureReadBandwidth());
  Bench bench = {.model = std::move(loaded), .read_bandwidth = read_bandwidth};
  ServingModel* const model = &bench.model;
  std::cout << absl::StreamFormat("%s on %s, read bandwidth %.1f GB/s\n", model->name,
                                  model->backend->description(), 1e-9 * bench.read_bandwidth);
  if (command == "attention") {
    TIDAL_ASSIGN_OR_RETURN(const std::vector<AttentionCase> cases,
                           AttentionCasesFromFlags(model->config.shape, streams, contexts));
    AttentionBench attention(model, bench.read_bandwidth);
    return RunCases<AttentionResult, AttentionCase>(
        command, bench, cases, [&](const AttentionCase& attention_case) {
          return attention.Run(attention_case, num_runs);
        });
  }
  StepBench steps(model, bench.read_bandwidth);
  if (command == "decode") {
    TIDAL_ASSIGN_OR_RETURN(const std::vector<DecodeCase> cases,
                           DecodeCasesFromFlags(model->config.shape, streams, contexts));
    return RunCases<DecodeResult, DecodeCase>(
        command, bench, cases, [&](const DecodeCase& decode_case) {
          return steps.Decode(decode_case, num_warmup, num_steps);
        });
  }
  return RunCases<PrefillResult, int32_t>(command, bench, contexts, [&](const int32_t& num_tokens) {
    return steps.Prefill(num_tokens, num_runs);
  });
}

}  // namespace
}  // namespace tidal

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "tidal-bench decode|prefill|attention --model_path=DIRECTORY|--shape=NAME [flags]\n"
      "Times the engine's steps in process: successive greedy decodes of several streams at given\n"
      "contexts, the prefill of a prompt in chunks, or the attention of one layer alone. The "
      "floor\n"
      "is what the bytes that must be read take at the read bandwidth measured in the same run.");
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
