#include "server/signal_watcher.h"

#include <pthread.h>

#include <cstdlib>
#include <string>

#include "server/logging.h"

namespace tidal::server {
namespace {

// Shells' convention for an end by a signal.
constexpr int kSignalExitBase = 128;

}  // namespace

SignalWatcher::SignalWatcher(Lifecycle* lifecycle, DebugDump* debug_dump)
    : lifecycle_(lifecycle), debug_dump_(debug_dump) {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  sigaddset(&signals_, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  is_stopping_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

void SignalWatcher::Watch() {
  while (true) {
    int signal = 0;
    sigwait(&signals_, &signal);
    if (is_stopping_) return;
    if (signal == SIGUSR1) {
      debug_dump_->Write();
      continue;
    }
    const int num_signals = lifecycle_->num_signals() + 1;
    Log(LogLevel::info, "signal received",
        {{"signal", std::string(signal == SIGTERM ? "SIGTERM" : "SIGINT")},
         {"count", int64_t{num_signals}}});
    if (lifecycle_->phase() == Phase::kLoading) std::_Exit(EXIT_SUCCESS);
    if (num_signals > 2) std::_Exit(kSignalExitBase + signal);
    lifecycle_->OnSignal();
  }
}

}  // namespace tidal::server
