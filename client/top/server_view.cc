#include "client/top/server_view.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

namespace tidal::client {
namespace {

constexpr double kMillisecondsPerSecond = 1000;
constexpr int kBarWidth = 30;

// Samples by name and labels, to find those of an earlier scrape.
class SampleIndex {
 public:
  explicit SampleIndex(const std::vector<MetricSample>& samples) {
    for (const MetricSample& sample : samples) values_[{sample.name, sample.labels}] = sample.value;
  }
  double ValueOf(const MetricSample& sample) const {
    const auto it = values_.find({sample.name, sample.labels});
    return it == values_.end() ? 0 : it->second;
  }

 private:
  std::map<std::pair<std::string, std::map<std::string, std::string>>, double> values_;
};

std::string LabelOf(const MetricSample& sample, const std::string& name) {
  const auto it = sample.labels.find(name);
  return it == sample.labels.end() ? "" : it->second;
}

std::optional<double> GaugeOf(const std::vector<MetricSample>& samples, absl::string_view name) {
  for (const MetricSample& sample : samples) {
    if (sample.name == name) return sample.value;
  }
  return std::nullopt;
}

double Increase(const MetricSample& sample, const SampleIndex& earlier) {
  const double before = earlier.ValueOf(sample);
  return sample.value < before ? sample.value : sample.value - before;
}

HistogramPercentiles NewPercentiles(const std::vector<MetricSample>& now,
                                    const SampleIndex& earlier, const std::string& name) {
  CumulativeBuckets buckets;
  for (const MetricSample& sample : now) {
    double bound = 0;
    if (sample.name == name + "_bucket" && absl::SimpleAtod(LabelOf(sample, "le"), &bound)) {
      buckets[bound] += Increase(sample, earlier);
    }
  }
  return PercentilesOf(buckets);
}

double Percentile(const CumulativeBuckets& buckets, double percent) {
  const double rank = percent / 100 * buckets.rbegin()->second;
  double lower_bound = 0;
  double below = 0;
  for (const auto& [bound, count] : buckets) {
    if (count >= rank && count > below) {
      if (bound == std::numeric_limits<double>::infinity()) return lower_bound;
      return lower_bound + (bound - lower_bound) * (rank - below) / (count - below);
    }
    lower_bound = bound;
    below = count;
  }
  return lower_bound;
}

void CountErrors(const std::vector<MetricSample>& now, const SampleIndex& earlier,
                 ServerView* view) {
  for (const MetricSample& sample : now) {
    if (sample.name != "tidal_requests_total") continue;
    const double increase = Increase(sample, earlier);
    view->requests_per_second += increase;
    const std::string code = LabelOf(sample, "code");
    if (code == "OK" || sample.value == 0) continue;
    auto& [fresh, total] = view->errors_by_code[code];
    fresh += increase;
    total += sample.value;
  }
}

std::string OrDash(const std::optional<double>& value) {
  return value.has_value() ? absl::StrFormat("%.0f", *value) : "-";
}

std::string ShareText(const std::optional<double>& share) {
  if (!share.has_value()) return "-";
  const auto filled =
      static_cast<std::size_t>(std::lround(std::clamp(*share, 0.0, 1.0) * kBarWidth));
  return absl::StrFormat("%5.1f %%  [%s%s]", 100 * *share, std::string(filled, '#'),
                         std::string(kBarWidth - filled, '.'));
}

std::string PercentilesText(const HistogramPercentiles& percentiles) {
  if (percentiles.count == 0) return "-";
  return absl::StrFormat("p50 %.1f   p90 %.1f   p99 %.1f ms   (%.0f new)",
                         percentiles.p50 * kMillisecondsPerSecond,
                         percentiles.p90 * kMillisecondsPerSecond,
                         percentiles.p99 * kMillisecondsPerSecond, percentiles.count);
}

}  // namespace

HistogramPercentiles PercentilesOf(const CumulativeBuckets& buckets) {
  HistogramPercentiles percentiles;
  if (buckets.empty() || buckets.rbegin()->second <= 0) return percentiles;
  percentiles.count = buckets.rbegin()->second;
  percentiles.p50 = Percentile(buckets, 50);
  percentiles.p90 = Percentile(buckets, 90);
  percentiles.p99 = Percentile(buckets, 99);
  return percentiles;
}

ServerView MakeServerView(const std::vector<MetricSample>& earlier,
                          const std::vector<MetricSample>& now, absl::Duration interval) {
  const SampleIndex index(earlier);
  ServerView view;
  view.running = GaugeOf(now, "tidal_requests_running");
  view.waiting = GaugeOf(now, "tidal_requests_waiting");
  view.waiting_prompt_tokens = GaugeOf(now, "tidal_waiting_prompt_tokens");
  view.kv_cache_usage = GaugeOf(now, "tidal_kv_cache_usage_ratio");
  view.total_preemptions = GaugeOf(now, "tidal_preemptions_total").value_or(0);
  double attended = 0;
  double available = 0;
  for (const MetricSample& sample : now) {
    const double increase = Increase(sample, index);
    if (sample.name == "tidal_prompt_tokens_total") view.prompt_tokens_per_second += increase;
    if (sample.name == "tidal_generation_tokens_total") {
      view.generated_tokens_per_second += increase;
    }
    if (sample.name == "tidal_preemptions_total") view.new_preemptions += increase;
    if (sample.name == "tidal_attention_tokens_total") {
      (LabelOf(sample, "kind") == "attended" ? attended : available) += increase;
    }
  }
  if (available > 0) view.attended_share = attended / available;
  CountErrors(now, index, &view);
  const double seconds = std::max(absl::ToDoubleSeconds(interval), 1e-3);
  view.prompt_tokens_per_second /= seconds;
  view.generated_tokens_per_second /= seconds;
  view.requests_per_second /= seconds;
  view.ttft = NewPercentiles(now, index, "tidal_time_to_first_token_seconds");
  view.itl = NewPercentiles(now, index, "tidal_inter_token_latency_seconds");
  return view;
}

std::string RenderServerView(const ServerView& view, int width) {
  std::string text;
  const auto add = [&text, width](absl::string_view name, absl::string_view value) {
    const std::string line = absl::StrFormat("%-16s%s", name, value);
    absl::StrAppend(&text, line.substr(0, static_cast<std::size_t>(std::max(width, 1))), "\n");
  };
  add("requests",
      absl::StrCat(OrDash(view.running), " running   ", OrDash(view.waiting), " waiting (",
                   OrDash(view.waiting_prompt_tokens), " prompt tokens)"));
  add("ended", absl::StrFormat("%.1f requests/s", view.requests_per_second));
  add("tokens/s", absl::StrFormat("%.1f prompt   %.1f generated", view.prompt_tokens_per_second,
                                  view.generated_tokens_per_second));
  add("TTFT", PercentilesText(view.ttft));
  add("ITL", PercentilesText(view.itl));
  add("KV cache used", ShareText(view.kv_cache_usage));
  add("attended share", ShareText(view.attended_share));
  add("preemptions",
      absl::StrFormat("%.0f new   %.0f in all", view.new_preemptions, view.total_preemptions));
  if (view.errors_by_code.empty()) add("errors", "none");
  for (const auto& [code, counts] : view.errors_by_code) {
    add("errors",
        absl::StrFormat("%-20s %.0f new   %.0f in all", code, counts.first, counts.second));
  }
  return text;
}

}  // namespace tidal::client
