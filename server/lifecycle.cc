#include "server/lifecycle.h"

namespace tidal::server {

ActiveCall::~ActiveCall() {
  if (lifecycle_ != nullptr) lifecycle_->EndCall();
}

Phase Lifecycle::phase() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return phase_;
}

absl::StatusOr<ActiveCall> Lifecycle::Admit() {
  const std::lock_guard<std::mutex> lock(mutex_);
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
  const std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::kLoading) return;
  state_ = state;
  phase_ = Phase::kServing;
}

void Lifecycle::Drain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  phase_ = Phase::kDraining;
}

void Lifecycle::Stop() {
  const std::lock_guard<std::mutex> lock(mutex_);
  phase_ = Phase::kStopped;
}

const ServingState* Lifecycle::state() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return state_;
}

void Lifecycle::RequestDrain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  is_drain_requested_ = true;
  changed_.notify_all();
}

void Lifecycle::OnSignal() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++num_signals_;
  changed_.notify_all();
}

void Lifecycle::OnEngineFault(const absl::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fault_.Update(status);
  changed_.notify_all();
}

absl::Status Lifecycle::fault() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return fault_;
}

bool Lifecycle::WaitForEnd(absl::Duration timeout) {
  return WaitUntil(timeout,
                   [this] { return num_signals_ > 0 || is_drain_requested_ || !fault_.ok(); });
}

bool Lifecycle::WaitForUrgency(absl::Duration timeout) {
  return WaitUntil(timeout, [this] { return IsUrgent(); });
}

bool Lifecycle::WaitForCalls(absl::Duration timeout) {
  WaitUntil(timeout, [this] { return num_active_calls_ == 0 || IsUrgent(); });
  return num_active_calls() == 0;
}

bool Lifecycle::WaitForCallsUninterrupted(absl::Duration timeout) {
  return WaitUntil(timeout, [this] { return num_active_calls_ == 0; });
}

int Lifecycle::num_signals() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_signals_;
}

int Lifecycle::num_active_calls() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_active_calls_;
}

void Lifecycle::EndCall() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (--num_active_calls_ == 0) changed_.notify_all();
}

}  // namespace tidal::server
