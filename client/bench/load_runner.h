// Sends the requests of a load point and records what becomes of them. One thread sends; streams
// are read by gRPC's threads, so that thousands at once cost no more of them.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "client/bench/load_plan.h"
#include "client/bench/request_record.h"
#include "client/stream_call.h"

namespace tidal::client {

struct LoadPoint {
  std::vector<PlannedRequest> requests;
  // The first so many of them are not measured.
  int64_t num_warm_up = 0;
  // Closed loop: so many requests are kept in flight. Open loop where it is absent: each request is
  // sent at its arrival, whatever became of those before it.
  std::optional<int64_t> concurrency;
  std::optional<double> offered_rate;  // for the report
  // Nothing is sent later than this.
  absl::Duration max_duration = absl::InfiniteDuration();
};

struct LoadProgress {
  int64_t num_planned = 0;
  int64_t num_sent = 0;
  int64_t num_running = 0;
  int64_t num_failed = 0;
  int64_t num_tokens = 0;
  absl::Duration elapsed;
};

class LoadRunner {
 public:
  // Starts the request with this place in the plan; see InferenceClient::StartGenerateStream.
  using StartCall = std::function<std::shared_ptr<StreamCall>(
      std::size_t index, const PlannedRequest& request, StreamCall::EventCallback on_event,
      StreamCall::DoneCallback on_done)>;
  using ProgressCallback = std::function<void(const LoadProgress&)>;

  // `on_progress` is called on the thread of Run, every `progress_interval`.
  LoadRunner(StartCall start_call, ProgressCallback on_progress, absl::Duration progress_interval);
  LoadRunner(const LoadRunner&) = delete;
  LoadRunner& operator=(const LoadRunner&) = delete;

  // Returns when every request that was sent has ended: at once after Interrupt, as what is in
  // flight is then cancelled and marked as abandoned.
  std::vector<RequestRecord> Run(const LoadPoint& point);

  // Thread-safe. Ends Run, and all later ones before they begin.
  void Interrupt();
  bool interrupted() const;

 private:
  using Clock = std::chrono::steady_clock;

  absl::Duration Elapsed() const;
  // When the next request is to be sent, infinite where that waits for another one's end.
  absl::Duration NextDue(const LoadPoint& point) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsAllSent(const LoadPoint& point) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SendNext(const LoadPoint& point) ABSL_LOCKS_EXCLUDED(mutex_);
  void OnEvent(RequestRecord& record, const inference::v1::GenerateStreamResponse& event);
  void OnDone(std::size_t index, RequestRecord& record, const absl::Status& status);
  void CancelAll() ABSL_LOCKS_EXCLUDED(mutex_);
  LoadProgress Progress(const LoadPoint& point) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const StartCall start_call_;
  const ProgressCallback on_progress_;
  const absl::Duration progress_interval_;
  Clock::time_point start_;  // set by Run before its first request

  // Of the standard library, which ThreadSanitizer sees.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool interrupted_ ABSL_GUARDED_BY(mutex_) = false;
  // Elements stay where they are; between start and end of its request an element is written only
  // by that request's callbacks.
  std::deque<RequestRecord> records_ ABSL_GUARDED_BY(mutex_);
  int64_t num_running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_failed_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<int64_t> num_tokens_ = 0;
  absl::flat_hash_map<std::size_t, std::shared_ptr<StreamCall>> calls_ ABSL_GUARDED_BY(mutex_);
  // Calls that ended before their start returned.
  absl::flat_hash_set<std::size_t> ended_early_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tidal::client
