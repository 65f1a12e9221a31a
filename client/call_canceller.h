// Cancels a running call from another thread, as when the user presses Ctrl-C.
// Thread-safe. It must outlive the call that it was given to.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

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

 private:
  friend class InferenceClient;

  // `context` stays valid until Detach. At most one call at a time.
  void Attach(grpc::ClientContext* context);
  void Detach();

  mutable absl::Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace tidal::client
