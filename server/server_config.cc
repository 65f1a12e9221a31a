#include "server/server_config.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "engine/backend/status_macros.h"
#include "server/byte_size.h"
#include "server/version.h"

using tidal::server::ByteSize;

ABSL_FLAG(std::string, model_path, "",
          "Directory of the checkpoint: config.json, weights, tokenizer");
ABSL_FLAG(std::string, model_name, "", "Name in answers and logs; by default the directory's name");
ABSL_FLAG(std::string, metrics_address, "0.0.0.0:9090",
          "host:port of Prometheus' /metrics; port 0 takes a free one, empty serves none");
ABSL_FLAG(std::string, port_file, "", "File to write the ports listened on into");
ABSL_FLAG(std::string, device, "auto", "auto, cpu or cuda");
ABSL_FLAG(std::string, load_format, "auto", "auto, or dummy for random weights");
ABSL_FLAG(int32_t, max_model_len, 0,
          "Most tokens of a request, prompt and output; 0 = the checkpoint's, or what fits");
ABSL_FLAG(int32_t, max_batch_tokens, 0,
          "Most tokens computed in one step; 0 = the device's default");
ABSL_FLAG(int32_t, max_running_requests, 64, "Most requests computed at the same time");
ABSL_FLAG(int32_t, max_queued_requests, 1024, "Most requests waiting; more are refused");
ABSL_FLAG(int64_t, max_queued_tokens, 4 << 20, "Most prompt tokens of all requests waiting");
ABSL_FLAG(ByteSize, kv_cache_memory, ByteSize{},
          "Size of the KV cache, as in 4GiB; 0 = by fraction");
ABSL_FLAG(double, gpu_memory_fraction, 0.0,
          "On a GPU, the share of its memory for weights, workspaces and KV cache together; on the "
          "CPU, of the memory left beside the weights, for the KV cache; 0 = 0.9 and 0.5");
ABSL_FLAG(int32_t, cpu_threads, 0, "Threads of the CPU backend; 0 = all cores");
ABSL_FLAG(std::string, attention, "tidal",
          "tidal, full or quest: what requests get that ask for none");
ABSL_FLAG(int32_t, token_budget, 256, "Positions that a sparse layer attends, by default");
ABSL_FLAG(std::vector<std::string>, full_layers, {},
          "Layers with full attention; by default what the checkpoint's tidal.json says, or 0,1");
ABSL_FLAG(
    std::vector<std::string>, selection_layers, {},
    "Layers that select positions; by default what the checkpoint's tidal.json says, or 2 and "
    "round(13/32 of all layers)");
ABSL_FLAG(std::string, selection_scope, "auto", "auto, query_head, kv_head or layer");
ABSL_FLAG(int32_t, sink_tokens, 0, "First positions that a selection always keeps");
ABSL_FLAG(int32_t, recent_tokens, 0, "Last positions that a selection always keeps");
ABSL_FLAG(int32_t, correction_interval, 0,
          "Generated tokens after which the KV cache is corrected; 0 = never");
ABSL_FLAG(bool, prefix_caching, true,
          "Keep the KV of computed prompts, for later prompts that begin alike");
ABSL_FLAG(absl::Duration, shutdown_timeout, absl::Seconds(30),
          "How long running requests may go on after SIGTERM");
ABSL_FLAG(absl::Duration, lame_duck_interval, absl::ZeroDuration(),
          "How long new requests are still taken after SIGTERM, while readiness says NOT_SERVING");
ABSL_FLAG(absl::Duration, liveness_timeout, absl::Seconds(120),
          "With requests to compute but no progress for so long, liveness says NOT_SERVING");
ABSL_FLAG(ByteSize, max_receive_message_size, ByteSize{16 << 20}, "Largest request message");
ABSL_FLAG(ByteSize, max_pending_response_size, ByteSize{4 << 20},
          "Generated but unread output at which a slow reader's request is cancelled");
ABSL_FLAG(absl::Duration, stalled_stream_timeout, absl::Seconds(60),
          "A stream whose client takes nothing of what is written for so long is cancelled");
ABSL_FLAG(bool, gateway_metrics, false,
          "Also serve the vllm: metrics that Kubernetes inference gateways read");
