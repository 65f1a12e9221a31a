// What was seen of one request, as its client saw it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace tidal::client {

// A delta of the stream that brought tokens.
struct TokenArrival {
  absl::Duration time;
  int32_t num_tokens = 0;
};

// Times count from the beginning of the load point.
struct RequestRecord {
  // When the request was due: its planned arrival, or in a closed loop the moment of sending. All
  // latencies count from here.
  absl::Duration scheduled;
  absl::Duration sent;
  absl::Duration ended;
  std::vector<TokenArrival> tokens;
  absl::StatusCode code = absl::StatusCode::kOk;
  int32_t num_prompt_tokens = 0;
  // Of the server's usage; 0 where the request failed.
  int32_t num_cached_prompt_tokens = 0;
  int64_t attended_tokens = 0;
  int64_t available_tokens = 0;
  // Warm-up requests are load, and are not measured.
  bool is_warm_up = false;
  // Cancelled by ourselves because the run was interrupted: neither a success nor an error.
  bool is_abandoned = false;
};

}  // namespace tidal::client
