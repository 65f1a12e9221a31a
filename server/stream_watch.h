// Gives up streams whose clients take nothing for too long: they would hold their memory, and the
// end of the server, for as long as they like. Looks at all of them from a thread of its own.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"

namespace tidal::server {

class StreamWatch {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    // Gives the stream up where what it last gave gRPC has not been taken since
    // `now - max_stall`. On the watch's thread; returns at once, and calls the watch not at all.
    virtual void GiveUpIfStalled(absl::Time now, absl::Duration max_stall) = 0;
  };

  // A stall is noticed after `max_stall`, and at most a quarter more.
  explicit StreamWatch(absl::Duration max_stall);
  // No stream is left then.
  ~StreamWatch();
  StreamWatch(const StreamWatch&) = delete;
  StreamWatch& operator=(const StreamWatch&) = delete;

  // Any thread. Once Remove has returned, the stream is not looked at any more.
  void Add(Stream* stream);
  void Remove(Stream* stream);

 private:
  void Watch();

  const absl::Duration max_stall_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<Stream*> streams_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace tidal::server
