#include "server/prometheus_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/metrics_endpoint.h"
#include "server/rpc_interceptor.h"
#include "server/status_mapping.h"

namespace tidal::server {
namespace {

using testing::HasSubstr;
using testing::IsSupersetOf;

std::string TextOf(const PrometheusMetrics& metrics) {
  return prometheus::TextSerializer().Serialize(metrics.Collect());
}

// "name{labels}" of every sample.
std::set<std::string> SeriesOf(const PrometheusMetrics& metrics) {
  std::set<std::string> series;
  for (const absl::string_view line : absl::StrSplit(TextOf(metrics), '\n')) {
    if (!line.empty() && line[0] != '#') {
      series.insert(std::string(line.substr(0, line.rfind(' '))));
    }
  }
  return series;
}

std::string ValueOf(const PrometheusMetrics& metrics, const std::string& series) {
  for (const absl::string_view line : absl::StrSplit(TextOf(metrics), '\n')) {
    const size_t space = line.rfind(' ');
    if (space != absl::string_view::npos && line.substr(0, space) == series) {
      return std::string(line.substr(space + 1));
    }
  }
  return "missing";
}

TEST(PrometheusMetricsTest, HasEverySeriesFromTheStart) {
  const PrometheusMetrics metrics({.methods = ClientMethods()});
  EXPECT_THAT(SeriesOf(metrics), IsSupersetOf({
                                     "tidal_requests_running",
                                     "tidal_requests_waiting",
                                     "tidal_waiting_prompt_tokens",
                                     "tidal_kv_cache_usage_ratio",
                                     "tidal_kv_blocks{state=\"used\"}",
                                     "tidal_kv_blocks{state=\"free\"}",
                                     "tidal_memory_bytes{kind=\"weights\"}",
                                     "tidal_memory_bytes{kind=\"kv_cache\"}",
                                     "tidal_memory_bytes{kind=\"workspace\"}",
                                     "tidal_engine_last_progress_timestamp_seconds",
                                     "tidal_requests_finished_total{reason=\"end_of_sequence\"}",
                                     "tidal_requests_finished_total{reason=\"stop_token\"}",
                                     "tidal_requests_finished_total{reason=\"stop_string\"}",
                                     "tidal_requests_finished_total{reason=\"length\"}",
                                     "tidal_requests_finished_total{reason=\"cancelled\"}",
                                     "tidal_requests_finished_total{reason=\"deadline\"}",
                                     "tidal_requests_finished_total{reason=\"too_slow\"}",
                                     "tidal_requests_finished_total{reason=\"shutdown\"}",
                                     "tidal_requests_finished_total{reason=\"fault\"}",
                                     "tidal_admission_rejections_total{reason=\"queued_requests\"}",
                                     "tidal_admission_rejections_total{reason=\"queued_tokens\"}",
                                     "tidal_admission_rejections_total{reason=\"never_fits\"}",
                                     "tidal_admission_rejections_total{reason=\"duplicate_id\"}",
                                     "tidal_admission_rejections_total{reason=\"loading\"}",
                                     "tidal_admission_rejections_total{reason=\"draining\"}",
                                     "tidal_admission_rejections_total{reason=\"unauthenticated\"}",
                                     "tidal_admission_rejections_total{reason=\"client_requests\"}",
                                     "tidal_admission_rejections_total{reason=\"client_tokens\"}",
                                     "tidal_prompt_tokens_total{source=\"computed\"}",
                                     "tidal_prompt_tokens_total{source=\"recomputed\"}",
                                     "tidal_prompt_tokens_total{source=\"cached\"}",
                                     "tidal_generation_tokens_total",
                                     "tidal_preemptions_total",
                                     "tidal_cancellations_total{stage=\"queued\"}",
                                     "tidal_cancellations_total{stage=\"prefill\"}",
                                     "tidal_cancellations_total{stage=\"decode\"}",
                                     "tidal_engine_steps_total{kind=\"prefill\"}",
                                     "tidal_engine_steps_total{kind=\"decode\"}",
                                     "tidal_engine_steps_total{kind=\"mixed\"}",
                                     "tidal_engine_errors_total{kind=\"fault\"}",
                                     "tidal_engine_errors_total{kind=\"stall\"}",
                                     "tidal_attention_tokens_total{kind=\"attended\"}",
                                     "tidal_attention_tokens_total{kind=\"available\"}",
                                     "tidal_selections_total",
                                     "tidal_corrections_total",
                                     "tidal_corrected_tokens_total",
                                     "tidal_time_to_first_token_seconds_count",
                                     "tidal_inter_token_latency_seconds_count",
                                     "tidal_e2e_request_latency_seconds_count",
                                     "tidal_request_queue_time_seconds_count",
                                     "tidal_request_prefill_time_seconds_count",
                                     "tidal_request_decode_time_seconds_count",
                                     "tidal_request_prompt_tokens_count",
                                     "tidal_request_generation_tokens_count",
                                     "tidal_step_duration_seconds_count{kind=\"prefill\"}",
                                     "tidal_step_duration_seconds_count{kind=\"decode\"}",
                                     "tidal_step_duration_seconds_count{kind=\"mixed\"}",
                                     "tidal_batch_size_count",
                                 }));
}

TEST(PrometheusMetricsTest, HasACounterForEachMethodAndCode) {
  const PrometheusMetrics metrics({.methods = ClientMethods()});
  const std::set<std::string> series = SeriesOf(metrics);
  for (const std::string method :
       {"tidal.inference.v1.InferenceService/Generate",
        "tidal.inference.v1.InferenceService/GenerateStream",
        "tidal.inference.v1.InferenceService/Tokenize",
        "tidal.inference.v1.InferenceService/Detokenize",
        "tidal.inference.v1.ModelService/GetModelInfo", "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch", "other"}) {
    for (const grpc::StatusCode code : AllCodes()) {
      EXPECT_TRUE(series.contains(absl::StrCat("tidal_requests_total{code=\"", CodeName(code),
                                               "\",method=\"", method, "\"}")))
          << method << " " << CodeName(code);
    }
  }
  EXPECT_EQ(&metrics.rpc_counters("no.such.Service/Method"), &metrics.rpc_counters("other"));
}

TEST(PrometheusMetricsTest, HasTheDocumentedBuckets) {
  const PrometheusMetrics metrics({});
  const std::string text = TextOf(metrics);
  for (const char* bound : {"0.001", "0.005", "0.01", "0.02", "0.04", "0.06", "0.08", "0.1",
                            "0.25",  "0.5",   "0.75", "1",    "2.5",  "5",    "7.5",  "10",
                            "20",    "40",    "80",   "160",  "640",  "2560", "+Inf"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("tidal_time_to_first_token_seconds_bucket{le=\"",
                                             bound, "\"} 0\n")));
  }
  for (const char* bound :
       {"0.001", "0.002", "0.004", "0.006", "0.008", "0.01", "0.015", "0.02", "0.025",
        "0.03",  "0.04",  "0.06",  "0.08",  "0.1",   "0.2",  "0.4",   "0.6",  "0.8",
        "1",     "2",     "4",     "8",     "20",    "80",   "+Inf"}) {
    EXPECT_THAT(text, HasSubstr(absl::StrCat("tidal_inter_token_latency_seconds_bucket{le=\"",
                                             bound, "\"} 0\n")));
  }
}

TEST(PrometheusMetricsTest, CountsWhatTheEngineReports) {
  PrometheusMetrics metrics({});
  metrics.OnStep({.kind = StepKind::kMixed,
                  .duration = absl::Milliseconds(3),
                  .num_sequences = 5,
                  .num_prefill_tokens = 100,
                  .num_recomputed_tokens = 30,
                  .num_queried_tokens = 90,
                  .num_cached_tokens = 64,
                  .num_generated_tokens = 4,
                  .num_attended_tokens = 200,
                  .num_available_tokens = 1000,
                  .num_selections = 8,
                  .num_corrections = 2,
                  .num_corrected_tokens = 14});
  metrics.OnFirstToken(absl::Milliseconds(50));
  metrics.OnInterTokenLatency(absl::Milliseconds(7));
  metrics.OnPreemption("id");
  metrics.OnRejected(RejectionReason::kNeverFits);
  metrics.OnLoadChanged({.num_running_requests = 2,
                         .num_waiting_requests = 3,
                         .num_waiting_prompt_tokens = 400,
                         .num_used_blocks = 25,
                         .num_cached_blocks = 15,
                         .num_total_blocks = 100});
  metrics.CountRefusal(Phase::kLoading);
  metrics.CountRefusal(Phase::kDraining);
  metrics.OnFault(absl::InternalError("x"));
  EXPECT_EQ(ValueOf(metrics, "tidal_engine_steps_total{kind=\"mixed\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_step_duration_seconds_sum{kind=\"mixed\"}"), "0.003");
  EXPECT_EQ(ValueOf(metrics, "tidal_batch_size_sum"), "5");
  EXPECT_EQ(ValueOf(metrics, "tidal_prompt_tokens_total{source=\"computed\"}"), "70");
  EXPECT_EQ(ValueOf(metrics, "tidal_prompt_tokens_total{source=\"recomputed\"}"), "30");
  EXPECT_EQ(ValueOf(metrics, "tidal_prompt_tokens_total{source=\"cached\"}"), "64");
  EXPECT_EQ(ValueOf(metrics, "tidal_prefix_cache_queried_tokens_total"), "90");
  EXPECT_EQ(ValueOf(metrics, "tidal_prefix_cache_hit_tokens_total"), "64");
  EXPECT_EQ(ValueOf(metrics, "tidal_generation_tokens_total"), "4");
  EXPECT_EQ(ValueOf(metrics, "tidal_attention_tokens_total{kind=\"attended\"}"), "200");
  EXPECT_EQ(ValueOf(metrics, "tidal_attention_tokens_total{kind=\"available\"}"), "1000");
  EXPECT_EQ(ValueOf(metrics, "tidal_selections_total"), "8");
  EXPECT_EQ(ValueOf(metrics, "tidal_corrections_total"), "2");
  EXPECT_EQ(ValueOf(metrics, "tidal_corrected_tokens_total"), "14");
  EXPECT_EQ(ValueOf(metrics, "tidal_time_to_first_token_seconds_bucket{le=\"0.06\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_time_to_first_token_seconds_bucket{le=\"0.04\"}"), "0");
  EXPECT_EQ(ValueOf(metrics, "tidal_inter_token_latency_seconds_bucket{le=\"0.008\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_preemptions_total"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_admission_rejections_total{reason=\"never_fits\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_admission_rejections_total{reason=\"loading\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_admission_rejections_total{reason=\"draining\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_running"), "2");
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_waiting"), "3");
  EXPECT_EQ(ValueOf(metrics, "tidal_waiting_prompt_tokens"), "400");
  EXPECT_EQ(ValueOf(metrics, "tidal_kv_cache_usage_ratio"), "0.25");
  EXPECT_EQ(ValueOf(metrics, "tidal_kv_blocks{state=\"used\"}"), "25");
  EXPECT_EQ(ValueOf(metrics, "tidal_kv_blocks{state=\"free\"}"), "60");
  EXPECT_EQ(ValueOf(metrics, "tidal_kv_blocks{state=\"cached\"}"), "15");
  EXPECT_EQ(ValueOf(metrics, "tidal_engine_errors_total{kind=\"fault\"}"), "1");
}

TEST(PrometheusMetricsTest, TellsApartWhyRequestsEnd) {
  PrometheusMetrics metrics({});
  RequestReport report;
  report.stage = RequestStage::kDecode;
  report.finish_reason = FinishReason::kStopString;
  metrics.OnRequestEnded(report);
  report.status = absl::CancelledError("");
  report.stage = RequestStage::kPrefill;
  metrics.OnRequestEnded(report);
  report.status = absl::DeadlineExceededError("");
  report.stage = RequestStage::kQueued;
  metrics.OnRequestEnded(report);
  report.status = absl::UnavailableError("");
  metrics.OnRequestEnded(report);
  report.status = absl::InternalError("");
  metrics.OnRequestEnded(report);
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_finished_total{reason=\"stop_string\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_finished_total{reason=\"cancelled\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_finished_total{reason=\"deadline\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_finished_total{reason=\"shutdown\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_requests_finished_total{reason=\"fault\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_cancellations_total{stage=\"prefill\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_cancellations_total{stage=\"queued\"}"), "1");
  EXPECT_EQ(ValueOf(metrics, "tidal_cancellations_total{stage=\"decode\"}"), "0");
  EXPECT_EQ(ValueOf(metrics, "tidal_e2e_request_latency_seconds_count"), "5");
  // Stages that a request did not reach have no time.
  EXPECT_EQ(ValueOf(metrics, "tidal_request_prefill_time_seconds_count"), "2");
  EXPECT_EQ(ValueOf(metrics, "tidal_request_decode_time_seconds_count"), "1");
}

TEST(PrometheusMetricsTest, DatesTheLastProgressWhenRead) {
  PrometheusMetrics metrics({});
  metrics.SetProgressAge([] { return absl::Hours(1); });
  const double expected = absl::ToDoubleSeconds(absl::Now() - absl::Hours(1) - absl::UnixEpoch());
  const std::string value = ValueOf(metrics, "tidal_engine_last_progress_timestamp_seconds");
  EXPECT_NEAR(std::stod(value), expected, 60.0);
}

TEST(PrometheusMetricsTest, HasTheGatewaysNamesOnlyWhereAskedFor) {
  PrometheusMetrics plain({});
  plain.SetConfig({{"a", "b"}}, 7);
  EXPECT_THAT(TextOf(plain), Not(HasSubstr("vllm:")));
  EXPECT_THAT(TextOf(plain), HasSubstr("tidal_config_info{a=\"b\"} 1"));
  PrometheusMetrics aliased({.methods = {}, .gateway_metrics = true});
  aliased.SetConfig({}, 7);
  aliased.OnLoadChanged({.num_running_requests = 1,
                         .num_waiting_requests = 2,
                         .num_used_blocks = 1,
                         .num_total_blocks = 2});
  EXPECT_EQ(ValueOf(aliased, "vllm:num_requests_running"), "1");
  EXPECT_EQ(ValueOf(aliased, "vllm:num_requests_waiting"), "2");
  EXPECT_EQ(ValueOf(aliased, "vllm:kv_cache_usage_perc"), "0.5");
  EXPECT_EQ(ValueOf(aliased, "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"7\"}"),
            "1");
}

TEST(PrometheusMetricsTest, MayBeReadWhileItIsWritten) {
  PrometheusMetrics metrics({});
  std::thread reader([&metrics] {
    for (int i = 0; i < 20; ++i) EXPECT_FALSE(TextOf(metrics).empty());
  });
  for (int i = 0; i < 2000; ++i) {
    metrics.OnInterTokenLatency(absl::Milliseconds(i));
    metrics.OnLoadChanged({.num_running_requests = i});
    metrics.SetProgressAge([i] { return absl::Seconds(i); });
  }
  reader.join();
  EXPECT_EQ(ValueOf(metrics, "tidal_inter_token_latency_seconds_count"), "2000");
}

TEST(PrometheusMetricsTest, PassesPromtoolsCheck) {
  if (std::system("command -v promtool > /dev/null") != 0) GTEST_SKIP() << "promtool is missing";
  PrometheusMetrics metrics({.methods = ClientMethods()});
  metrics.SetConfig({{"device", "cpu"}}, 7);
  const std::string path = absl::StrCat(testing::TempDir(), "/tidal_metrics_", getpid());
  std::ofstream(path) << TextOf(metrics);
  const int status = std::system(absl::StrCat("promtool check metrics < ", path).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(MetricsEndpointTest, TakesAFreePortAndRefusesATakenOne) {
  const auto metrics = std::make_shared<PrometheusMetrics>(PrometheusMetrics::Options{});
  const auto endpoint = MetricsEndpoint::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  EXPECT_GT((*endpoint)->port(), 0);
  const std::string address = absl::StrCat("127.0.0.1:", (*endpoint)->port());
  const absl::Status status = MetricsEndpoint::Start(address, metrics).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("--metrics_address: cannot listen on '" + address + "'"));
}

TEST(MetricsEndpointTest, EndsWithoutWaitingForTheLibrarysPoll) {
  const auto metrics = std::make_shared<PrometheusMetrics>(PrometheusMetrics::Options{});
  for (const char* address : {"127.0.0.1:0", "0.0.0.0:0"}) {
    absl::StatusOr<std::unique_ptr<MetricsEndpoint>> endpoint =
        MetricsEndpoint::Start(address, metrics);
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    const absl::Time begin = absl::Now();
    endpoint->reset();
    EXPECT_LT(absl::Now() - begin, absl::Seconds(1)) << address;
  }
}

}  // namespace
}  // namespace tidal::server
