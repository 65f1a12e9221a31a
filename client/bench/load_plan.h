// What a load point sends, and when: made before it begins, so that it is the same for the same
// seed whatever the server does. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/bench/length_distribution.h"

namespace tidal::client {

// The most requests of one load point.
inline constexpr int64_t kMaxRequests = 10'000'000;

struct PlannedRequest {
  // Counted from the beginning of the load point. In a closed loop 0: a request is sent as soon as
  // one before it ends.
  absl::Duration arrival;
  int32_t num_prompt_tokens = 0;
  int32_t num_output_tokens = 0;
};

// Arrivals of a Poisson process of `rate` a second: gaps are exponential of mean 1 / rate. Stops
// after `num_requests`, or before the first arrival past `duration`. `rate` is above 0.
std::vector<absl::Duration> PoissonArrivals(double rate, int64_t num_requests,
                                            absl::Duration duration, uint64_t seed);

// Gives each arrival its lengths.
std::vector<PlannedRequest> PlanRequests(const std::vector<absl::Duration>& arrivals,
                                         const LengthDistribution& prompt_tokens,
                                         const LengthDistribution& output_tokens, uint64_t seed);

// Reads a trace: JSON lines {"arrival_seconds":0.25,"prompt_tokens":512,"output_tokens":64}, or CSV
// whose first line names these three columns in any order; other fields and columns are ignored.
// Sorted by arrival, which is 0 or more. INVALID_ARGUMENT names the line, the field and its value.
absl::StatusOr<std::vector<PlannedRequest>> ParseTrace(absl::string_view text);

}  // namespace tidal::client
