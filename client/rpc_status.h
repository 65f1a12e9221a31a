// From grpc::Status to absl::Status and back to its details: typed details travel as payloads of
// the absl::Status, keyed by their type URL. Pure functions.
#pragma once

#include <grpcpp/support/status.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace tidal::client {

// One wrong field of a request, as the server names it.
struct FieldViolation {
  std::string field;  // path from the request, as in "sampling.top_p"
  std::string description;
};

// Same code and message. Every google.rpc detail becomes a payload under its type URL; details that
// cannot be parsed are left out.
absl::Status FromGrpcStatus(const grpc::Status& status);

// The violations of a google.rpc.BadRequest payload; empty where there is none.
std::vector<FieldViolation> FieldViolationsOf(const absl::Status& status);

// The delay of a google.rpc.RetryInfo payload.
std::optional<absl::Duration> RetryDelayOf(const absl::Status& status);

}  // namespace tidal::client
