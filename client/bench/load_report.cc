#include "client/bench/load_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tidal::client {
namespace {

double NearestRank(const std::vector<double>& sorted, double percent) {
  const auto rank =
      static_cast<std::size_t>(std::ceil(percent * static_cast<double>(sorted.size()) / 100));
  return sorted[std::max<std::size_t>(rank, 1) - 1];
}

int64_t NumTokens(const RequestRecord& record) {
  int64_t count = 0;
  for (const TokenArrival& arrival : record.tokens) count += arrival.num_tokens;
  return count;
}

bool IsWithin(double seconds, const std::optional<absl::Duration>& limit) {
  return !limit.has_value() || absl::Seconds(seconds) <= *limit;
}

// Latencies of all measured requests, before they are summed up.
struct Latencies {
  std::vector<double> ttft;
  std::vector<double> itl;
  std::vector<double> tpot;
  std::vector<double> e2e;
  std::vector<double> send_delay;
};

void AddSuccess(const RequestRecord& record, LoadReport& report, Latencies& latencies) {
  ++report.num_succeeded;
  report.num_prompt_tokens += record.num_prompt_tokens;
  report.num_cached_prompt_tokens += record.num_cached_prompt_tokens;
  report.num_generated_tokens += NumTokens(record);
  latencies.e2e.push_back(EndToEnd(record));
  if (const auto ttft = TimeToFirstToken(record)) latencies.ttft.push_back(*ttft);
  if (const auto tpot = TimePerOutputToken(record)) latencies.tpot.push_back(*tpot);
  const std::vector<double> itl = InterTokenLatencies(record);
  latencies.itl.insert(latencies.itl.end(), itl.begin(), itl.end());
}

// Sums over all records that the rates are made of.
struct Totals {
  absl::Duration first_due = absl::InfiniteDuration();
  absl::Duration last_end = -absl::InfiniteDuration();
  int64_t num_good = 0;
  int64_t num_deltas = 0;
  int64_t attended_tokens = 0;
  int64_t available_tokens = 0;
};

void SetRates(const Totals& totals, bool has_objective, LoadReport& report) {
  if (report.num_requests > 0) {
    report.measured_seconds = absl::ToDoubleSeconds(totals.last_end - totals.first_due);
  }
  const auto rate = [&report](int64_t count) {
    return report.measured_seconds > 0 ? static_cast<double>(count) / report.measured_seconds : 0;
  };
  const auto share = [](int64_t part, int64_t whole) {
    return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
  };
  report.requests_per_second = rate(report.num_succeeded);
  report.prompt_tokens_per_second = rate(report.num_prompt_tokens);
  report.generated_tokens_per_second = rate(report.num_generated_tokens);
  report.tokens_per_delta = share(report.num_generated_tokens, totals.num_deltas);
  if (totals.available_tokens > 0) {
    report.attended_share = share(totals.attended_tokens, totals.available_tokens);
  }
  if (has_objective) {
    report.goodput_per_second = rate(totals.num_good);
    report.goodput_share = share(totals.num_good, report.num_requests);
  }
}

}  // namespace

LatencySummary Summarize(std::vector<double> seconds) {
  LatencySummary summary;
  if (seconds.empty()) return summary;
  std::sort(seconds.begin(), seconds.end());
  summary.count = static_cast<int64_t>(seconds.size());
  summary.mean =
      std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  summary.p50 = NearestRank(seconds, 50);
  summary.p90 = NearestRank(seconds, 90);
  summary.p95 = NearestRank(seconds, 95);
  summary.p99 = NearestRank(seconds, 99);
  summary.max = seconds.back();
  return summary;
}

std::optional<double> TimeToFirstToken(const RequestRecord& record) {
  if (record.tokens.empty()) return std::nullopt;
  return absl::ToDoubleSeconds(record.tokens.front().time - record.scheduled);
}

std::optional<double> TimePerOutputToken(const RequestRecord& record) {
  const int64_t num_tokens = NumTokens(record);
  if (num_tokens < 2) return std::nullopt;
  return absl::ToDoubleSeconds(record.tokens.back().time - record.tokens.front().time) /
         static_cast<double>(num_tokens - 1);
}

double EndToEnd(const RequestRecord& record) {
  return absl::ToDoubleSeconds(record.ended - record.scheduled);
}

std::vector<double> InterTokenLatencies(const RequestRecord& record) {
  std::vector<double> latencies;
  for (std::size_t i = 0; i < record.tokens.size(); ++i) {
    if (i > 0) {
      latencies.push_back(absl::ToDoubleSeconds(record.tokens[i].time - record.tokens[i - 1].time));
    }
    const auto num_together = static_cast<std::size_t>(record.tokens[i].num_tokens - 1);
    latencies.insert(latencies.end(), num_together, 0.0);
  }
  return latencies;
}

bool MeetsObjective(const RequestRecord& record, const ServiceLevelObjective& objective) {
  if (record.code != absl::StatusCode::kOk) return false;
  const std::vector<double> itl = InterTokenLatencies(record);
  const double longest = itl.empty() ? 0 : *std::max_element(itl.begin(), itl.end());
  return IsWithin(TimeToFirstToken(record).value_or(0), objective.ttft) &&
         IsWithin(TimePerOutputToken(record).value_or(0), objective.tpot) &&
         IsWithin(longest, objective.itl) && IsWithin(EndToEnd(record), objective.e2e);
}

LoadReport MakeLoadReport(const std::vector<RequestRecord>& records,
                          const ServiceLevelObjective& objective) {
  LoadReport report;
  Latencies latencies;
  Totals totals;
  for (const RequestRecord& record : records) {
    if (record.is_warm_up) {
      ++report.num_warm_up;
      continue;
    }
    if (record.is_abandoned) {
      ++report.num_abandoned;
      continue;
    }
    ++report.num_requests;
    totals.first_due = std::min(totals.first_due, record.scheduled);
    totals.last_end = std::max(totals.last_end, record.ended);
    latencies.send_delay.push_back(absl::ToDoubleSeconds(record.sent - record.scheduled));
    if (MeetsObjective(record, objective)) ++totals.num_good;
    if (record.code != absl::StatusCode::kOk) {
      ++report.errors_by_code[absl::StatusCodeToString(record.code)];
      continue;
    }
    totals.num_deltas += static_cast<int64_t>(record.tokens.size());
    totals.attended_tokens += record.attended_tokens;
    totals.available_tokens += record.available_tokens;
    AddSuccess(record, report, latencies);
  }
  SetRates(totals, objective.is_set(), report);
  report.ttft = Summarize(std::move(latencies.ttft));
  report.itl = Summarize(std::move(latencies.itl));
  report.tpot = Summarize(std::move(latencies.tpot));
  report.e2e = Summarize(std::move(latencies.e2e));
  report.send_delay = Summarize(std::move(latencies.send_delay));
  return report;
}

}  // namespace tidal::client
