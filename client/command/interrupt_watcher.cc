#include "client/command/interrupt_watcher.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>

#include "client/command/exit_code.h"

namespace tidal::client {
namespace {

sigset_t InterruptSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

InterruptWatcher::InterruptWatcher(CallCanceller& canceller) : canceller_(canceller) {
  const sigset_t set = InterruptSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Watch(); });
}

InterruptWatcher::~InterruptWatcher() {
  stopping_ = true;
  // Wakes the thread from sigwait; the signal is blocked everywhere.
  pthread_kill(thread_.native_handle(), SIGINT);
  thread_.join();
}

void InterruptWatcher::Watch() {
  const sigset_t set = InterruptSet();
  int signal = 0;
  bool interrupted = false;
  while (sigwait(&set, &signal) == 0 && !stopping_) {
    // Output is flushed at every write: nothing is lost by leaving without destructors.
    if (interrupted || !canceller_.Cancel()) _exit(static_cast<int>(ExitCode::kInterrupted));
    interrupted = true;
  }
}

}  // namespace tidal::client