ABSL_FLAG(std::string, log_format, "text", "text or json");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning or error");
ABSL_FLAG(bool, log_prompts, false, "Write the text of prompts into the log");

namespace tidal::server {
namespace {

constexpr int32_t kMaxCount = std::numeric_limits<int32_t>::max();

template <typename T>
absl::Status CheckRange(absl::string_view flag, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, ": ", value, " is not in [", low, ", ", high, "]"));
}

// One of a flag's words and its meaning.
template <typename T>
struct Choice {
  absl::string_view word;
  T value;
};

template <typename T>
absl::StatusOr<T> ParseChoice(absl::string_view flag, absl::string_view word,
                              absl::Span<const Choice<T>> choices) {
  for (const Choice<T>& choice : choices) {
    if (choice.word == word) return choice.value;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, ": '", word, "' is none of ",
                   absl::StrJoin(choices, ", ", [](std::string* out, const Choice<T>& choice) {
                     absl::StrAppend(out, choice.word);
                   })));
}

absl::StatusOr<std::optional<std::vector<int32_t>>> ParseLayers(
    absl::string_view flag, const std::vector<std::string>& words) {
  if (words.empty()) return std::optional<std::vector<int32_t>>();
  std::vector<int32_t> layers;
  for (const std::string& word : words) {
    int32_t layer = 0;
    if (!absl::SimpleAtoi(word, &layer) || layer < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", word, "' is not a layer's number, 0 or more"));
    }
    layers.push_back(layer);
  }
  return std::make_optional(std::move(layers));
}

absl::Status ReadModelFlags(ModelLoadOptions* model) {
  model->model_path = absl::GetFlag(FLAGS_model_path);
  if (model->model_path.empty()) {
    return absl::InvalidArgumentError("--model_path: is missing: the checkpoint's directory");
  }
  TIDAL_ASSIGN_OR_RETURN(model->device, ParseChoice<Device>("device", absl::GetFlag(FLAGS_device),
                                                            {{"auto", Device::kAuto},
                                                             {"cpu", Device::kCpu},
                                                             {"cuda", Device::kCuda}}));
  TIDAL_ASSIGN_OR_RETURN(
      model->load_format,
      ParseChoice<LoadFormat>("load_format", absl::GetFlag(FLAGS_load_format),
                              {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}}));
  model->max_model_len = absl::GetFlag(FLAGS_max_model_len);
  TIDAL_RETURN_IF_ERROR(CheckRange("max_model_len", model->max_model_len, 0, 1 << 24));
  model->max_batch_tokens = absl::GetFlag(FLAGS_max_batch_tokens);
  TIDAL_RETURN_IF_ERROR(CheckRange("max_batch_tokens", model->max_batch_tokens, 0, 1 << 20));
  model->max_running_requests = absl::GetFlag(FLAGS_max_running_requests);
  TIDAL_RETURN_IF_ERROR(
      CheckRange("max_running_requests", model->max_running_requests, 1, 1 << 16));
  model->cpu_threads = absl::GetFlag(FLAGS_cpu_threads);
  TIDAL_RETURN_IF_ERROR(CheckRange("cpu_threads", model->cpu_threads, 0, 1024));
  model->kv_cache_memory_bytes = absl::GetFlag(FLAGS_kv_cache_memory).bytes;
  const double fraction = absl::GetFlag(FLAGS_gpu_memory_fraction);
  if (!(fraction >= 0.0 && fraction <= 1.0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--gpu_memory_fraction: ", fraction, " is not in [0, 1]"));
  }
  if (fraction > 0.0) model->memory_fraction = fraction;
  TIDAL_ASSIGN_OR_RETURN(model->layer_plan.full_layers,
                         ParseLayers("full_layers", absl::GetFlag(FLAGS_full_layers)));
  TIDAL_ASSIGN_OR_RETURN(model->layer_plan.selection_layers,
                         ParseLayers("selection_layers", absl::GetFlag(FLAGS_selection_layers)));
  return absl::OkStatus();
}

