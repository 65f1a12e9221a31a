// Where the server is in its life, who may be served now, and what ends it. Thread-safe.
//
//   loading -> serving -> draining -> stopped
//
// Calls are admitted while serving only. Signals and an engine's fault are noted here; main waits
// for them here.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/serving_state.h"

namespace tidal::server {

enum class Phase : uint8_t { kLoading, kServing, kDraining, kStopped };

class Lifecycle;

// One admitted call; its end is its admission's. Move-only.
class ActiveCall {
 public:
  ActiveCall(ActiveCall&& other) noexcept
      : lifecycle_(std::exchange(other.lifecycle_, nullptr)), state_(other.state_) {}
  ActiveCall& operator=(ActiveCall&&) = delete;
  ~ActiveCall();

  const ServingState& state() const { return *state_; }

 private:
  friend class Lifecycle;
  ActiveCall(Lifecycle* lifecycle, const ServingState* state)
      : lifecycle_(lifecycle), state_(state) {}

  Lifecycle* lifecycle_;
  const ServingState* state_;
};

class Lifecycle {
 public:
  Lifecycle() = default;
  Lifecycle(const Lifecycle&) = delete;
  Lifecycle& operator=(const Lifecycle&) = delete;

  Phase phase() const;

  // UNAVAILABLE unless serving. Any thread.
  absl::StatusOr<ActiveCall> Admit();

  // From loading to serving; `state` must outlive every admitted call.
  void Serve(const ServingState* state);
  // No call is admitted any more.
  void Drain();
  void Stop();

  // What calls are served with; null while loading. Any thread.
  const ServingState* state() const;

  // Somebody else than a signal asks for the end: it begins as with the first signal, and a signal
  // that follows is the first one still.
  void RequestDrain();
  // A signal that asks for the end: the second one asks for it at once.
  void OnSignal();
  // The engine has failed for good.
  void OnEngineFault(const absl::Status& status);
  // OK, or why the engine has failed.
  absl::Status fault() const;

  // Each returns true where what it waits for has come, false after `timeout`.
  // A signal, a request to drain, or a fault:
  bool WaitForEnd(absl::Duration timeout);
  // A second signal or a fault:
  bool WaitForUrgency(absl::Duration timeout);
  // No admitted call is left. Also returns, false, on a second signal or a fault.
  bool WaitForCalls(absl::Duration timeout);
  // As WaitForCalls, whatever signals come.
  bool WaitForCallsUninterrupted(absl::Duration timeout);

  int num_signals() const;
  int num_active_calls() const;

 private:
  friend class ActiveCall;

  void EndCall();
  bool IsUrgent() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return num_signals_ >= 2 || !fault_.ok();
  }

  // Returns condition(), true or not, once it is true or the time is over. Takes the lock.
  template <typename Condition>
  bool WaitUntil(absl::Duration timeout, Condition condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout), condition);
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a call has ended, or what ends the server has come
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kLoading;
  const ServingState* state_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int num_active_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_drain_requested_ ABSL_GUARDED_BY(mutex_) = false;
  int num_signals_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tidal::server
