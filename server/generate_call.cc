#include "server/generate_call.h"

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "server/logging.h"
#include "server/proto_conversion.h"
#include "server/status_mapping.h"

namespace tidal::server {
namespace {

int64_t Milliseconds(absl::Duration duration) { return absl::ToInt64Milliseconds(duration); }

std::string FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEndOfSequence:
      return "end_of_sequence";
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kStopString:
      return "stop_string";
    case FinishReason::kLength:
      return "length";
  }
  return "unknown";
}

}  // namespace

LogFields FieldsOf(const CallInfo& call, const absl::Status& status) {
  LogFields fields = {{"method", std::string(call.method)},
                      {"code", CodeName(status)},
                      {"client", call.client},
                      {"peer", call.peer}};
  if (call.trace.has_value()) fields.emplace_back("trace_id", call.trace->trace_id);
  if (!status.ok()) fields.emplace_back("error", std::string(status.message()));
  return fields;
}

GenerateCall::GenerateCall(CallInfo info, const GenerateOptions& options,
                           absl::StatusOr<ActiveCall> admission)
    : info_(std::move(info)),
      options_(options),
      admission_(std::move(admission)),
      arrival_time_(admission_.ok() ? state().clock->Now() : absl::InfinitePast()) {}

RequestIdentity GenerateCall::NewIdentity() {
  thread_local absl::BitGen generator;
  return {.id = absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(generator), absl::kZeroPad16)),
          .seed = absl::Uniform<uint64_t>(generator)};
}

absl::Time GenerateCall::EngineDeadline() const {
  if (info_.deadline == std::chrono::system_clock::time_point::max()) {
    return absl::InfiniteFuture();
  }
  const auto left = info_.deadline - std::chrono::system_clock::now();
  return state().clock->Now() + absl::FromChrono(left);
}

absl::Status GenerateCall::SubmitRequest(Request request,
                                         std::shared_ptr<GenerationObserver> observer) {
  request.arrival_time = arrival_time_;
  request.deadline = EngineDeadline();
  request_id_ = request.id;
  seed_ = request.sampling.seed;
  returns_logprobs_ = request.sampling.return_logprobs;
  num_choices_ = request.num_choices;
  num_prompt_tokens_ = static_cast<int32_t>(request.prompt_token_ids.size());
  attention_ = request.attention;
  TIDAL_ASSIGN_OR_RETURN(const RequestTicket ticket,
                         state().engine->Submit(std::move(request), std::move(observer)));
  Charge(num_prompt_tokens_);
  std::optional<absl::Status> cancellation;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ticket_ = ticket;
    cancellation = std::move(early_cancellation_);
  }
  if (cancellation.has_value()) state().engine->Cancel(ticket, *std::move(cancellation));
  return absl::OkStatus();
}

void GenerateCall::Cancel(absl::Status reason) {
  RequestTicket ticket = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!ticket_.has_value()) {
      if (!early_cancellation_.has_value()) early_cancellation_ = std::move(reason);
      return;
    }
    ticket = *ticket_;
  }
  state().engine->Cancel(ticket, std::move(reason));
}

void GenerateCall::CancelByClient() {
  if (std::chrono::system_clock::now() >= info_.deadline) {
    Cancel(absl::DeadlineExceededError("the call's deadline has passed"));
  } else {
    Cancel(absl::CancelledError("the client has cancelled the call, or is gone"));
  }
}

void GenerateCall::Charge(int64_t num_tokens) const {
  if (info_.lease.has_value()) info_.lease->Charge(num_tokens);
}

void GenerateCall::NoteDelta(const GenerationDelta& delta) {
  Charge(static_cast<int64_t>(delta.tokens.size()));
  const std::lock_guard<std::mutex> lock(mutex_);
  num_generated_tokens_ += static_cast<int32_t>(delta.tokens.size());
}

void GenerateCall::NoteFinished(const GenerationFinished& finished) {
  const std::lock_guard<std::mutex> lock(mutex_);
  finished_ = finished;
}

void GenerateCall::NoteFailed(const absl::Status& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  final_status_ = status;
}

api::EffectiveAttention GenerateCall::effective_attention() const {
  return ToProto(attention_, *state().plan);
}

void GenerateCall::LogEnd() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  LogFields fields = FieldsOf(info_, final_status_);
  fields.emplace_back("request_id", request_id_);
  if (finished_.has_value()) {
    const Usage& usage = finished_->usage;
    const Timings& timings = finished_->timings;
    const double attended_share = usage.num_available_tokens == 0
                                      ? 1.0
                                      : static_cast<double>(usage.num_attended_tokens) /
                                            static_cast<double>(usage.num_available_tokens);
    fields.insert(fields.end(), {{"finish_reason", FinishReasonName(finished_->ending.reason)},
                                 {"prompt_tokens", int64_t{usage.num_prompt_tokens}},
                                 {"cached_tokens", int64_t{usage.num_cached_prompt_tokens}},
                                 {"generated_tokens", int64_t{usage.num_generated_tokens}},
                                 {"queue_ms", Milliseconds(timings.queue)},
                                 {"prefill_ms", Milliseconds(timings.prefill)},
                                 {"decode_ms", Milliseconds(timings.decode)},
                                 {"ttft_ms", Milliseconds(timings.time_to_first_token)},
                                 {"e2e_ms", Milliseconds(timings.end_to_end)},
                                 {"attended_share", attended_share}});
    if (usage.num_preemptions > 0) {
      fields.emplace_back("preemptions", int64_t{usage.num_preemptions});
    }
  } else if (admission_.ok()) {
    fields.insert(fields.end(), {{"prompt_tokens", int64_t{num_prompt_tokens_}},
                                 {"generated_tokens", int64_t{num_generated_tokens_}},
                                 {"e2e_ms", Milliseconds(state().clock->Now() - arrival_time_)}});
  }
  if (!prompt_text_.empty()) fields.emplace_back("prompt", prompt_text_);
  Log(LogLevel::info, "request finished", fields);
}

}  // namespace tidal::server
