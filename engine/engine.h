// The engine: takes requests from any thread, and on one thread of its own batches them step by
// step, keeps their KV blocks, runs the model and reports what comes. engine/README.md is the
// contract of its threads and state.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "engine/engine_observer.h"
#include "engine/generation_observer.h"
#include "engine/layer_plan.h"
#include "engine/model_runner.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/tokenizer/tokenizer.h"

namespace tidal {

struct EngineOptions {
  int32_t max_model_len = 0;  // prompt and generated tokens of one request
  int32_t max_batch_tokens = 0;
  int32_t max_running_requests = 0;
  int32_t max_queued_requests = 0;
  int64_t max_queued_tokens = 0;  // prompt tokens of all waiting requests
  int32_t num_blocks = 0;
  std::vector<int32_t> eos_token_ids;
};

// Names a submitted request; never used twice.
using RequestTicket = uint64_t;

class Engine {
 public:
  // All pointers must outlive the engine. `tokenizer` may be null: then no text is produced.
  Engine(EngineOptions options, LayerPlan plan, ModelRunner* runner, const Tokenizer* tokenizer,
         const Clock* clock, EngineObserver* observer);
  // Stops (see Stop) where that has not been done.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Starts the engine thread.
  void Start();

  // Queues a request; `observer` hears of it from then on. Any thread. Refuses, without calling
  // `observer`: INVALID_ARGUMENT for a request that can never fit, with the numbers; ALREADY_EXISTS
  // for a live id; RESOURCE_EXHAUSTED when the queue is full; UNAVAILABLE after Stop;
  // INTERNAL after a fault.
  absl::StatusOr<RequestTicket> Submit(Request request,
                                       std::shared_ptr<GenerationObserver> observer);

  // Ends a request with `reason` before the next step, wherever it is; its blocks are free then. A
  // ticket that is not live any more is ignored. Any thread.
  void Cancel(RequestTicket ticket, absl::Status reason);

  // Waits until no request is live, or until `timeout`. Any thread but the engine's.
  bool WaitUntilIdle(absl::Duration timeout);

  // Fails every live request with `reason` and ends the thread. Any thread but the engine's; once.
  void Stop(absl::Status reason);

  // Any thread.
  EngineLoad load() const;
  // When the engine last began or ended a step, or found nothing to do.
  absl::Time last_progress() const;
  // OK, or the fault that ended the engine.
  absl::Status health() const;

  // The most tokens a request's prompt and output may have together: max_model_len, or what the KV
  // cache holds where that is less.
  int32_t max_request_tokens() const { return max_request_tokens_; }

 private:
  struct Submission {
    RequestTicket ticket;
    Request request;
    std::shared_ptr<GenerationObserver> observer;
  };
  struct Cancellation {
    RequestTicket ticket;
    absl::Status reason;
  };
};

}  // namespace tidal
