#include "client/call_canceller.h"

#include <grpcpp/client_context.h>

namespace tidal::client {

bool CallCanceller::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (context_ == nullptr) return false;
  context_->TryCancel();
  return true;
}

bool CallCanceller::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void CallCanceller::Attach(grpc::ClientContext* context) {
  absl::MutexLock lock(&mutex_);
  context_ = context;
  // Before the call has begun this makes it fail at its start.
  if (cancelled_) context_->TryCancel();
}

void CallCanceller::Detach() {
  absl::MutexLock lock(&mutex_);
  context_ = nullptr;
}

}  // namespace tidal::client
