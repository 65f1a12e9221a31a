#include "server/debug_dump.h"

#include <algorithm>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "server/logging.h"

namespace tidal::server {
namespace {

std::string NameOf(Phase phase) {
  switch (phase) {
    case Phase::kLoading:
      return "loading";
    case Phase::kServing:
      return "serving";
    case Phase::kDraining:
      return "draining";
    case Phase::kStopped:
      return "stopped";
  }
  return "unknown";
}

std::string NameOf(RequestStage stage) {
  switch (stage) {
    case RequestStage::kQueued:
      return "queued";
    case RequestStage::kPrefill:
      return "prefill";
    case RequestStage::kDecode:
      return "decode";
  }
  return "unknown";
}

void AppendLoad(const EngineLoad& load, LogFields* fields) {
  fields->insert(fields->end(), {{"running_requests", int64_t{load.num_running_requests}},
                                 {"waiting_requests", int64_t{load.num_waiting_requests}},
                                 {"waiting_prompt_tokens", load.num_waiting_prompt_tokens},
                                 {"used_blocks", int64_t{load.num_used_blocks}},
                                 {"cached_blocks", int64_t{load.num_cached_blocks}},
                                 {"total_blocks", int64_t{load.num_total_blocks}}});
}

// A duration that may be infinite, which then is no field.
void AppendMilliseconds(std::string_view name, absl::Duration duration, LogFields* fields) {
  if (duration == absl::InfiniteDuration()) return;
  fields->emplace_back(name, absl::ToDoubleMilliseconds(duration));
}

void LogSequence(const SequenceDebugState& sequence) {
  LogFields fields = {{"request_id", sequence.request_id},
                      {"choice", int64_t{sequence.choice_index}},
                      {"stage", NameOf(sequence.stage)},
                      {"priority", int64_t{sequence.priority}},
                      {"prompt_tokens", int64_t{sequence.num_prompt_tokens}},
                      {"computed_tokens", int64_t{sequence.num_computed_tokens}},
                      {"unread_tokens", int64_t{sequence.num_unread_tokens}},
                      {"generated_tokens", int64_t{sequence.num_generated_tokens}},
                      {"max_new_tokens", int64_t{sequence.max_new_tokens}},
                      {"blocks", int64_t{sequence.num_blocks}},
                      {"sampler_slot", int64_t{sequence.sampler_slot}},
                      {"preemptions", int64_t{sequence.num_preemptions}}};
  AppendMilliseconds("age_ms", sequence.age, &fields);
  AppendMilliseconds("time_left_ms", sequence.time_left, &fields);
  AppendMilliseconds("since_token_ms", sequence.since_token, &fields);
  Log(LogLevel::info, "debug state of a sequence", fields);
}

}  // namespace

void DebugDump::SetEngine(Engine* engine) {
  const std::lock_guard<std::mutex> lock(mutex_);
  engine_ = engine;
}

void DebugDump::Write() {
  LogFields fields = {{"phase", NameOf(lifecycle_->phase())},
                      {"active_calls", int64_t{lifecycle_->num_active_calls()}},
                      {"signals", int64_t{lifecycle_->num_signals()}}};
  const std::lock_guard<std::mutex> lock(mutex_);
  if (engine_ == nullptr) return Log(LogLevel::info, "debug state of the server", fields);
  AppendMilliseconds("since_progress_ms", Clock::Monotonic()->Now() - engine_->last_progress(),
                     &fields);
  AppendLoad(engine_->load(), &fields);
  Log(LogLevel::info, "debug state of the server", fields);
  engine_->RequestDebugState([](const absl::StatusOr<EngineDebugState>& state) {
    if (state.ok()) return LogDebugState(*state);
    Log(LogLevel::info, "no debug state of the engine",
        {{"reason", std::string(state.status().message())}});
  });
}

void LogDebugState(const EngineDebugState& state) {
  LogFields fields = {{"steps_in_flight", int64_t{state.num_steps_in_flight}},
                      {"sequences", static_cast<int64_t>(state.sequences.size())},
                      {"fastest_prefill_tokens_per_second", state.fastest_prefill_rate}};
  AppendLoad(state.load, &fields);
  Log(LogLevel::info, "debug state of the engine", fields);
  const size_t num_written = std::min(state.sequences.size(), DebugDump::kMaxSequences);
  for (size_t i = 0; i < num_written; ++i) LogSequence(state.sequences[i]);
}

}  // namespace tidal::server
