#include "client/call_canceller.h"

#include <grpcpp/client_context.h>

#include <utility>

namespace tidal::client {

bool CallCanceller::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (!cancel_call_) return false;
  cancel_call_();
  return true;
}

bool CallCanceller::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void CallCanceller::SetCallInFlight(std::function<void()> cancel) {
  absl::MutexLock lock(&mutex_);
  cancel_call_ = std::move(cancel);
  if (cancelled_ && cancel_call_) cancel_call_();
}

bool CallCanceller::WaitForCancel(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), timeout);
}

void CallCanceller::Attach(grpc::ClientContext* context) {
  // Cancelling a context before its call has begun makes the call fail at its start.
  SetCallInFlight([context] { context->TryCancel(); });
}

void CallCanceller::Detach() { SetCallInFlight(nullptr); }

}  // namespace tidal::client
