// Observers that write down what they hear, for tests to wait on and read. Thread-safe.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "engine/engine_observer.h"
#include "engine/generation_observer.h"

namespace tidal {

// text, token_ids and logprobs are those of choice 0.
class RecordingGenerationObserver : public GenerationObserver {
 public:
  void OnStarted(const GenerationStarted& started) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    started_ = started;
  }
  void OnProgress(int32_t num_prefilled_tokens, int32_t /*num_total_tokens*/) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    progress_.push_back(num_prefilled_tokens);
  }
  void OnDelta(GenerationDelta delta) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (delta.choice_index == 0) {
      text_ += delta.text;
      tokens_.insert(tokens_.end(), delta.tokens.begin(), delta.tokens.end());
    }
    Choice& choice = choices_[delta.choice_index];
    for (const SampledToken& token : delta.tokens) choice.token_ids.push_back(token.token_id);
    if (delta.ending.has_value()) choice.endings.push_back(*delta.ending);
    changed_.notify_all();
  }
  void OnFinished(const GenerationFinished& finished) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_ = finished;
    ++num_endings_;
    changed_.notify_all();
  }
  void OnFailed(const absl::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    failure_ = status;
    ++num_endings_;
    changed_.notify_all();
  }

  void WaitForEnd() const {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return num_endings_ > 0; });
  }
  // Or for the end, where that comes first.
  void WaitForTokens(size_t count) const {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return tokens_.size() >= count || num_endings_ > 0; });
  }
  // How often the engine has ended this request; once is right.
  int num_endings() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return num_endings_;
  }

  std::optional<GenerationStarted> started() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return started_;
  }
  std::vector<int32_t> progress() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return progress_;
  }
  std::string text() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return text_;
  }
  std::vector<int32_t> token_ids() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int32_t> token_ids;
    for (const SampledToken& token : tokens_) token_ids.push_back(token.token_id);
    return token_ids;
  }
  std::vector<float> logprobs() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<float> logprobs;
    for (const SampledToken& token : tokens_) logprobs.push_back(token.logprob);
    return logprobs;
  }
  struct Choice {
    std::vector<int32_t> token_ids;
    std::vector<ChoiceEnding> endings;  // one is right
  };
  std::map<int32_t, Choice> choices() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return choices_;
  }
  std::optional<GenerationFinished> finished() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return finished_;
  }
  absl::Status failure() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
  }

 private:
  mutable std::mutex mutex_;
  std::optional<GenerationStarted> started_ ABSL_GUARDED_BY(mutex_);
  std::vector<int32_t> progress_ ABSL_GUARDED_BY(mutex_);
  std::string text_ ABSL_GUARDED_BY(mutex_);
  std::vector<SampledToken> tokens_ ABSL_GUARDED_BY(mutex_);  // of choice 0, as the text
  std::map<int32_t, Choice> choices_ ABSL_GUARDED_BY(mutex_);
  std::optional<GenerationFinished> finished_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  int num_endings_ ABSL_GUARDED_BY(mutex_) = 0;
  mutable std::condition_variable changed_;
};

class RecordingEngineObserver : public EngineObserver {
 public:
  void OnStep(const StepReport& report) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    steps_.push_back(report);
  }
  void OnFirstToken(absl::Duration time_to_first_token) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    times_to_first_token_.push_back(time_to_first_token);
  }
  void OnInterTokenLatency(absl::Duration latency) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    inter_token_latencies_.push_back(latency);
  }
  void OnPreemption(const std::string& request_id) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    preempted_ids_.push_back(request_id);
  }
  void OnRequestEnded(const RequestReport& report) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_.push_back(report);
  }
  void OnRejected(RejectionReason reason) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    rejections_.push_back(reason);
  }
  void OnLoadChanged(const EngineLoad& load) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    load_ = load;
  }
  void OnFault(const absl::Status& status) override {
    const std::lock_guard<std::mutex> lock(mutex_);
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
    const std::lock_guard<std::mutex> lock(mutex_);
    return field;
  }

  mutable std::mutex mutex_;
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
