#include "client/bench/load_runner.h"

#include <algorithm>
#include <utility>

namespace tidal::client {

namespace v1 = inference::v1;

LoadRunner::LoadRunner(StartCall start_call, ProgressCallback on_progress,
                       absl::Duration progress_interval)
    : start_call_(std::move(start_call)),
      on_progress_(std::move(on_progress)),
      progress_interval_(progress_interval) {}

absl::Duration LoadRunner::Elapsed() const { return absl::FromChrono(Clock::now() - start_); }

void LoadRunner::Interrupt() {
  const std::lock_guard<std::mutex> lock(mutex_);
  interrupted_ = true;
  changed_.notify_all();
}

bool LoadRunner::interrupted() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return interrupted_;
}

bool LoadRunner::IsAllSent(const LoadPoint& point) const {
  return interrupted_ || records_.size() == point.requests.size() || Elapsed() > point.max_duration;
}

absl::Duration LoadRunner::NextDue(const LoadPoint& point) const {
  if (IsAllSent(point)) return absl::InfiniteDuration();
  if (!point.concurrency.has_value()) return point.requests[records_.size()].arrival;
  return num_running_ < *point.concurrency ? absl::ZeroDuration() : absl::InfiniteDuration();
}

void LoadRunner::SendNext(const LoadPoint& point) {
  RequestRecord* record = nullptr;
  std::size_t index = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    index = records_.size();
    record = &records_.emplace_back();
    ++num_running_;
  }
  const PlannedRequest& request = point.requests[index];
  record->sent = Elapsed();
  record->scheduled = point.concurrency.has_value() ? record->sent : request.arrival;
  record->num_prompt_tokens = request.num_prompt_tokens;
  record->is_warm_up = static_cast<int64_t>(index) < point.num_warm_up;
  std::shared_ptr<StreamCall> call = start_call_(
      index, request,
      [this, record](const v1::GenerateStreamResponse& event) { OnEvent(*record, event); },
      [this, index, record](const absl::Status& status) { OnDone(index, *record, status); });
  const std::lock_guard<std::mutex> lock(mutex_);
  if (ended_early_.erase(index) == 0) calls_.emplace(index, std::move(call));
}

void LoadRunner::OnEvent(RequestRecord& record, const v1::GenerateStreamResponse& event) {
  if (event.has_delta() && event.delta().token_ids_size() > 0) {
    record.tokens.push_back({Elapsed(), event.delta().token_ids_size()});
    num_tokens_ += event.delta().token_ids_size();
  } else if (event.has_finished()) {
    const v1::Usage& usage = event.finished().usage();
    record.num_cached_prompt_tokens = usage.cached_prompt_tokens();
    record.attended_tokens = usage.attended_tokens();
    record.available_tokens = usage.available_tokens();
  }
}

void LoadRunner::OnDone(std::size_t index, RequestRecord& record, const absl::Status& status) {
  record.ended = Elapsed();
  record.code = status.code();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (calls_.erase(index) == 0) ended_early_.insert(index);
  if (status.code() == absl::StatusCode::kCancelled && interrupted_) record.is_abandoned = true;
  if (!status.ok() && !record.is_abandoned) ++num_failed_;
  --num_running_;
  changed_.notify_all();
}

void LoadRunner::CancelAll() {
  std::vector<std::shared_ptr<StreamCall>> calls;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [index, call] : calls_) calls.push_back(call);
  }
  // Without the lock: a callback may come on this thread.
  for (const auto& call : calls) call->Cancel();
}

LoadProgress LoadRunner::Progress(const LoadPoint& point) const {
  return {static_cast<int64_t>(point.requests.size()),
          static_cast<int64_t>(records_.size()),
          num_running_,
          num_failed_,
          num_tokens_,
          Elapsed()};
}

std::vector<RequestRecord> LoadRunner::Run(const LoadPoint& point) {
  start_ = Clock::now();
  num_tokens_ = 0;
  absl::Duration next_progress = progress_interval_;
  bool is_cancelled = false;
  std::unique_lock<std::mutex> lock(mutex_);
  records_.clear();
  num_failed_ = 0;
  while (!IsAllSent(point) || num_running_ > 0) {
    if (interrupted_ && !is_cancelled) {
      is_cancelled = true;
      lock.unlock();
      CancelAll();
      lock.lock();
      continue;
    }
    const absl::Duration now = Elapsed();
    const absl::Duration next_due = NextDue(point);
    if (next_due <= now) {
      lock.unlock();
      SendNext(point);
      lock.lock();
    } else if (next_progress <= now) {
      const LoadProgress progress = Progress(point);
      lock.unlock();
      on_progress_(progress);
      lock.lock();
      next_progress = now + progress_interval_;
    } else {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(next_due, next_progress) - now));
    }
  }
  return {std::make_move_iterator(records_.begin()), std::make_move_iterator(records_.end())};
}

}  // namespace tidal::client