absl::Status ReadAttentionFlags(AttentionConfig* attention) {
  TIDAL_ASSIGN_OR_RETURN(attention->mode,
                         ParseChoice<AttentionMode>("attention", absl::GetFlag(FLAGS_attention),
                                                    {{"tidal", AttentionMode::kTidal},
                                                     {"full", AttentionMode::kFull},
                                                     {"quest", AttentionMode::kQuest}}));
  using OptionalScope = std::optional<SelectionScope>;
  TIDAL_ASSIGN_OR_RETURN(
      const OptionalScope scope,
      ParseChoice<OptionalScope>("selection_scope", absl::GetFlag(FLAGS_selection_scope),
                                 {{"auto", std::nullopt},
                                  {"query_head", SelectionScope::kQueryHead},
                                  {"kv_head", SelectionScope::kKvHead},
                                  {"layer", SelectionScope::kLayer}}));
  attention->scope_is_auto = !scope.has_value();
  Selection& selection = attention->selection;
  selection.scope = scope.value_or(SelectionScope::kQueryHead);
  selection.token_budget = absl::GetFlag(FLAGS_token_budget);
  TIDAL_RETURN_IF_ERROR(CheckRange("token_budget", selection.token_budget, 1, kMaxTokenBudget));
  selection.num_sink_tokens = absl::GetFlag(FLAGS_sink_tokens);
  TIDAL_RETURN_IF_ERROR(CheckRange("sink_tokens", selection.num_sink_tokens, 0, kMaxTokenBudget));
  selection.num_recent_tokens = absl::GetFlag(FLAGS_recent_tokens);
  TIDAL_RETURN_IF_ERROR(
      CheckRange("recent_tokens", selection.num_recent_tokens, 0, kMaxTokenBudget));
  const int32_t num_kept = selection.num_sink_tokens + std::max(selection.num_recent_tokens, 1);
  if (num_kept > selection.token_budget) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--token_budget: ", selection.token_budget, " is less than the ", num_kept,
        " positions that --sink_tokens and --recent_tokens (at least the current one) keep"));
  }
  attention->correction_interval = absl::GetFlag(FLAGS_correction_interval);
  return CheckRange("correction_interval", attention->correction_interval, 0, kMaxCount);
}

absl::Status ReadServingFlags(ServerConfig* config) {
  TIDAL_ASSIGN_OR_RETURN(config->transport, TransportConfigFromFlags());
  config->metrics_address = absl::GetFlag(FLAGS_metrics_address);
  if (!config->metrics_address.empty()) {
    TIDAL_RETURN_IF_ERROR(CheckAddress("metrics_address", config->metrics_address));
  }
  config->port_file = absl::GetFlag(FLAGS_port_file);
  config->model_name = absl::GetFlag(FLAGS_model_name);
  config->max_queued_requests = absl::GetFlag(FLAGS_max_queued_requests);
  TIDAL_RETURN_IF_ERROR(CheckRange("max_queued_requests", config->max_queued_requests, 1, 1 << 20));
  config->max_queued_tokens = absl::GetFlag(FLAGS_max_queued_tokens);
  TIDAL_RETURN_IF_ERROR(
      CheckRange<int64_t>("max_queued_tokens", config->max_queued_tokens, 1, int64_t{1} << 40));
  config->prefix_caching = absl::GetFlag(FLAGS_prefix_caching);
  config->max_receive_message_bytes = absl::GetFlag(FLAGS_max_receive_message_size).bytes;
  TIDAL_RETURN_IF_ERROR(CheckRange<int64_t>("max_receive_message_size",
                                            config->max_receive_message_bytes, 1 << 10, 1 << 30));
  config->max_pending_response_bytes = absl::GetFlag(FLAGS_max_pending_response_size).bytes;
  TIDAL_RETURN_IF_ERROR(CheckRange<int64_t>("max_pending_response_size",
                                            config->max_pending_response_bytes, 1 << 10, 1 << 30));
  config->gateway_metrics = absl::GetFlag(FLAGS_gateway_metrics);
  config->lame_duck_interval = absl::GetFlag(FLAGS_lame_duck_interval);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("lame_duck_interval", config->lame_duck_interval, absl::ZeroDuration()));
  config->shutdown_timeout = absl::GetFlag(FLAGS_shutdown_timeout);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("shutdown_timeout", config->shutdown_timeout, absl::ZeroDuration()));
  config->stalled_stream_timeout = absl::GetFlag(FLAGS_stalled_stream_timeout);
  TIDAL_RETURN_IF_ERROR(
      CheckDuration("stalled_stream_timeout", config->stalled_stream_timeout, absl::Seconds(1)));
  config->liveness_timeout = absl::GetFlag(FLAGS_liveness_timeout);
  return CheckDuration("liveness_timeout", config->liveness_timeout, absl::Seconds(1));
}

