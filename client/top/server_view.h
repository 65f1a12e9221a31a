// What `tidal-client top` shows: gauges as they are, and what counters and histograms did between
// two scrapes. Pure functions.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "client/top/metrics_text.h"

namespace tidal::client {

// Percentiles of a histogram's new observations, in its unit. They are interpolated within a
// bucket, as Prometheus does, so they are as exact as the buckets are narrow.
struct HistogramPercentiles {
  double count = 0;
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};

// (upper bound, observations up to it), by bound, the last one infinite. A percentile that lies in
// the infinite bucket is that bucket's lower bound.
using CumulativeBuckets = std::map<double, double>;
HistogramPercentiles PercentilesOf(const CumulativeBuckets& buckets);

struct ServerView {
  // Absent where the server does not export the metric.
  std::optional<double> running;
  std::optional<double> waiting;
  std::optional<double> waiting_prompt_tokens;
  std::optional<double> kv_cache_usage;  // 0 to 1
  // Over the interval, a second.
  double prompt_tokens_per_second = 0;
  double generated_tokens_per_second = 0;
  double requests_per_second = 0;
  std::optional<double> attended_share;  // of the interval's decode steps, 0 to 1
  HistogramPercentiles ttft;             // seconds
  HistogramPercentiles itl;
  double new_preemptions = 0;
  double total_preemptions = 0;
  // By gRPC code other than OK: new ones, and all since the server started.
  std::map<std::string, std::pair<double, double>> errors_by_code;
};

// `interval` is the time between the scrapes. A counter below its earlier value began anew: the
// server restarted, and its whole value is new.
ServerView MakeServerView(const std::vector<MetricSample>& earlier,
                          const std::vector<MetricSample>& now, absl::Duration interval);

// A screen of lines, each ended by a newline and at most `width` columns wide.
std::string RenderServerView(const ServerView& view, int width);

}  // namespace tidal::client
