#include "client/bench/report_output.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/bench/svg_chart.h"

namespace tidal::client {
namespace {

using nlohmann::ordered_json;

constexpr double kMillisecondsPerSecond = 1000;

std::string LoadText(const LoadReport& report) {
  if (report.concurrency) return absl::StrCat(*report.concurrency, " requests in flight");
  if (report.offered_rate) return absl::StrFormat("%g requests/s offered", *report.offered_rate);
  return "trace";
}

void AppendField(absl::string_view name, absl::string_view value, std::string* text) {
  absl::StrAppendFormat(text, "  %-20s%s\n", name, value);
}

std::string CountsText(const LoadReport& report) {
  std::string text = absl::StrFormat("%d succeeded, %d failed", report.num_succeeded,
                                     report.num_requests - report.num_succeeded);
  for (const auto& [code, count] : report.errors_by_code) {
    absl::StrAppend(&text, ", ", count, " ", code);
  }
  if (report.num_abandoned > 0) {
    absl::StrAppend(&text, ", ", report.num_abandoned, " abandoned in flight");
  }
  if (report.num_warm_up > 0) absl::StrAppend(&text, "; ", report.num_warm_up, " of warm-up");
  return text;
}

void AppendLatency(absl::string_view name, const LatencySummary& summary, std::string* text) {
  absl::StrAppendFormat(text, "  %-18s", name);
  if (summary.count == 0) {
    absl::StrAppend(text, "         -\n");
    return;
  }
  for (const double seconds :
       {summary.mean, summary.p50, summary.p90, summary.p95, summary.p99, summary.max}) {
    absl::StrAppendFormat(text, "%10.1f", seconds * kMillisecondsPerSecond);
  }
  absl::StrAppend(text, "\n");
}

ordered_json LatencyJson(const LatencySummary& summary) {
  return {{"count", summary.count}, {"mean", summary.mean}, {"p50", summary.p50},
          {"p90", summary.p90},     {"p95", summary.p95},   {"p99", summary.p99},
          {"max", summary.max}};
}

template <typename T>
ordered_json OrNull(const std::optional<T>& value) {
  return value.has_value() ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json ReportJson(const LoadReport& report) {
  ordered_json json;
  json["offered_requests_per_second"] = OrNull(report.offered_rate);
  json["concurrency"] = OrNull(report.concurrency);
  json["interrupted"] = report.is_interrupted;
  json["requests"] = {{"measured", report.num_requests},
                      {"succeeded", report.num_succeeded},
                      {"abandoned", report.num_abandoned},
                      {"warm_up", report.num_warm_up}};
  json["errors"] = ordered_json::object();
  for (const auto& [code, count] : report.errors_by_code) json["errors"][code] = count;
  json["measured_seconds"] = report.measured_seconds;
  json["requests_per_second"] = report.requests_per_second;
  json["prompt_tokens_per_second"] = report.prompt_tokens_per_second;
  json["generated_tokens_per_second"] = report.generated_tokens_per_second;
  json["goodput_requests_per_second"] = OrNull(report.goodput_per_second);
  json["goodput_share"] = OrNull(report.goodput_share);
  json["prompt_tokens"] = report.num_prompt_tokens;
  json["cached_prompt_tokens"] = report.num_cached_prompt_tokens;
  json["generated_tokens"] = report.num_generated_tokens;
  json["tokens_per_delta"] = report.tokens_per_delta;
  json["attended_share"] = OrNull(report.attended_share);
  json["time_to_first_token_seconds"] = LatencyJson(report.ttft);
  json["inter_token_latency_seconds"] = LatencyJson(report.itl);
  json["time_per_output_token_seconds"] = LatencyJson(report.tpot);
  json["end_to_end_seconds"] = LatencyJson(report.e2e);
  json["send_delay_seconds"] = LatencyJson(report.send_delay);
  return json;
}

// Where a report lies on the x axis. A trace has the rate that it came to.
double OfferedLoad(const LoadReport& report) {
  if (report.concurrency) return static_cast<double>(*report.concurrency);
  return report.offered_rate.value_or(report.requests_per_second);
}

ChartSeries MakeSeries(absl::string_view name, const std::vector<LoadReport>& reports,
                       const std::function<double(const LoadReport&)>& value) {
  ChartSeries series{std::string(name), {}};
  for (const LoadReport& report : reports) {
    series.points.emplace_back(OfferedLoad(report), value(report));
  }
  std::sort(series.points.begin(), series.points.end());
  return series;
}

Chart LatencyChart(absl::string_view title, const std::string& x_label,
                   const std::vector<LoadReport>& reports, LatencySummary LoadReport::*summary) {
  Chart chart{std::string(title), x_label, "milliseconds", {}};
  for (const auto& [name, field] :
       {std::pair("p50", &LatencySummary::p50), std::pair("p95", &LatencySummary::p95),
        std::pair("p99", &LatencySummary::p99)}) {
    chart.series.push_back(
        MakeSeries(name, reports, [summary, field = field](const LoadReport& report) {
          return report.*summary.*field * kMillisecondsPerSecond;
        }));
  }
  return chart;
}

Chart ThroughputChart(const std::string& x_label, const std::vector<LoadReport>& reports) {
  Chart chart{"Throughput", x_label, "requests/s", {}};
  chart.series.push_back(MakeSeries(
      "completed", reports, [](const LoadReport& report) { return report.requests_per_second; }));
  if (!reports.empty() && reports.front().goodput_per_second.has_value()) {
    chart.series.push_back(MakeSeries("within the objective", reports, [](const auto& report) {
      return report.goodput_per_second.value_or(0);
    }));
  }
  return chart;
}

}  // namespace

std::string ReportText(const LoadReport& report) {
  std::string text =
      absl::StrCat(LoadText(report), report.is_interrupted ? " (interrupted)" : "", "\n");
  AppendField("requests", CountsText(report), &text);
  AppendField("measured time", absl::StrFormat("%.2f s", report.measured_seconds), &text);
  AppendField("throughput",
              absl::StrFormat("%.3f requests/s, %.1f prompt and %.1f generated tokens/s",
                              report.requests_per_second, report.prompt_tokens_per_second,
                              report.generated_tokens_per_second),
              &text);
  if (report.goodput_per_second) {
    AppendField("goodput",
                absl::StrFormat("%.3f requests/s, %.1f %% of requests meet the objective",
                                *report.goodput_per_second, 100 * report.goodput_share.value_or(0)),
                &text);
  }
  AppendField("tokens",
              absl::StrFormat("%d of prompts (%d from the cache), %d generated, %.2f a delta",
                              report.num_prompt_tokens, report.num_cached_prompt_tokens,
                              report.num_generated_tokens, report.tokens_per_delta),
              &text);
  if (report.attended_share) {
    AppendField("attended share", absl::StrFormat("%.2f %%", 100 * *report.attended_share), &text);
  }
  absl::StrAppendFormat(&text, "  %-18s%10s%10s%10s%10s%10s%10s\n", "milliseconds", "mean", "p50",
                        "p90", "p95", "p99", "max");
  AppendLatency("TTFT", report.ttft, &text);
  AppendLatency("ITL", report.itl, &text);
  AppendLatency("TPOT", report.tpot, &text);
  AppendLatency("end to end", report.e2e, &text);
  AppendLatency("send delay", report.send_delay, &text);
  return text;
}

ordered_json ReportsJson(const BenchSetup& setup, const std::vector<LoadReport>& reports) {
  ordered_json json;
  json["setup"] = {{"target", setup.target},       {"model", setup.model},
                   {"device", setup.device},       {"load", setup.load},
                   {"attention", setup.attention}, {"load_seed", setup.seed}};
  json["points"] = ordered_json::array();
  for (const LoadReport& report : reports) json["points"].push_back(ReportJson(report));
  return json;
}

std::string ReportsSvg(const BenchSetup& setup, const std::vector<LoadReport>& reports) {
  const bool is_closed = !reports.empty() && reports.front().concurrency.has_value();
  const std::string x_label = is_closed ? "requests in flight" : "offered load (requests/s)";
  return RenderSvg(absl::StrCat(setup.model, " on ", setup.device, ": ", setup.load, ", attention ",
                                setup.attention),
                   {LatencyChart("Time to first token", x_label, reports, &LoadReport::ttft),
                    LatencyChart("Inter-token latency", x_label, reports, &LoadReport::itl),
                    LatencyChart("End to end", x_label, reports, &LoadReport::e2e),
                    ThroughputChart(x_label, reports)});
}

}  // namespace tidal::client
