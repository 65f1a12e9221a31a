#include "server/lifecycle.h"

namespace tidal::server {

ActiveCall::~ActiveCall() {
  if (lifecycle_ != nullptr) lifecycle_->EndCall();
}

Phase Lifecycle::phase() const {
  absl::MutexLock lock(&mutex_);
  return phase_;
}

absl::StatusOr<ActiveCall> Lifecycle::Admit() {
  absl::MutexLock lock(&mutex_);
  switch (phase_) {
    case Phase::kLoading:
      return absl::UnavailableError("the server is loading its model");
    case Phase::kServing:
      break;
    case Phase::kDraining:
    case Phase::kStopped:
      return absl::UnavailableError("the server is shutting down");
  }
  ++num_active_calls_;
  return ActiveCall(this, state_);
}

void Lifecycle::Serve(const ServingState* state) {
  absl::MutexLock lock(&mutex_);
  if (phase_ != Phase::kLoading) return;
  state_ = state;
  phase_ = Phase::kServing;
}

void Lifecycle::Drain() {
  absl::MutexLock lock(&mutex_);
  phase_ = Phase::kDraining;
}

void Lifecycle::Stop() {
  absl::MutexLock lock(&mutex_);
  phase_ = Phase::kStopped;
}

void Lifecycle::OnSignal() {
  absl::MutexLock lock(&mutex_);
  ++num_signals_;
}

void Lifecycle::OnEngineFault(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  fault_.Update(status);
}

absl::Status Lifecycle::fault() const {
  absl::MutexLock lock(&mutex_);
  return fault_;
}

bool Lifecycle::WaitForEnd(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto has_come = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return num_signals_ > 0 || !fault_.ok();
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&has_come), timeout);
}

bool Lifecycle::WaitForUrgency(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto has_come = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return IsUrgent(); };
  return mutex_.AwaitWithTimeout(absl::Condition(&has_come), timeout);
}

bool Lifecycle::WaitForCalls(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto has_come = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return num_active_calls_ == 0 || IsUrgent();
  };
  mutex_.AwaitWithTimeout(absl::Condition(&has_come), timeout);
  return num_active_calls_ == 0;
}

bool Lifecycle::WaitForCallsUninterrupted(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto has_come = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return num_active_calls_ == 0;
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&has_come), timeout);
}

int Lifecycle::num_signals() const {
  absl::MutexLock lock(&mutex_);
  return num_signals_;
}

int Lifecycle::num_active_calls() const {
  absl::MutexLock lock(&mutex_);
  return num_active_calls_;
}

void Lifecycle::EndCall() {
  absl::MutexLock lock(&mutex_);
  --num_active_calls_;
}

}  // namespace tidal::server
