// Watches the engine's progress on a thread of its own, from construction to destruction, and tells
// health and metrics whether it is alive: also while the server drains.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/health.h"
#include "server/prometheus_metrics.h"

namespace tidal::server {

class LivenessMonitor {
 public:
  // The engine is dead once it has had something to do and made no progress for `timeout`, or once
  // it has failed. All must outlive this object.
  LivenessMonitor(const Engine* engine, absl::Duration timeout, PrometheusMetrics* metrics,
                  Health* health);
  ~LivenessMonitor();
  LivenessMonitor(const LivenessMonitor&) = delete;
  LivenessMonitor& operator=(const LivenessMonitor&) = delete;

 private:
  void Watch();
  void SetAlive(bool alive);

  const Engine* const engine_;
  const absl::Duration timeout_;
  PrometheusMetrics* const metrics_;
  Health* const health_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Ends the process with exit status 1 unless it is destroyed within `timeout`: for what may hang,
// such as an engine whose device does not answer any more.
class ExitTimer {
 public:
  // `what` is what the log then says does not end.
  ExitTimer(absl::Duration timeout, const char* what);
  ~ExitTimer();
  ExitTimer(const ExitTimer&) = delete;
  ExitTimer& operator=(const ExitTimer&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace tidal::server
