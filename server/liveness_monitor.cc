#include "server/liveness_monitor.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "engine/clock.h"
#include "server/logging.h"

namespace tidal::server {
namespace {

// How often progress is looked at, at least, and how often within the timeout.
constexpr absl::Duration kMaxInterval = absl::Seconds(2);
constexpr int kLooksPerTimeout = 4;

}  // namespace

LivenessMonitor::LivenessMonitor(const Engine* engine, absl::Duration timeout,
                                 PrometheusMetrics* metrics, Health* health)
    : engine_(engine), timeout_(timeout), metrics_(metrics), health_(health), thread_([this] {
        Watch();
      }) {}

LivenessMonitor::~LivenessMonitor() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_ = true;
    stopped_.notify_one();
  }
  thread_.join();
}

void LivenessMonitor::Watch() {
  const absl::Duration interval = std::min(kMaxInterval, timeout_ / kLooksPerTimeout);
  ProgressWatch watch(timeout_);
  bool was_alive = true;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopped_.wait_for(lock, absl::ToChronoNanoseconds(interval),
                            [this] { return is_stopping_; })) {
    const bool is_alive =
        watch.IsAlive(Clock::Monotonic()->Now(), engine_->load(), engine_->last_progress()) &&
        engine_->health().ok();
    if (is_alive != was_alive) SetAlive(is_alive);
    was_alive = is_alive;
  }
}

void LivenessMonitor::SetAlive(bool alive) {
  // A fault is told by who has noticed it.
  if (engine_->health().ok()) {
    Log(alive ? LogLevel::info : LogLevel::err,
        alive ? "the engine makes progress again" : "the engine makes no progress",
        {{"timeout", absl::FormatDuration(timeout_)}});
    if (!alive) metrics_->CountStall();
  }
  metrics_->SetAlive(alive);
  health_->SetAlive(alive);
}

ExitTimer::ExitTimer(absl::Duration timeout, const char* what)
    : thread_([this, timeout, what] {
        std::unique_lock<std::mutex> lock(mutex_);
        if (done_.wait_for(lock, absl::ToChronoNanoseconds(timeout), [this] { return is_done_; })) {
          return;
        }
        Log(LogLevel::err, "giving up: it does not end",
            {{"what", std::string(what)}, {"timeout", absl::FormatDuration(timeout)}});
        std::_Exit(EXIT_FAILURE);
      }) {}

ExitTimer::~ExitTimer() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_done_ = true;
    done_.notify_one();
  }
  thread_.join();
}

}  // namespace tidal::server
