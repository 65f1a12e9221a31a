// Observers that write down what they hear, for tests to wait on and read. Thread-safe.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "engine/engine_observer.h"
#include "engine/generation_observer.h"

namespace tidal {

class RecordingGenerationObserver : public GenerationObserver {
 public:
  void OnStarted(const GenerationStarted& started) override {
    absl::MutexLock lock(&mutex_);
    started_ = started;
  }
  void OnProgress(int32_t num_prefilled_tokens, int32_t /*num_total_tokens*/) override {
    absl::MutexLock lock(&mutex_);
    progress_.push_back(num_prefilled_tokens);
  }
  void OnDelta(GenerationDelta delta) override {
    absl::MutexLock lock(&mutex_);
    text_ += delta.text;
    for (const SampledToken& token : delta.tokens) token_ids_.push_back(token.token_id);
  }
  void OnFinished(const GenerationFinished& finished) override {
    {
      absl::MutexLock lock(&mutex_);
      finished_ = finished;
    }
    ended_.Notify();
  }
  void OnFailed(const absl::Status& status) override {
    {
      absl::MutexLock lock(&mutex_);
      failure_ = status;
    }
    ended_.Notify();  // aborts where the engine ends a request twice
  }

  void WaitForEnd() const { ended_.WaitForNotification(); }
  bool has_ended() const { return ended_.HasBeenNotified(); }
  void WaitForTokens(size_t count) const {
    absl::MutexLock lock(&mutex_);
    const auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return token_ids_.size() >= count;
    };
    mutex_.Await(absl::Condition(&enough));
  }

  std::optional<GenerationStarted> started() const {
    absl::MutexLock lock(&mutex_);
    return started_;
  }
  std::vector<int32_t> progress() const {
    absl::MutexLock lock(&mutex_);
    return progress_;
  }
  std::string text() const {
    absl::MutexLock lock(&mutex_);
    return text_;
  }
  std::vector<int32_t> token_ids() const {
    absl::MutexLock lock(&mutex_);
    return token_ids_;
  }
  std::optional<GenerationFinished> finished() const {
    absl::MutexLock lock(&mutex_);
    return finished_;
  }
  absl::Status failure() const {
    absl::MutexLock lock(&mutex_);
    return failure_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::optional<GenerationStarted> started_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> progress_ ABSL_GUARDED_BY(mutex_);
  std::string text_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> token_ids_ ABSL_GUARDED_BY(mutex_);
  std::optional<GenerationFinished> finished_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  absl::Notification ended_;
};

class RecordingEngineObserver : public EngineObserver {
 public:
  void OnStep(const StepReport& report) override {
    absl::MutexLock lock(&mutex_);
    steps_.push_back(report);
  }
  void OnFirstToken(absl::Duration time_to_first_token) override {
    absl::MutexLock lock(&mutex_);
    times_to_first_token_.push_back(time_to_first_token);
  }
  void OnInterTokenLatency(absl::Duration latency) override {
    absl::MutexLock lock(&mutex_);
    inter_token_latencies_.push_back(latency);
  }
  void OnPreemption(const std::string& request_id) override {
    absl::MutexLock lock(&mutex_);
    preempted_ids_.push_back(request_id);
  }
  void OnRequestEnded(const RequestReport& report) override {
    absl::MutexLock lock(&mutex_);
    ended_.push_back(report);
  }
  void OnRejected(RejectionReason reason) override {
    absl::MutexLock lock(&mutex_);
    rejections_.push_back(reason);
  }
  void OnLoadChanged(const EngineLoad& load) override {
    absl::MutexLock lock(&mutex_);
    load_ = load;
  }
  void OnFault(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    fault_ = status;
  }

  std::vector<StepReport> steps() const { return Read(steps_); }
  std::vector<absl::Duration> times_to_first_token() const { return Read(times_to_first_token_); }
  std::vector<absl::Duration> inter_token_latencies() const { return Read(inter_token_latencies_); }
  std::vector<std::string> preempted_ids() const { return Read(preempted_ids_); }
  std::vector<RequestReport> ended() const { return Read(ended_); }
  std::vector<RejectionReason> rejections() const { return Read(rejections_); }
  EngineLoad load() const { return Read(load_); }
  absl::Status fault() const { return Read(fault_); }

 private:
  template <typename T>
  T Read(const T& field) const {
    absl::MutexLock lock(&mutex_);
    return field;
  }

  mutable absl::Mutex mutex_;
  std::vector<StepReport> steps_;
  std::vector<absl::Duration> times_to_first_token_;
  std::vector<absl::Duration> inter_token_latencies_;
  std::vector<std::string> preempted_ids_;
  std::vector<RequestReport> ended_;
  std::vector<RejectionReason> rejections_;
  EngineLoad load_;
  absl::Status fault_;
};

}  // namespace tidal
