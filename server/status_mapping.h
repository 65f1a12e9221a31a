// The one way from absl::Status to what a client sees: code and message as gRPC status, and
// google.rpc details in the trailing metadata (grpc-status-details-bin). Details travel inside
// absl::Status as payloads whose type URL is that of their protobuf message. Stateless.
#pragma once

#include <grpcpp/support/status.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"

namespace tidal::server {

inline constexpr char kBadRequestTypeUrl[] = "type.googleapis.com/google.rpc.BadRequest";
inline constexpr char kRetryInfoTypeUrl[] = "type.googleapis.com/google.rpc.RetryInfo";

// What RetryInfo says where the status does not say it.
inline constexpr absl::Duration kDefaultRetryDelay = absl::Seconds(1);

// Longer messages are cut: clients accept 8 KiB of trailing metadata, and a message is in it twice.
inline constexpr size_t kMaxStatusMessageBytes = 1536;

void SetBadRequest(const google::rpc::BadRequest& bad_request, absl::Status* status);
void SetRetryDelay(absl::Duration delay, absl::Status* status);

// The code is the same number. RESOURCE_EXHAUSTED and UNAVAILABLE get RetryInfo.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The code in gRPC's spelling: "OK", "INVALID_ARGUMENT", ...
std::string CodeName(grpc::StatusCode code);
std::string CodeName(const absl::Status& status);

// OK to UNAUTHENTICATED, all that gRPC knows.
std::vector<grpc::StatusCode> AllCodes();

}  // namespace tidal::server
