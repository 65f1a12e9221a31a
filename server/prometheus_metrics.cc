#include "server/prometheus_metrics.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/backend/attention.h"
#include "server/status_mapping.h"
#include "server/version.h"

namespace tidal::server {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Histogram;
using Buckets = Histogram::BucketBoundaries;

constexpr char kOtherMethod[] = "other";

// Why a request that the engine had accepted ended: the values of the label `reason`.
enum class EndReason : uint8_t {
  kEndOfSequence,
  kStopToken,
  kStopString,
  kLength,
  kCancelled,
  kDeadline,
  kSlowReader,
  kShutdown,
  kFault,
};
constexpr std::array<const char*, 9> kEndReasonNames = {
    "end_of_sequence", "stop_token", "stop_string", "length", "cancelled",
    "deadline",        "too_slow",   "shutdown",    "fault"};

constexpr std::array<const char*, 5> kRejectionNames = {"queued_requests", "queued_tokens",
                                                        "never_fits", "duplicate_id", "deadline"};
// What the server can do for its clients: the values of the label `state`.
enum class ServerState : uint8_t { kLoading, kReady, kDraining, kDead };
constexpr std::array<const char*, 4> kServerStateNames = {"loading", "ready", "draining", "dead"};

ServerState StateOf(Phase phase, bool is_alive) {
  if (!is_alive) return ServerState::kDead;
  switch (phase) {
    case Phase::kLoading:
      return ServerState::kLoading;
    case Phase::kServing:
      return ServerState::kReady;
    case Phase::kDraining:
    case Phase::kStopped:
      return ServerState::kDraining;
  }
  return ServerState::kDead;
}

constexpr std::array<const char*, 3> kStageNames = {"queued", "prefill", "decode"};
constexpr std::array<const char*, 3> kStepKindNames = {"prefill", "decode", "mixed"};

EndReason ReasonOf(const RequestReport& report) {
  if (report.status.ok()) {
    switch (report.finish_reason) {
      case FinishReason::kEndOfSequence:
        return EndReason::kEndOfSequence;
      case FinishReason::kStopToken:
        return EndReason::kStopToken;
      case FinishReason::kStopString:
        return EndReason::kStopString;
      case FinishReason::kLength:
        return EndReason::kLength;
    }
  }
  switch (report.status.code()) {
    case absl::StatusCode::kCancelled:
      return EndReason::kCancelled;
    case absl::StatusCode::kDeadlineExceeded:
      return EndReason::kDeadline;
    case absl::StatusCode::kResourceExhausted:
      return EndReason::kSlowReader;
    case absl::StatusCode::kUnavailable:
      return EndReason::kShutdown;
    default:
      return EndReason::kFault;
  }
}

// Ended by the client's doing, rather than the server's.
bool IsCancellation(EndReason reason) {
  return reason == EndReason::kCancelled || reason == EndReason::kDeadline ||
         reason == EndReason::kSlowReader;
}

const Buckets& FirstTokenBuckets() {
  static const auto* const buckets =
      new Buckets{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
  return *buckets;
}

const Buckets& InterTokenBuckets() {
  static const auto* const buckets =
      new Buckets{.001, .002, .004, .006, .008, .01, .015, .02, .025, .03, .04, .06,
                  .08,  .1,   .2,   .4,   .6,   .8,  1,    2,   4,    8,   20,  80};
  return *buckets;
}

// Whole requests and their parts, up to an hour.
const Buckets& RequestTimeBuckets() {
  static const auto* const buckets =
      new Buckets{.005, .01, .025, .05, .1,  .25, .5,  1,   2.5,  5,   10,
                  20,   40,  60,   90,  120, 240, 480, 960, 1800, 3600};
  return *buckets;
}

const Buckets& TokenCountBuckets() {
  static const auto* const buckets =
      new Buckets{1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                  2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};
  return *buckets;
}

const Buckets& StepDurationBuckets() {
  static const auto* const buckets = new Buckets{
      .0005, .001, .002, .004, .006, .008, .01, .015, .02, .03, .05, .1, .2, .5, 1, 2, 5, 10};
  return *buckets;
}

const Buckets& BatchSizeBuckets() {
  static const auto* const buckets = new Buckets{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
  return *buckets;
}

// One metric for each label value.
template <typename Metric, typename Family, size_t kSize, typename... Arguments>
std::array<Metric*, kSize> AddAll(Family& family, const char* label,
                                  const std::array<const char*, kSize>& values,
                                  const Arguments&... arguments) {
  std::array<Metric*, kSize> metrics;
  for (size_t i = 0; i < kSize; ++i) metrics[i] = &family.Add({{label, values[i]}}, arguments...);
  return metrics;
}

double Seconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

}  // namespace

PrometheusMetrics::PrometheusMetrics(const Options& options)
    : gateway_metrics_(options.gateway_metrics) {
  CreateGauges();
  CreateRpcCounters(options.methods);
  CreateCounters();
  CreateHistograms();
  if (gateway_metrics_) CreateGatewayMetrics();
}

void PrometheusMetrics::CreateGauges() {
  const auto gauge = [this](const char* name, const char* help) {
    return &BuildGauge().Name(name).Help(help).Register(registry_).Add({});
  };
  requests_running_ = gauge("tidal_requests_running", "Requests being computed.");
  requests_waiting_ = gauge("tidal_requests_waiting", "Requests waiting to be computed.");
  waiting_prompt_tokens_ =
      gauge("tidal_waiting_prompt_tokens", "Prompt tokens of all waiting requests.");
  kv_cache_usage_ =
      gauge("tidal_kv_cache_usage_ratio", "Share of the KV cache that requests hold, 0 to 1.");
  last_progress_ = gauge("tidal_engine_last_progress_timestamp_seconds",
                         "When the engine last began or ended a step, or found nothing to do.");
  server_states_ = AddAll<prometheus::Gauge>(
      BuildGauge()
          .Name("tidal_server_state")
          .Help("1 for the state that the server is in, 0 for the others.")
          .Register(registry_),
      "state", kServerStateNames);
  ShowState();
  auto& blocks = BuildGauge()
                     .Name("tidal_kv_blocks")
                     .Help(
                         "Blocks of the KV cache, by state: used by requests, cached for later "
                         "ones until they are needed, or free.")
                     .Register(registry_);
  used_blocks_ = &blocks.Add({{"state", "used"}});
  cached_blocks_ = &blocks.Add({{"state", "cached"}});
  free_blocks_ = &blocks.Add({{"state", "free"}});
  auto& memory = BuildGauge()
                     .Name("tidal_memory_bytes")
                     .Help("Memory that the backend holds, by purpose.")
                     .Register(registry_);
  weights_bytes_ = &memory.Add({{"kind", "weights"}});
  kv_cache_bytes_ = &memory.Add({{"kind", "kv_cache"}});
  workspace_bytes_ = &memory.Add({{"kind", "workspace"}});
  BuildGauge()
      .Name("tidal_build_info")
      .Help("The server's version; always 1.")
      .Register(registry_)
      .Add({{"version", kServerVersion}})
      .Set(1);
}

void PrometheusMetrics::CreateRpcCounters(const std::vector<std::string>& methods) {
  auto& family = BuildCounter()
                     .Name("tidal_requests_total")
                     .Help("Finished calls, by method and gRPC status code.")
                     .Register(registry_);
  std::vector<std::string> all = methods;
  all.push_back(kOtherMethod);
  for (const std::string& method : all) {
    RpcCounters& counters = rpc_counters_[method];
    for (const grpc::StatusCode code : AllCodes()) {
      counters[static_cast<size_t>(code)] =
          &family.Add({{"method", method}, {"code", CodeName(code)}});
    }
  }
}

void PrometheusMetrics::CreateCounters() {
  const auto family = [this](const char* name, const char* help) -> prometheus::Family<Counter>& {
    return BuildCounter().Name(name).Help(help).Register(registry_);
  };
  requests_finished_ = AddAll<Counter>(
      family("tidal_requests_finished_total", "Requests that left the engine, by reason."),
      "reason", kEndReasonNames);
  auto& rejections = family("tidal_admission_rejections_total",
                            "Requests that were refused before the engine took them, by reason.");
  rejections_ = AddAll<Counter>(rejections, "reason", kRejectionNames);
  refused_loading_ = &rejections.Add({{"reason", "loading"}});
  refused_draining_ = &rejections.Add({{"reason", "draining"}});
  refused_unauthenticated_ = &rejections.Add({{"reason", "unauthenticated"}});
  refused_client_requests_ = &rejections.Add({{"reason", "client_requests"}});
  refused_client_tokens_ = &rejections.Add({{"reason", "client_tokens"}});
  auto& prompt_tokens =
      family("tidal_prompt_tokens_total",
             "Tokens of prefills, by source: computed, computed again after a preemption, or found "
             "in the cache.");
  computed_prompt_tokens_ = &prompt_tokens.Add({{"source", "computed"}});
  recomputed_tokens_ = &prompt_tokens.Add({{"source", "recomputed"}});
  cached_prompt_tokens_ = &prompt_tokens.Add({{"source", "cached"}});
  cache_queried_tokens_ = &family("tidal_prefix_cache_queried_tokens_total",
                                  "Prompt tokens that were looked up in the prefix cache.")
                               .Add({});
  cache_hit_tokens_ = &family("tidal_prefix_cache_hit_tokens_total",
                              "Prompt tokens that were found in the prefix cache.")
                           .Add({});
  generation_tokens_ = &family("tidal_generation_tokens_total", "Generated tokens.").Add({});
  preemptions_ =
      &family("tidal_preemptions_total", "Requests that lost their blocks to others.").Add({});
  cancellations_ = AddAll<Counter>(
      family(
          "tidal_cancellations_total",
          "Requests ended by cancellation, deadline or a slow reader, by the stage they were in."),
      "stage", kStageNames);
  steps_ = AddAll<Counter>(family("tidal_engine_steps_total", "Steps of the engine, by kind."),
                           "kind", kStepKindNames);
  auto& errors = family("tidal_engine_errors_total", "Faults of the engine, by kind.");
  faults_ = &errors.Add({{"kind", "fault"}});
  stalls_ = &errors.Add({{"kind", "stall"}});
  auto& attention = family("tidal_attention_tokens_total",
                           "Positions that decodes attended, and those there were, summed over "
                           "layers.");
  attended_tokens_ = &attention.Add({{"kind", "attended"}});
  available_tokens_ = &attention.Add({{"kind", "available"}});
  selections_ =
      &family("tidal_selections_total", "Selections of positions made by decodes.").Add({});
  corrections_ = &family("tidal_corrections_total",
                         "Decodes with full attention that corrected the KV cache before.")
                      .Add({});
  corrected_tokens_ = &family("tidal_corrected_tokens_total",
                              "Tokens decoded with sparse attention whose K and V corrections have "
                              "computed anew.")
                           .Add({});
}

void PrometheusMetrics::CreateHistograms() {
  const auto histogram = [this](const char* name, const char* help, const Buckets& buckets) {
    return &BuildHistogram().Name(name).Help(help).Register(registry_).Add({}, buckets);
  };
  time_to_first_token_ = histogram(
      "tidal_time_to_first_token_seconds",
      "From a request's arrival, before tokenising, to its first token.", FirstTokenBuckets());
  inter_token_latency_ = histogram("tidal_inter_token_latency_seconds",
                                   "Between successive tokens of a request.", InterTokenBuckets());
  e2e_latency_ = histogram("tidal_e2e_request_latency_seconds",
                           "From a request's arrival to its end.", RequestTimeBuckets());
  queue_time_ =
      histogram("tidal_request_queue_time_seconds",
                "From a request's arrival to its leaving the queue.", RequestTimeBuckets());
  prefill_time_ = histogram("tidal_request_prefill_time_seconds",
                            "From leaving the queue to the first token.", RequestTimeBuckets());
  decode_time_ = histogram("tidal_request_decode_time_seconds", "From the first token to the end.",
                           RequestTimeBuckets());
  prompt_tokens_ =
      histogram("tidal_request_prompt_tokens", "Prompt tokens of a request.", TokenCountBuckets());
  request_generation_tokens_ = histogram("tidal_request_generation_tokens",
                                         "Generated tokens of a request.", TokenCountBuckets());
  step_duration_ = AddAll<Histogram>(BuildHistogram()
                                         .Name("tidal_step_duration_seconds")
                                         .Help("Duration of a step of the engine, by kind.")
                                         .Register(registry_),
                                     "kind", kStepKindNames, StepDurationBuckets());
  batch_size_ = histogram("tidal_batch_size", "Sequences computed in a step.", BatchSizeBuckets());
}

void PrometheusMetrics::CreateGatewayMetrics() {
  const auto gauge = [this](const char* name, const char* help) {
    return &BuildGauge().Name(name).Help(help).Register(registry_).Add({});
  };
  gateway_waiting_ = gauge("vllm:num_requests_waiting", "Alias of tidal_requests_waiting.");
  gateway_running_ = gauge("vllm:num_requests_running", "Alias of tidal_requests_running.");
  gateway_cache_usage_ = gauge("vllm:kv_cache_usage_perc", "Alias of tidal_kv_cache_usage_ratio.");
}

const PrometheusMetrics::RpcCounters& PrometheusMetrics::rpc_counters(
    const std::string& method) const {
  const auto it = rpc_counters_.find(method);
  return it != rpc_counters_.end() ? it->second : rpc_counters_.at(kOtherMethod);
}

void PrometheusMetrics::CountRefusal(Phase phase) {
  (phase == Phase::kLoading ? refused_loading_ : refused_draining_)->Increment();
}

void PrometheusMetrics::SetPhase(Phase phase) {
  const std::lock_guard<std::mutex> lock(mutex_);
  phase_ = phase;
  ShowState();
}

void PrometheusMetrics::SetAlive(bool alive) {
  const std::lock_guard<std::mutex> lock(mutex_);
  is_alive_ = alive;
  ShowState();
}

void PrometheusMetrics::ShowState() {
  const auto state = static_cast<size_t>(StateOf(phase_, is_alive_));
  for (size_t i = 0; i < server_states_.size(); ++i) server_states_[i]->Set(i == state ? 1 : 0);
}

void PrometheusMetrics::CountClientLimit(ClientLimit limit) {
  (limit == ClientLimit::kRequests ? refused_client_requests_ : refused_client_tokens_)
      ->Increment();
}

void PrometheusMetrics::SetMemory(const MemoryUse& memory) {
  weights_bytes_->Set(static_cast<double>(memory.weights_bytes));
  kv_cache_bytes_->Set(static_cast<double>(memory.kv_cache_bytes));
  workspace_bytes_->Set(static_cast<double>(memory.workspace_bytes));
}

void PrometheusMetrics::SetConfig(const std::map<std::string, std::string>& labels,
                                  int32_t num_blocks) {
  BuildGauge()
      .Name("tidal_config_info")
      .Help("The configuration in force; always 1.")
      .Register(registry_)
      .Add(labels)
      .Set(1);
  if (!gateway_metrics_) return;
  BuildGauge()
      .Name("vllm:cache_config_info")
      .Help("The KV cache's configuration; always 1.")
      .Register(registry_)
      .Add({{"block_size", absl::StrCat(kBlockSize)}, {"num_gpu_blocks", absl::StrCat(num_blocks)}})
      .Set(1);
}

void PrometheusMetrics::SetProgressAge(std::function<absl::Duration()> age) {
  const std::lock_guard<std::mutex> lock(mutex_);
  progress_age_ = std::move(age);
}

void PrometheusMetrics::OnStep(const StepReport& report) {
  const auto kind = static_cast<size_t>(report.kind);
  steps_[kind]->Increment();
  step_duration_[kind]->Observe(Seconds(report.duration));
  batch_size_->Observe(report.num_sequences);
  computed_prompt_tokens_->Increment(report.num_prefill_tokens - report.num_recomputed_tokens);
  recomputed_tokens_->Increment(report.num_recomputed_tokens);
  cached_prompt_tokens_->Increment(static_cast<double>(report.num_cached_tokens));
  cache_queried_tokens_->Increment(static_cast<double>(report.num_queried_tokens));
  cache_hit_tokens_->Increment(static_cast<double>(report.num_cached_tokens));
  generation_tokens_->Increment(report.num_generated_tokens);
  attended_tokens_->Increment(static_cast<double>(report.num_attended_tokens));
  available_tokens_->Increment(static_cast<double>(report.num_available_tokens));
  selections_->Increment(report.num_selections);
  corrections_->Increment(report.num_corrections);
  corrected_tokens_->Increment(report.num_corrected_tokens);
}

void PrometheusMetrics::OnFirstToken(absl::Duration time_to_first_token) {
  time_to_first_token_->Observe(Seconds(time_to_first_token));
}

void PrometheusMetrics::OnInterTokenLatency(absl::Duration latency) {
  inter_token_latency_->Observe(Seconds(latency));
}

void PrometheusMetrics::OnPreemption(const std::string& /*request_id*/) {
  preemptions_->Increment();
}

void PrometheusMetrics::OnRequestEnded(const RequestReport& report) {
  const EndReason reason = ReasonOf(report);
  requests_finished_[static_cast<size_t>(reason)]->Increment();
  if (IsCancellation(reason)) cancellations_[static_cast<size_t>(report.stage)]->Increment();
  e2e_latency_->Observe(Seconds(report.timings.end_to_end));
  queue_time_->Observe(Seconds(report.timings.queue));
  // A stage that was never reached has no time, rather than none.
  if (report.stage != RequestStage::kQueued) {
    prefill_time_->Observe(Seconds(report.timings.prefill));
  }
  if (report.stage == RequestStage::kDecode) decode_time_->Observe(Seconds(report.timings.decode));
  prompt_tokens_->Observe(report.usage.num_prompt_tokens);
  request_generation_tokens_->Observe(report.usage.num_generated_tokens);
}

void PrometheusMetrics::OnRejected(RejectionReason reason) {
  rejections_[static_cast<size_t>(reason)]->Increment();
}

void PrometheusMetrics::OnLoadChanged(const EngineLoad& load) {
  const double usage = load.num_total_blocks == 0
                           ? 0.0
                           : static_cast<double>(load.num_used_blocks) / load.num_total_blocks;
  requests_running_->Set(load.num_running_requests);
  requests_waiting_->Set(load.num_waiting_requests);
  waiting_prompt_tokens_->Set(static_cast<double>(load.num_waiting_prompt_tokens));
  kv_cache_usage_->Set(usage);
  used_blocks_->Set(load.num_used_blocks);
  cached_blocks_->Set(load.num_cached_blocks);
  free_blocks_->Set(load.num_total_blocks - load.num_used_blocks - load.num_cached_blocks);
  if (!gateway_metrics_) return;
  gateway_running_->Set(load.num_running_requests);
  gateway_waiting_->Set(load.num_waiting_requests);
  gateway_cache_usage_->Set(usage);
}

void PrometheusMetrics::OnFault(const absl::Status& /*status*/) {
  faults_->Increment();
  SetAlive(false);
}

std::vector<prometheus::MetricFamily> PrometheusMetrics::Collect() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (progress_age_) {
      last_progress_->Set(absl::ToDoubleSeconds(absl::Now() - progress_age_() - absl::UnixEpoch()));
    }
  }
  return registry_.Collect();
}

}  // namespace tidal::server
