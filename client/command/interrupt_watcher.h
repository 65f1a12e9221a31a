// Turns Ctrl-C into the cancellation of the running call; with no call in flight, or at the second
// Ctrl-C, the process ends at once with exit code 130.
#pragma once

#include <atomic>
#include <thread>

#include "client/call_canceller.h"

namespace tidal::client {

// At most one in a process. Make it before any other thread is started: SIGINT is blocked in the
// calling thread and in those that it starts later, and taken by the watcher's own thread.
class InterruptWatcher {
 public:
  // `canceller` must outlive the watcher.
  explicit InterruptWatcher(CallCanceller& canceller);
  ~InterruptWatcher();
  InterruptWatcher(const InterruptWatcher&) = delete;
  InterruptWatcher& operator=(const InterruptWatcher&) = delete;

 private:
  void Watch();

  CallCanceller& canceller_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

}  // namespace tidal::client
