// The figures of a load point, from the records of its requests. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/bench/request_record.h"

namespace tidal::client {

// Of a set of times in seconds; all 0 where it is empty. A percentile is the nearest rank: the
// smallest measured value that at least so many percent do not exceed.
struct LatencySummary {
  int64_t count = 0;
  double mean = 0;
  double p50 = 0;
  double p90 = 0;
  double p95 = 0;
  double p99 = 0;
  double max = 0;
};

LatencySummary Summarize(std::vector<double> seconds);

// What a request must meet to count as good. A request that fails meets nothing, and one that has
// no figure (one token has no ITL) meets its limit.
struct ServiceLevelObjective {
  std::optional<absl::Duration> ttft;
  std::optional<absl::Duration> itl;   // of the longest interval between tokens
  std::optional<absl::Duration> tpot;  // of the mean interval
  std::optional<absl::Duration> e2e;

  bool is_set() const { return ttft || itl || tpot || e2e; }
};

// Figures of one successful request, in seconds; nothing where it generated too few tokens.
std::optional<double> TimeToFirstToken(const RequestRecord& record);
std::optional<double> TimePerOutputToken(const RequestRecord& record);
double EndToEnd(const RequestRecord& record);
// One for each token but the first: tokens come when their delta comes. A delta of k tokens has the
// time since the delta before it, and k - 1 times 0; so none is invented, none is hidden, and the
// mean is that of TPOT weighted by tokens.
std::vector<double> InterTokenLatencies(const RequestRecord& record);

bool MeetsObjective(const RequestRecord& record, const ServiceLevelObjective& objective);

struct LoadReport {
  // Requests a second in an open loop, nothing for a trace or a closed loop.
  std::optional<double> offered_rate;
  // Requests in flight in a closed loop.
  std::optional<int64_t> concurrency;
  bool is_interrupted = false;

  int64_t num_requests = 0;  // measured: succeeded + failed
  int64_t num_succeeded = 0;
  int64_t num_abandoned = 0;  // in flight when the run was interrupted
  int64_t num_warm_up = 0;
  std::map<std::string, int64_t> errors_by_code;

  // From the first measured request's due time to the last one's end.
  double measured_seconds = 0;
  // By that time, over successful requests.
  double requests_per_second = 0;
  double prompt_tokens_per_second = 0;
  double generated_tokens_per_second = 0;
  // Requests that meet the objective; nothing without one.
  std::optional<double> goodput_per_second;
  std::optional<double> goodput_share;

  int64_t num_prompt_tokens = 0;
  int64_t num_cached_prompt_tokens = 0;
  int64_t num_generated_tokens = 0;
  // 1 where the server never merged tokens; ITL percentiles want it near 1.
  double tokens_per_delta = 0;
  std::optional<double> attended_share;

  LatencySummary ttft;
  LatencySummary itl;
  LatencySummary tpot;
  LatencySummary e2e;
  // From due to sent: what the generator itself was late. It is part of the latencies.
  LatencySummary send_delay;
};

// Leaves offered_rate, concurrency and is_interrupted to the caller.
LoadReport MakeLoadReport(const std::vector<RequestRecord>& records,
                          const ServiceLevelObjective& objective);

}  // namespace tidal::client
