#include "client/bench/bench_flags.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/bench/random.h"

namespace tidal::client {
namespace {

constexpr double kMinRate = 1e-3;
constexpr double kMaxRate = 1e5;
constexpr int64_t kMaxConcurrency = 100'000;
constexpr int32_t kMaxConnections = 256;
constexpr int64_t kDefaultNumRequests = 100;
// What a closed loop of a given duration is planned for at most.
constexpr int64_t kMaxTimedRequests = 1'000'000;

absl::Status ParseRates(absl::string_view text, std::vector<double>* rates) {
  rates->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    double rate = 0;
    if (!absl::SimpleAtod(part, &rate) || !(rate >= kMinRate && rate <= kMaxRate)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is no rate of ", kMinRate, " to ", kMaxRate, " a second"));
    }
    rates->push_back(rate);
  }
  return absl::OkStatus();
}

absl::Status ParseConcurrencies(absl::string_view text, std::vector<int64_t>* concurrencies) {
  concurrencies->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int64_t concurrency = 0;
    if (!absl::SimpleAtoi(part, &concurrency) || concurrency < 1 || concurrency > kMaxConcurrency) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is no number of 1 to ", kMaxConcurrency));
    }
    concurrencies->push_back(concurrency);
  }
  return absl::OkStatus();
}

void AddLengthFlag(FlagSet& flags, absl::string_view name, LengthDistribution* lengths,
                   absl::string_view help) {
  flags.AddCustom(
      name,
      [lengths](absl::string_view text) {
        auto parsed = LengthDistribution::Parse(text);
        if (!parsed.ok()) return parsed.status();
        *lengths = *std::move(parsed);
        return absl::OkStatus();
      },
      "LENGTHS", help);
}

void AddLoadFlags(FlagSet& flags, BenchFlags* values) {
  flags.AddCustom(
      "rate", [values](absl::string_view text) { return ParseRates(text, &values->rates); },
      "R,...", "open loop: Poisson arrivals at so many requests a second, one rate after another");
  flags.AddCustom(
      "concurrency",
      [values](absl::string_view text) { return ParseConcurrencies(text, &values->concurrencies); },
      "N,...", "closed loop: so many requests in flight; 1 by default");
  flags.Add("trace", &values->trace_path, "PATH",
            "open loop: arrivals and lengths of a JSONL or CSV file");
  flags.Add("num_requests", &values->num_requests, "N",
            "measured requests of each rate or concurrency; 100 by default");
  flags.Add("duration", &values->duration, "DURATION",
            "send for so long, instead of --num_requests or at most");
  flags.Add("warmup_requests", &values->num_warm_up, "N",
            "requests of each rate or concurrency before the measured ones");
  AddLengthFlag(flags, "prompt_tokens", &values->prompt_tokens,
                "N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA:MAX or file:PATH; 512 by default");
  AddLengthFlag(flags, "output_tokens", &values->output_tokens, "likewise; 64 by default");
  flags.Add("shared_prefix_tokens", &values->num_shared_prefix_tokens, "N",
            "first tokens that all prompts share; 0 by default");
  flags.Add("load_seed", &values->load_seed, "N", "of arrivals, lengths and prompts; 1 by default");
  flags.Add("ignore_eos", &values->ignore_eos, "",
            "generate the whole output length; on by default");
  flags.Add("connections", &values->num_connections, "N",
            "connections that the requests take in turn; 1 by default");
}

absl::Status CheckRanges(const BenchFlags& flags) {
  const auto check = [](absl::string_view name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("flag --", name, " has the value '", value,
                                                   "': it must be ", low, " to ", high));
  };
  for (const absl::Status& status :
       {check("num_requests", flags.num_requests.value_or(1), 1, kMaxRequests),
        check("warmup_requests", flags.num_warm_up, 0, kMaxRequests),
        check("shared_prefix_tokens", flags.num_shared_prefix_tokens, 0, kMaxLengthTokens),
        check("connections", flags.num_connections, 1, kMaxConnections)}) {
    if (!status.ok()) return status;
  }
  const int num_kinds = (flags.rates.empty() ? 0 : 1) + (flags.concurrencies.empty() ? 0 : 1) +
                        (flags.trace_path.empty() ? 0 : 1);
  if (num_kinds > 1) {
    return absl::InvalidArgumentError("--rate, --concurrency and --trace exclude each other");
  }
  if (flags.duration && *flags.duration <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("flag --duration has the value '",
                                                   absl::FormatDuration(*flags.duration),
                                                   "': it must be above 0"));
  }
  return absl::OkStatus();
}

