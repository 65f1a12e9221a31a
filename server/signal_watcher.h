// Turns SIGTERM and SIGINT into Lifecycle::OnSignal, and SIGUSR1 into DebugDump::Write, on a thread
// that waits for them. To be created before any other thread, which all inherit that the signals
// are blocked.
#pragma once

#include <signal.h>

#include <atomic>
#include <thread>

#include "server/debug_dump.h"
#include "server/lifecycle.h"

namespace tidal::server {

class SignalWatcher {
 public:
  // Both must outlive the watcher. A signal to end while it is loading, and a third one at any
  // time, end the process at once: in the former case there is nothing to lose.
  SignalWatcher(Lifecycle* lifecycle, DebugDump* debug_dump);
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Watch();

  Lifecycle* lifecycle_;
  DebugDump* debug_dump_;
  sigset_t signals_;
  std::atomic<bool> is_stopping_ = false;
  std::thread thread_;
};

}  // namespace tidal::server
