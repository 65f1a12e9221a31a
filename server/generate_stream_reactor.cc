#include "server/generate_stream_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/clock.h"
#include "server/proto_conversion.h"
#include "server/status_mapping.h"

namespace tidal::server {

GenerateStreamReactor* GenerateStreamReactor::Start(CallInfo info, const GenerateOptions& options,
                                                    absl::StatusOr<ActiveCall> admission,
                                                    const api::GenerateStreamRequest& request) {
  const std::shared_ptr<GenerateStreamReactor> reactor(
      new GenerateStreamReactor(std::move(info), options, std::move(admission)));
  reactor->self_ = reactor;
  if (options.stream_watch != nullptr) options.stream_watch->Add(reactor.get());
  if (const absl::Status status = reactor->call_.Submit(request, reactor); !status.ok()) {
    reactor->OnFailed(status);
  }
  return reactor.get();  // OnDone, which lets go of it, comes after gRPC has got it
}

GenerateStreamReactor::GenerateStreamReactor(CallInfo info, const GenerateOptions& options,
                                             absl::StatusOr<ActiveCall> admission)
    : call_(std::move(info), options, std::move(admission)) {}

// --- gRPC's threads ---

void GenerateStreamReactor::OnWriteDone(bool ok) {
  Action action = Action::kNone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_busy_ = false;
    if (!ok) Discard(absl::CancelledError("the client has cancelled the call, or is gone"));
    action = TakeNext();
  }
  if (!ok) call_.CancelByClient();
  Perform(action);
}

void GenerateStreamReactor::OnCancel() { call_.CancelByClient(); }

void GenerateStreamReactor::OnDone() {
  if (StreamWatch* watch = call_.options().stream_watch; watch != nullptr) watch->Remove(this);
  call_.LogEnd();
  // Destroyed here, or by the engine thread on its way out of the last of its calls.
  const std::shared_ptr<GenerateStreamReactor> self = std::move(self_);
}

// --- Engine thread ---

void GenerateStreamReactor::OnStarted(const GenerationStarted& started) {
  Response::Started event;
  event.set_request_id(call_.request_id());
  event.set_prompt_tokens(started.num_prompt_tokens);
  event.set_cached_prompt_tokens(started.num_cached_prompt_tokens);
  *event.mutable_attention() = call_.effective_attention();
  event.set_seed(call_.seed());
  Action action = Action::kNone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pending_started_ = std::move(event);
    pending_deltas_.resize(static_cast<size_t>(call_.num_choices()));
    action = TakeNext();
  }
  Perform(action);
}

void GenerateStreamReactor::OnProgress(int32_t num_prefilled_tokens, int32_t num_total_tokens) {
  Response::Progress event;
  event.set_prefilled_tokens(num_prefilled_tokens);
  event.set_total_tokens(num_total_tokens);
  Action action = Action::kNone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    pending_progress_ = std::move(event);
    action = TakeNext();
  }
  Perform(action);
}

void GenerateStreamReactor::OnDelta(GenerationDelta delta) {
  call_.NoteDelta(delta);
  const bool with_logprobs = call_.returns_logprobs();
  const int64_t num_bytes = WireBytes(delta, with_logprobs);
  const int64_t max_bytes = call_.options().max_pending_response_bytes;
  Action action = Action::kNone;
  absl::Status too_slow;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (discard_reason_.has_value()) return;
    if (num_pending_bytes_ + num_bytes > max_bytes && is_busy_) {
      too_slow = absl::ResourceExhaustedError(absl::StrCat(
          "the stream is read too slowly: more than ", max_bytes, " bytes of output are pending"));
      Discard(too_slow);
    } else {
      PendingDelta& pending = pending_deltas_[static_cast<size_t>(delta.choice_index)];
      pending.message.set_choice_index(delta.choice_index);
      AppendDelta(delta, with_logprobs, call_.state().tokenizer, &pending.message);
      pending.is_pending = true;
      pending.num_bytes += num_bytes;
      num_pending_bytes_ += num_bytes;
      action = TakeNext();
    }
  }
  if (!too_slow.ok()) call_.Cancel(too_slow);
  Perform(action);
}

