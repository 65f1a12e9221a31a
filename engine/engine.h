// The engine: takes requests from any thread, and on one thread of its own batches them step by
// step, keeps their KV blocks, runs the model and reports what comes. engine/README.md is the
// contract of its threads and state.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "engine/debug_state.h"
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
  bool prefix_caching = true;
  std::vector<int32_t> eos_token_ids;
};

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
  // `observer`: INVALID_ARGUMENT for a request that can never fit, with the numbers; UNIMPLEMENTED
  // for an attention mode or scope that the backend does not compute; ALREADY_EXISTS
  // for a live id; RESOURCE_EXHAUSTED when the queue is full; UNAVAILABLE after Stop;
  // INTERNAL after a fault. A request whose deadline certainly passes before its first token fails
  // with DEADLINE_EXCEEDED before the next step, without having been queued.
  absl::StatusOr<RequestTicket> Submit(Request request,
                                       std::shared_ptr<GenerationObserver> observer);

  // Ends a request, all of its choices, with `reason` before the next step, wherever it is; its
  // blocks are free then. A
  // ticket that is not live any more is ignored. Any thread.
  void Cancel(RequestTicket ticket, absl::Status reason);

  // As Cancel, of the live request with this id. NOT_FOUND where there is none. Any thread.
  absl::Status CancelById(const std::string& id, absl::Status reason);

  // Makes the prefix cache forget everything, before the next step; what runs keeps its blocks.
  // Returns the number of blocks that could be found in it. Waits for the step being computed; any
  // thread but the engine's, once the engine is started. Refuses as Submit does after Stop and
  // after a fault.
  absl::StatusOr<int32_t> FlushPrefixCache();

  // Hands what the engine holds to `receiver` before the next step, and does not wait for it: an
  // engine whose step hangs never answers, which says where it hangs. Any thread.
  void RequestDebugState(DebugStateReceiver receiver);

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
  // Of a caller who waits for the number of dropped blocks.
  using Flush = std::promise<absl::StatusOr<int32_t>>;
  // What other threads have left for the engine thread.
  struct Inbox {
    std::vector<Submission> submissions;
    int64_t num_prompt_tokens = 0;  // of the submissions
    std::vector<Cancellation> cancellations;
    std::vector<Flush> flushes;
    std::vector<DebugStateReceiver> debug_state_receivers;
    std::optional<absl::Status> stop_reason;

    bool empty() const {
      return submissions.empty() && cancellations.empty() && flushes.empty() &&
             debug_state_receivers.empty() && !stop_reason.has_value();
    }
  };
  absl::Status CheckAdmission(const Request& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- Engine thread only ---

  void Run();
  Inbox TakeInbox();
  void Accept(Submission submission);
  std::unique_ptr<Sequence> MakeSequence(RequestTicket ticket, Request request,
                                         int32_t choice_index) const;
  void Enqueue(std::unique_ptr<Sequence> sequence, Generation* generation);
  // The other choices of a request whose first one has computed the prompt. They find its full
  // blocks in the cache.
  void EnqueueOtherChoices(const Sequence& first, Generation* generation);
  // DEADLINE_EXCEEDED where not even the first token can come in time, with the numbers.
  absl::Status CheckDeadline(Sequence* sequence) const;
  // Ends a request that has not entered the queue.
  void Refuse(const Generation& generation, RejectionReason reason, const absl::Status& status);
  void FlushFor(std::vector<Flush> flushes);
  void DescribeFor(const std::vector<DebugStateReceiver>& receivers) const;
  EngineDebugState DescribeState() const;
  void ExpireDeadlines();

  // A chunk of a step in flight. Its sequence may end before the step does.
  struct LaunchedChunk {
    RequestTicket ticket;
    bool is_decode;
    bool samples;
    int32_t num_computed_tokens;  // of the sequence, once this chunk is
    // Of a decode, summed over layers.
    int64_t num_attended_tokens = 0;
    int64_t num_available_tokens = 0;
    int32_t num_selections = 0;
  };
  struct StepInFlight {
    std::vector<LaunchedChunk> chunks;
    StepReport report;  // what is known at the launch
    absl::Time launch_time;
  };

  // Launches the next step, and collects the oldest where no more may be in flight or nothing is
  // to be launched: what a step's tokens cost on the host is spent while the next one computes. An
  // error is a fault of the backend.
  absl::Status Advance();
  // Whether a step was launched.
  absl::StatusOr<bool> LaunchStep();
  absl::Status BindAdmitted(const StepPlan& plan);
  void BuildBatch(const StepPlan& plan);
  StepInFlight Describe(const StepPlan& plan) const;
  LaunchedChunk Describe(const ScheduledChunk& chunk) const;

  absl::Status CollectStep();
  void MeasurePrefill(const StepReport& report);
  void AccountAttention(const StepInFlight& step, StepReport* report);
  void ReportProgress(const StepInFlight& step);
  void DeliverTokens(const StepInFlight& step, std::vector<SampledToken> sampled);
  // Null where it has ended.
  Sequence* FindSequence(RequestTicket ticket);
  Generation* GenerationOf(const Sequence& sequence);

  // Appends a drawn token, tells the observer, and ends the sequence where it is time.
  void Deliver(Sequence* sequence, SampledToken token, absl::Time now);
  std::optional<ChoiceEnding> EndingAfter(const Sequence& sequence, int32_t token_id) const;

  // A choice has ended; with the last one the request has.
  void FinishChoice(Sequence* sequence, const ChoiceEnding& ending);
  void Fail(Generation* generation, const absl::Status& reason);
  void FailAll(const absl::Status& reason);
  // Takes a choice out of schedule and books.
  void RetireChoice(Sequence* sequence, Generation* generation);
  // Takes a request without live choices out of the books; what is returned is for last words.
  std::unique_ptr<Generation> Retire(Generation* generation, RequestReport* report);
  void PublishLoad();
  void MarkProgress();

  const EngineOptions options_;
  const LayerPlan plan_;
  const int32_t num_selection_layers_;
  ModelRunner* const runner_;
  const Tokenizer* const tokenizer_;
  const Clock* const clock_;
  EngineObserver* const observer_;
  const int32_t max_request_tokens_;

  Scheduler scheduler_;                                                      // engine thread only
  absl::flat_hash_map<RequestTicket, std::unique_ptr<Sequence>> sequences_;  // engine thread only
  absl::flat_hash_map<RequestTicket, std::unique_ptr<Generation>>
      generations_;                                  // engine thread only
  StepBatch batch_;                                  // engine thread only
  std::deque<StepInFlight> in_flight_;               // oldest first; engine thread only
  absl::Time last_step_end_ = absl::InfinitePast();  // engine thread only
  // Prompt tokens a second of the fastest step of late, of those at least half full of them; 0
  // before the first. Engine thread only.
  double fastest_prefill_rate_ = 0.0;

  std::atomic<int64_t> last_progress_nanos_{0};

  // The standard library's, which ThreadSanitizer sees through.
  mutable std::mutex mutex_;
  std::condition_variable inbox_filled_;
  std::condition_variable became_idle_;
  Inbox inbox_ ABSL_GUARDED_BY(mutex_);
  RequestTicket last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<std::string, RequestTicket> live_ids_ ABSL_GUARDED_BY(mutex_);
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);  // why nothing is submitted any more; OK = open
  absl::Status health_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace tidal
