// Cancels a running call, or work of many calls, from another thread, as when the user presses
// Ctrl-C.
// Thread-safe. It must outlive the call that it was given to.
#pragma once

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace grpc {
class ClientContext;
}

namespace tidal::client {

class CallCanceller {
 public:
  CallCanceller() = default;
  CallCanceller(const CallCanceller&) = delete;
  CallCanceller& operator=(const CallCanceller&) = delete;

  // Cancels the call in flight, and every one that begins later: it then ends with CANCELLED.
  // Returns whether a call was in flight.
  bool Cancel();

  // True once Cancel was called.
  bool cancelled() const;

  // From now on `cancel` counts as the call in flight: Cancel calls it, and it is called at once
  // where Cancel was called before. It must neither block nor use this canceller. An empty function
  // ends that, and waits for one that runs.
  void SetCallInFlight(std::function<void()> cancel);

  // Waits so long, or until Cancel is called. Returns cancelled(). Waiting is no call in flight.
  bool WaitForCancel(absl::Duration timeout) const;

 private:
  friend class InferenceClient;

  // `context` stays valid until Detach. At most one call at a time.
  void Attach(grpc::ClientContext* context);
  void Detach();

  mutable absl::Mutex mutex_;
  std::function<void()> cancel_call_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace tidal::client