absl::Status ReadLogFlags(ServerConfig* config) {
  TIDAL_ASSIGN_OR_RETURN(
      config->log.format,
      ParseChoice<LogFormat>("log_format", absl::GetFlag(FLAGS_log_format),
                             {{"text", LogFormat::kText}, {"json", LogFormat::kJson}}));
  TIDAL_ASSIGN_OR_RETURN(config->log.level,
                         ParseChoice<LogLevel>("log_level", absl::GetFlag(FLAGS_log_level),
                                               {{"debug", LogLevel::debug},
                                                {"info", LogLevel::info},
                                                {"warning", LogLevel::warn},
                                                {"error", LogLevel::err}}));
  config->log_prompts = absl::GetFlag(FLAGS_log_prompts);
  return absl::OkStatus();
}

bool DefinesOurFlags(absl::string_view file) {
  return absl::EndsWith(file, "server/server_config.cc") ||
         absl::EndsWith(file, "server/transport_config.cc");
}

// Whether the flag is ours; the libraries linked define others.
bool IsOurs(const absl::CommandLineFlag& flag) { return DefinesOurFlags(flag.Filename()); }

// What --help and --version say. Abseil takes it once a process.
void SetUsage() {
  absl::SetProgramUsageMessage(
      "Serves a Llama-family checkpoint over gRPC.\n"
      "tidal-server --model_path=DIRECTORY [flags]; each flag also from the environment, as in "
      "TIDAL_MODEL_PATH.");
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return absl::StrCat("tidal-server ", kServerVersion, "\n"); };
  usage.contains_help_flags = &DefinesOurFlags;
  absl::SetFlagsUsageConfig(usage);
}

}  // namespace

absl::Status SetFlagsFromEnvironment() {
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!IsOurs(*flag)) continue;
    const std::string variable = absl::StrCat("TIDAL_", absl::AsciiStrToUpper(name));
    const char* value = std::getenv(variable.c_str());
    std::string error;
    if (value != nullptr && !flag->ParseFrom(value, &error)) {
      return absl::InvalidArgumentError(absl::StrCat(variable, ": '", value, "': ", error));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ServerConfig> ConfigFromFlags() {
  ServerConfig config;
  TIDAL_RETURN_IF_ERROR(ReadLogFlags(&config));
  TIDAL_RETURN_IF_ERROR(ReadModelFlags(&config.model));
  TIDAL_RETURN_IF_ERROR(ReadAttentionFlags(&config.attention));
  TIDAL_RETURN_IF_ERROR(ReadServingFlags(&config));
  return config;
}

absl::StatusOr<ServerConfig> ParseServerConfig(int argc, char** argv) {
  static const bool has_usage = (SetUsage(), true);
  static_cast<void>(has_usage);
  TIDAL_RETURN_IF_ERROR(SetFlagsFromEnvironment());
  // TIDAL_FLAGFILE reads like a --flagfile before all others.
  std::vector<char*> arguments(argv, argv + argc);
  std::string flag_file;
  if (const char* path = std::getenv("TIDAL_FLAGFILE"); path != nullptr && argc > 0) {
    flag_file = absl::StrCat("--flagfile=", path);
    arguments.insert(arguments.begin() + 1, flag_file.data());
  }
  const std::vector<char*> rest =
      absl::ParseCommandLine(static_cast<int>(arguments.size()), arguments.data());
  if (rest.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", rest[1], "' is not a flag; flags are --name=value"));
  }
  return ConfigFromFlags();
}

}  // namespace tidal::server
