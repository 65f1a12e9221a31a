// A unary call that is answered at once, from its admission to its line in the log. On the thread
// that gRPC calls the handler on; not thread-safe.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/call_admission.h"
#include "server/generate_call.h"
#include "server/lifecycle.h"

namespace tidal::server {

// What gRPC says of a call. Its trace context, where it has a valid one, is echoed.
CallInfo DescribeCall(grpc::CallbackServerContext* context, const char* method);

class BriefCall {
 public:
  BriefCall(const CallAdmission& admission, grpc::CallbackServerContext* context,
            const char* method);

  // OK and what to serve it with, or why it is not served.
  const absl::StatusOr<ActiveCall>& admission() const { return admission_; }

  // Once.
  grpc::ServerUnaryReactor* Finish(const absl::Status& status);

 private:
  grpc::CallbackServerContext* const context_;
  const absl::Time arrival_time_;
  CallInfo info_;
  const absl::StatusOr<ActiveCall> admission_;
};

}  // namespace tidal::server
