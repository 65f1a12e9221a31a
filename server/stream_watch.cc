#include "server/stream_watch.h"

#include "engine/check.h"
#include "engine/clock.h"

namespace tidal::server {

StreamWatch::StreamWatch(absl::Duration max_stall)
    : max_stall_(max_stall), thread_([this] { Watch(); }) {}

StreamWatch::~StreamWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    TIDAL_CHECK(streams_.empty(), "the watch outlives its streams");
    is_stopping_ = true;
    stopped_.notify_one();
  }
  thread_.join();
}

void StreamWatch::Add(Stream* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.insert(stream);
}

void StreamWatch::Remove(Stream* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  streams_.erase(stream);
}

void StreamWatch::Watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopped_.wait_for(lock, absl::ToChronoNanoseconds(max_stall_ / 4),
                            [this] { return is_stopping_; })) {
    const absl::Time now = Clock::Monotonic()->Now();
    for (Stream* stream : streams_) stream->GiveUpIfStalled(now, max_stall_);
  }
}

}  // namespace tidal::server