int64_t NumRequests(const BenchFlags& flags) {
  const int64_t num_measured =
      flags.num_requests.value_or(flags.duration ? kMaxTimedRequests : kDefaultNumRequests);
  return num_measured + flags.num_warm_up;
}

absl::StatusOr<LoadPoint> MakeTracePoint(const BenchFlags& flags) {
  std::ifstream file(flags.trace_path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot open ", flags.trace_path, ": ", strerror(errno)));
  }
  std::ostringstream text;
  text << file.rdbuf();
  auto requests = ParseTrace(text.str());
  if (!requests.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.trace_path, ": ", requests.status().message()));
  }
  LoadPoint point;
  point.requests = *std::move(requests);
  if (static_cast<int64_t>(point.requests.size()) > NumRequests(flags) && flags.num_requests) {
    point.requests.resize(static_cast<std::size_t>(NumRequests(flags)));
  }
  return point;
}

}  // namespace

void AddBenchFlags(FlagSet& flags, BenchFlags* values) {
  AddLoadFlags(flags, values);
  flags.Add("slo_ttft", &values->objective.ttft, "DURATION", "objective: time to first token");
  flags.Add("slo_itl", &values->objective.itl, "DURATION",
            "objective: longest interval between tokens of a request");
  flags.Add("slo_tpot", &values->objective.tpot, "DURATION",
            "objective: mean interval between tokens of a request");
  flags.Add("slo_e2e", &values->objective.e2e, "DURATION", "objective: end to end");
  flags.Add("json_output", &values->json_path, "PATH", "write the figures as JSON");
  flags.Add("svg_output", &values->svg_path, "PATH", "draw latency against offered load");
  AddSamplingFlags(flags, &values->request);
  AddAttentionFlags(flags, &values->request);
}

absl::StatusOr<std::vector<LoadPoint>> MakeLoadPoints(const BenchFlags& flags) {
  if (absl::Status status = CheckRanges(flags); !status.ok()) return status;
  std::vector<LoadPoint> points;
  if (!flags.trace_path.empty()) {
    auto point = MakeTracePoint(flags);
    if (!point.ok()) return point.status();
    points.push_back(*std::move(point));
  }
  const absl::Duration duration = flags.duration.value_or(absl::InfiniteDuration());
  for (const double rate : flags.rates) {
    LoadPoint point;
    const uint64_t seed = DeriveSeed(flags.load_seed, 2 * points.size());
    point.requests =
        PlanRequests(PoissonArrivals(rate, NumRequests(flags), duration, seed), flags.prompt_tokens,
                     flags.output_tokens, DeriveSeed(flags.load_seed, 2 * points.size() + 1));
    point.offered_rate = rate;
    points.push_back(std::move(point));
  }
  std::vector<int64_t> concurrencies = flags.concurrencies;
  if (points.empty() && concurrencies.empty()) concurrencies = {1};
  for (const int64_t concurrency : concurrencies) {
    LoadPoint point;
    const std::vector<absl::Duration> arrivals(static_cast<std::size_t>(NumRequests(flags)));
    point.requests = PlanRequests(arrivals, flags.prompt_tokens, flags.output_tokens,
                                  DeriveSeed(flags.load_seed, 2 * points.size() + 1));
    point.concurrency = concurrency;
    points.push_back(std::move(point));
  }
  for (LoadPoint& point : points) {
    point.num_warm_up = flags.num_warm_up;
    point.max_duration = duration;
  }
  return points;
}

std::string LoadName(const BenchFlags& flags) {
  if (!flags.trace_path.empty()) return absl::StrCat("trace ", flags.trace_path);
  return flags.rates.empty() ? "closed loop" : "open loop, Poisson arrivals";
}

}  // namespace tidal::client
