// The flags of `tidal-client bench`, and the load points that they describe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/bench/length_distribution.h"
#include "client/bench/load_report.h"
#include "client/bench/load_runner.h"
#include "client/command/flag_set.h"
#include "client/command/generate_flags.h"

namespace tidal::client {

struct BenchFlags {
  std::vector<double> rates;  // requests a second
  std::vector<int64_t> concurrencies;
  std::string trace_path;
  std::optional<int64_t> num_requests;
  std::optional<absl::Duration> duration;
  int64_t num_warm_up = 0;
  LengthDistribution prompt_tokens{512};
  LengthDistribution output_tokens{64};
  int32_t num_shared_prefix_tokens = 0;
  uint64_t load_seed = 1;
  int32_t num_connections = 1;
  bool ignore_eos = true;
  ServiceLevelObjective objective;
  std::string json_path;
  std::string svg_path;
  GenerateFlags request;  // sampling, attention, priority
};

// `values` must outlive `flags`.
void AddBenchFlags(FlagSet& flags, BenchFlags* values);

// One load point for each rate or concurrency, one for a trace; one request in flight where nothing
// is named. INVALID_ARGUMENT where flags contradict each other, or the trace cannot be read.
absl::StatusOr<std::vector<LoadPoint>> MakeLoadPoints(const BenchFlags& flags);

// "open loop, Poisson", "closed loop", "trace FILE".
std::string LoadName(const BenchFlags& flags);

}  // namespace tidal::client
