// A plain HTTP GET.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace tidal::client {

// The body of the answer, which may have 64 MiB. UNAVAILABLE where the server cannot be reached,
// does not answer within `timeout`, or answers with another status than 200; INVALID_ARGUMENT where
// `url` is none of http or https.
absl::StatusOr<std::string> HttpGet(const std::string& url, absl::Duration timeout);

}  // namespace tidal::client