void GenerateStreamReactor::OnFinished(const GenerationFinished& finished) {
  call_.NoteFinished(finished);
  Response::Finished event;
  SetEnding(finished.ending, &event);
  *event.mutable_usage() = ToProto(finished.usage);
  *event.mutable_timings() = ToProto(finished.timings);
  Action action = Action::kNone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (discard_reason_.has_value()) {
      end_ = *discard_reason_;  // its cancellation has come too late
      call_.NoteFailed(*end_);
    } else {
      end_ = absl::OkStatus();
      pending_finished_ = std::move(event);
    }
    action = TakeNext();
  }
  Perform(action);
}

void GenerateStreamReactor::OnFailed(const absl::Status& status) {
  call_.NoteFailed(status);
  Action action = Action::kNone;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    end_ = status;
    action = TakeNext();
  }
  Perform(action);
}

// --- The watch's thread ---

void GenerateStreamReactor::GiveUpIfStalled(absl::Time now, absl::Duration max_stall) {
  const absl::Status too_slow = absl::ResourceExhaustedError(absl::StrCat(
      "the stream is not read: nothing was taken for ", absl::FormatDuration(max_stall)));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!is_busy_ || is_given_up_ || now - busy_since_ < max_stall) return;
    is_given_up_ = true;
    Discard(too_slow);
    if (end_.has_value() && end_->ok()) end_ = too_slow;
  }
  call_.NoteFailed(too_slow);
  call_.Cancel(too_slow);
  // What is in flight would never be done, and nothing after it could be written.
  call_.Abort();
}

// --- Both ---

GenerateStreamReactor::Action GenerateStreamReactor::TakeNext() {
  if (is_busy_) return Action::kNone;
  is_busy_ = true;
  busy_since_ = Clock::Monotonic()->Now();
  if (!discard_reason_.has_value()) {
    if (pending_started_.has_value()) {
      response_.mutable_started()->Swap(&*pending_started_);
      pending_started_.reset();
      return Action::kWrite;
    }
    if (pending_progress_.has_value()) {
      response_.mutable_progress()->Swap(&*pending_progress_);
      pending_progress_.reset();
      return Action::kWrite;
    }
    if (TakeDelta()) return Action::kWrite;
    if (pending_finished_.has_value()) {
      response_.mutable_finished()->Swap(&*pending_finished_);
      pending_finished_.reset();
      return Action::kWriteAndFinish;
    }
  }
  if (end_.has_value()) return Action::kFinish;
  is_busy_ = false;
  return Action::kNone;
}

bool GenerateStreamReactor::TakeDelta() {
  for (size_t i = 0; i < pending_deltas_.size(); ++i) {
    const size_t choice = (last_choice_ + 1 + i) % pending_deltas_.size();
    PendingDelta& pending = pending_deltas_[choice];
    if (!pending.is_pending) continue;
    // The buffers change places, and each keeps its capacity.
    response_.mutable_delta()->Swap(&pending.message);
    pending.message.Clear();
    pending.is_pending = false;
    num_pending_bytes_ -= std::exchange(pending.num_bytes, 0);
    last_choice_ = choice;
    return true;
  }
  return false;
}

void GenerateStreamReactor::Perform(Action action) {
  switch (action) {
    case Action::kNone:
      return;
    case Action::kWrite:
      return StartWrite(&response_);
    case Action::kWriteAndFinish:
      return StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    case Action::kFinish: {
      grpc::Status status;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        status = ToGrpcStatus(*end_);
      }
      return Finish(std::move(status));
    }
  }
}

void GenerateStreamReactor::Discard(absl::Status reason) {
  discard_reason_ = std::move(reason);
  pending_started_.reset();
  pending_progress_.reset();
  std::vector<PendingDelta>().swap(pending_deltas_);  // gives its memory back
  num_pending_bytes_ = 0;
  pending_finished_.reset();
}

}  // namespace tidal::server
