#include "engine/engine.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/check.h"

namespace tidal {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Tokens that would end the output; the sampler keeps them back until min_new_tokens.
std::vector<int32_t> EndingTokens(const Request& request, const std::vector<int32_t>& eos_ids) {
  std::vector<int32_t> ids = request.stopping.stop_token_ids;
  if (!request.stopping.ignore_eos) ids.insert(ids.end(), eos_ids.begin(), eos_ids.end());
  return ids;
}

// The input of a decode whose token is drawn by a step in flight.
constexpr int32_t kUnreadToken[] = {kLastSampledToken};

}  // namespace

Engine::Engine(EngineOptions options, LayerPlan plan, ModelRunner* runner,
               const Tokenizer* tokenizer, const Clock* clock, EngineObserver* observer)
    : options_(std::move(options)),
      plan_(std::move(plan)),
      num_selection_layers_(static_cast<int32_t>(plan_.LayersWithRole(LayerRole::kSelect).size())),
      runner_(runner),
      tokenizer_(tokenizer),
      clock_(clock),
      observer_(observer),
      max_request_tokens_(static_cast<int32_t>(
          std::min<int64_t>(options_.max_model_len, int64_t{options_.num_blocks} * kBlockSize))),
      scheduler_({.max_batch_tokens = options_.max_batch_tokens,
                  .max_running_requests = options_.max_running_requests,
                  .num_blocks = options_.num_blocks,
                  .prefix_caching = options_.prefix_caching}) {
  MarkProgress();
  PublishLoad();
}

Engine::~Engine() { Stop(absl::UnavailableError("the engine has stopped")); }

void Engine::Start() {
  TIDAL_CHECK(!thread_.joinable(), "the engine is started once");
  thread_ = std::thread([this] { Run(); });
}

// --- Any thread ---

absl::StatusOr<RequestTicket> Engine::Submit(Request request,
                                             std::shared_ptr<GenerationObserver> observer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  TIDAL_RETURN_IF_ERROR(CheckAdmission(request));
  const RequestTicket ticket = last_ticket_ + 1;
  last_ticket_ += static_cast<RequestTicket>(request.num_choices);
  const auto num_prompt_tokens = static_cast<int64_t>(request.prompt_token_ids.size());
  live_ids_.emplace(request.id, ticket);
  inbox_.num_prompt_tokens += num_prompt_tokens;
  inbox_.submissions.push_back({ticket, std::move(request), std::move(observer)});
  ++load_.num_waiting_requests;
  load_.num_waiting_prompt_tokens += num_prompt_tokens;
  observer_->OnLoadChanged(load_);
  inbox_filled_.notify_one();
  return ticket;
}

absl::Status Engine::CheckAdmission(const Request& request) {
  if (!closed_.ok()) return closed_;
  const auto reject = [this](RejectionReason reason, absl::Status status) {
    observer_->OnRejected(reason);
    return status;
  };
  const auto num_prompt_tokens = static_cast<int64_t>(request.prompt_token_ids.size());
  const int64_t num_tokens = num_prompt_tokens + request.stopping.max_new_tokens;
  if (num_prompt_tokens == 0 || request.stopping.max_new_tokens < 1) {
    return absl::InvalidArgumentError("a request has at least one prompt token and one new token");
  }
  if (request.num_choices < 1 || request.num_choices > kMaxChoices) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_choices: ", request.num_choices, " is not in [1, ", kMaxChoices, "]"));
  }
  if (request.attention.correction_interval < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "correction_interval: ", request.attention.correction_interval, " is below 0, never"));
  }
  TIDAL_RETURN_IF_ERROR(
      runner_->CheckAttention(request.attention.mode, request.attention.selection));
  if (num_tokens > max_request_tokens_) {
    return reject(RejectionReason::kNeverFits,
                  absl::InvalidArgumentError(absl::StrCat(
                      "prompt of ", num_prompt_tokens, " tokens + max_new_tokens of ",
                      request.stopping.max_new_tokens, " = ", num_tokens, " tokens, more than the ",
                      max_request_tokens_, " that one request may have (max_model_len ",
                      options_.max_model_len, ", KV cache ",
                      int64_t{options_.num_blocks} * kBlockSize, " tokens)")));
  }
  if (live_ids_.contains(request.id)) {
    return reject(RejectionReason::kDuplicateId,
                  absl::AlreadyExistsError(absl::StrCat("request_id: '", request.id,
                                                        "' is that of a request still running")));
  }
  if (load_.num_waiting_requests >= options_.max_queued_requests) {
    return reject(RejectionReason::kQueuedRequests,
                  absl::ResourceExhaustedError(
                      absl::StrCat("the queue is full: ", load_.num_waiting_requests,
                                   " requests wait, limit ", options_.max_queued_requests)));
  }
  // One request alone may exceed the limit, or a long prompt could never enter an empty queue.
  if (load_.num_waiting_requests > 0 &&
      load_.num_waiting_prompt_tokens + num_prompt_tokens > options_.max_queued_tokens) {
    return reject(
        RejectionReason::kQueuedTokens,
        absl::ResourceExhaustedError(absl::StrCat(
            "the queue is full: ", load_.num_waiting_prompt_tokens, " prompt tokens wait, and ",
            num_prompt_tokens, " more would exceed ", options_.max_queued_tokens)));
  }
  return absl::OkStatus();
}

void Engine::Cancel(RequestTicket ticket, absl::Status reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  inbox_.cancellations.push_back({ticket, std::move(reason)});
  inbox_filled_.notify_one();
}

absl::Status Engine::CancelById(const std::string& id, absl::Status reason) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = live_ids_.find(id);
  if (it == live_ids_.end()) {
    return absl::NotFoundError(absl::StrCat("request_id: '", id, "' is not running"));
  }
  inbox_.cancellations.push_back({it->second, std::move(reason)});
  inbox_filled_.notify_one();
  return absl::OkStatus();
}

bool Engine::WaitUntilIdle(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto is_idle = [this] { return live_ids_.empty(); };
  if (timeout == absl::InfiniteDuration()) {
    became_idle_.wait(lock, is_idle);
    return true;
  }
  return became_idle_.wait_for(lock, absl::ToChronoNanoseconds(timeout), is_idle);
}

absl::StatusOr<int32_t> Engine::FlushPrefixCache() {
  std::future<absl::StatusOr<int32_t>> num_dropped_blocks;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!closed_.ok()) return closed_;
    num_dropped_blocks = inbox_.flushes.emplace_back().get_future();
    inbox_filled_.notify_one();
  }
  return num_dropped_blocks.get();
}

void Engine::RequestDebugState(DebugStateReceiver receiver) {
  absl::Status closed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed = closed_;
    if (closed.ok()) {
      inbox_.debug_state_receivers.push_back(std::move(receiver));
      inbox_filled_.notify_one();
      return;
    }
  }
  receiver(closed);
}

void Engine::Stop(absl::Status reason) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_.ok()) closed_ = reason;
    if (!inbox_.stop_reason.has_value()) inbox_.stop_reason = std::move(reason);
    inbox_filled_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

EngineLoad Engine::load() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return load_;
}

absl::Time Engine::last_progress() const {
  return absl::FromUnixNanos(last_progress_nanos_.load(std::memory_order_relaxed));
}

absl::Status Engine::health() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return health_;
}

// --- Engine thread ---

void Engine::Run() {
  absl::Status fault;
  bool stopping = false;
  while (true) {
    Inbox inbox = TakeInbox();
    for (Submission& submission : inbox.submissions) Accept(std::move(submission));
    for (const Cancellation& cancellation : inbox.cancellations) {
      const auto it = generations_.find(cancellation.ticket);
      if (it != generations_.end()) Fail(it->second.get(), cancellation.reason);
    }
    if (inbox.stop_reason.has_value()) FailAll(*inbox.stop_reason);
    FlushFor(std::move(inbox.flushes));
    DescribeFor(inbox.debug_state_receivers);
    ExpireDeadlines();
    try {
      // After a stop nothing is left to launch, and what computes still is waited for.
      fault = Advance();
    } catch (const std::exception& exception) {
      fault = absl::InternalError(absl::StrCat("exception in a step: ", exception.what()));
    }
    if (!fault.ok()) break;
    if (inbox.stop_reason.has_value()) stopping = true;
    if (stopping && in_flight_.empty()) return;
  }
  const absl::Status closed =
      absl::InternalError(absl::StrCat("the engine has failed: ", fault.message()));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = closed;
    health_ = closed;
  }
  FailAll(closed);
  observer_->OnFault(closed);
}

Engine::Inbox Engine::TakeInbox() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (sequences_.empty() && in_flight_.empty()) {
    inbox_filled_.wait(lock, [this] { return !inbox_.empty(); });
    MarkProgress();
  }
  return std::exchange(inbox_, Inbox{});
}

void Engine::Accept(Submission submission) {
  Request& request = submission.request;
  if (request.sampling.min_new_tokens > 0) {
    request.sampling.suppressed_token_ids = EndingTokens(request, options_.eos_token_ids);
  }
  auto generation = std::make_unique<Generation>();
  generation->ticket = submission.ticket;
  generation->request_id = request.id;
  generation->num_choices = request.num_choices;
  generation->observer = std::move(submission.observer);
  generation->arrival_time = request.arrival_time;
  generation->deadline = request.deadline;
  // The choices share their prompt in any case: without prefix caching, with nobody else.
  if (request.num_choices > 1 && !options_.prefix_caching) {
    request.cache_salt = absl::StrCat(submission.ticket);
  }
  std::unique_ptr<Sequence> sequence =
      MakeSequence(submission.ticket, std::move(request), /*choice_index=*/0);
  if (const absl::Status status = CheckDeadline(sequence.get()); !status.ok()) {
    return Refuse(*generation, RejectionReason::kDeadline, status);
  }
  Enqueue(std::move(sequence), generation.get());
  generations_.emplace(generation->ticket, std::move(generation));
}

std::unique_ptr<Sequence> Engine::MakeSequence(RequestTicket ticket, Request request,
                                               int32_t choice_index) const {
  OutputText output_text(tokenizer_,
                         {.skip_special_tokens = request.skip_special_tokens,
                          .stop_strings = request.stopping.stop_strings,
                          .include_stop_in_output = request.stopping.include_stop_in_output});
  return std::make_unique<Sequence>(ticket, std::move(request), std::move(output_text),
                                    choice_index);
}

void Engine::Enqueue(std::unique_ptr<Sequence> sequence, Generation* generation) {
  scheduler_.Enqueue(sequence.get());
  generation->live_choices.push_back(sequence.get());
  sequences_.emplace(sequence->ticket, std::move(sequence));
}

void Engine::EnqueueOtherChoices(const Sequence& first, Generation* generation) {
  for (int32_t index = 1; index < generation->num_choices; ++index) {
    const auto offset = static_cast<uint64_t>(index);
    Request request = first.request;
    request.sampling.seed += offset;
    Enqueue(MakeSequence(generation->ticket + offset, std::move(request), index), generation);
  }
}

absl::Status Engine::CheckDeadline(Sequence* sequence) const {
  const absl::Time deadline = sequence->request.deadline;
  if (deadline == absl::InfiniteFuture() || fastest_prefill_rate_ == 0.0) return absl::OkStatus();
  const int64_t num_tokens = scheduler_.MinTokensToFirstToken(sequence);
  const absl::Duration needed =
      absl::Seconds(static_cast<double>(num_tokens) / fastest_prefill_rate_);
  const absl::Duration left = deadline - clock_->Now();
  if (needed <= left) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(
      "the deadline in ", absl::FormatDuration(left), " would pass before the first token: ",
      num_tokens, " prompt tokens are to be computed until then, which takes ",
      absl::FormatDuration(needed), " at the fastest measured rate of ",
      static_cast<int64_t>(fastest_prefill_rate_), " tokens a second"));
}

void Engine::Refuse(const Generation& generation, RejectionReason reason,
                    const absl::Status& status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    observer_->OnRejected(reason);
    live_ids_.erase(generation.request_id);
    if (live_ids_.empty()) became_idle_.notify_all();
  }
  PublishLoad();
  generation.observer->OnFailed(status);
}

void Engine::FlushFor(std::vector<Flush> flushes) {
  for (Flush& flush : flushes) {
    const int32_t num_dropped_blocks = scheduler_.FlushPrefixCache();
    PublishLoad();  // before the caller goes on, so that what it sees afterwards is true
    flush.set_value(num_dropped_blocks);
  }
}

void Engine::DescribeFor(const std::vector<DebugStateReceiver>& receivers) const {
  if (receivers.empty()) return;
  const EngineDebugState state = DescribeState();
  for (const DebugStateReceiver& receiver : receivers) receiver(state);
}

EngineDebugState Engine::DescribeState() const {
  const absl::Time now = clock_->Now();
  EngineDebugState state = {.load = load(),
                            .num_steps_in_flight = static_cast<int32_t>(in_flight_.size()),
                            .fastest_prefill_rate = fastest_prefill_rate_,
                            .sequences = {}};
  std::vector<const Sequence*> sequences;
  for (const auto& [ticket, sequence] : sequences_) sequences.push_back(sequence.get());
  std::sort(sequences.begin(), sequences.end(),
            [](const Sequence* a, const Sequence* b) { return a->ticket < b->ticket; });
  for (const Sequence* sequence : sequences) {
    const Request& request = sequence->request;
    state.sequences.push_back({.request_id = request.id,
                               .choice_index = sequence->choice_index,
                               .stage = sequence->stage(),
                               .priority = request.priority,
                               .age = now - request.arrival_time,
                               .time_left = request.deadline - now,
                               .since_token = now - sequence->last_token_time,
                               .num_prompt_tokens = sequence->num_prompt_tokens(),
                               .num_computed_tokens = sequence->num_computed_tokens,
                               .num_unread_tokens = sequence->num_unread_tokens,
                               .num_generated_tokens = sequence->num_generated_tokens(),
                               .max_new_tokens = request.stopping.max_new_tokens,
                               .num_blocks = static_cast<int32_t>(sequence->block_table.size()),
                               .sampler_slot = sequence->sampler_slot,
                               .num_preemptions = sequence->num_preemptions});
  }
  return state;
}

void Engine::ExpireDeadlines() {
  const absl::Time now = clock_->Now();
  std::vector<Generation*> expired;
  for (const auto& [ticket, generation] : generations_) {
    if (generation->deadline <= now) expired.push_back(generation.get());
  }
  for (Generation* generation : expired) {
    int32_t num_generated_tokens = generation->usage.num_generated_tokens;
    for (const Sequence* choice : generation->live_choices) {
      num_generated_tokens += choice->num_generated_tokens();
    }
    Fail(generation, absl::DeadlineExceededError(absl::StrCat(
                         "the deadline passed after ", num_generated_tokens, " generated tokens")));
  }
}

absl::Status Engine::Advance() {
  TIDAL_ASSIGN_OR_RETURN(const bool launched, LaunchStep());
  const auto most = static_cast<size_t>(runner_->max_steps_in_flight());
  if (in_flight_.empty() || (launched && in_flight_.size() < most)) return absl::OkStatus();
  return CollectStep();
}

absl::StatusOr<bool> Engine::LaunchStep() {
  const StepPlan plan = scheduler_.PlanStep(/*may_preempt=*/in_flight_.empty());
  for (const Sequence* sequence : plan.preempted) observer_->OnPreemption(sequence->request.id);
  if (plan.chunks.empty()) {
    TIDAL_CHECK(sequences_.empty() || !in_flight_.empty(),
                "where a sequence is left, a step computes something");
    return false;
  }
  TIDAL_RETURN_IF_ERROR(BindAdmitted(plan));
  PublishLoad();
  BuildBatch(plan);
  StepInFlight step = Describe(plan);
  scheduler_.MarkLaunched(plan);
  MarkProgress();
  TIDAL_RETURN_IF_ERROR(runner_->Launch(batch_));
  in_flight_.push_back(std::move(step));
  return true;
}

absl::Status Engine::BindAdmitted(const StepPlan& plan) {
  for (Sequence* sequence : plan.admitted) {
    TIDAL_RETURN_IF_ERROR(runner_->BindSampler(sequence->sampler_slot, sequence->request.sampling,
                                               sequence->request.prompt_token_ids,
                                               sequence->generated_token_ids()));
    Generation* generation = GenerationOf(*sequence);
    if (generation->admission_time == absl::InfinitePast()) {
      generation->admission_time = clock_->Now();
      generation->observer->OnStarted(
          {.num_prompt_tokens = sequence->num_prompt_tokens(),
           .num_cached_prompt_tokens = sequence->num_cached_prompt_tokens});
    }
  }
  return absl::OkStatus();
}

void Engine::BuildBatch(const StepPlan& plan) {
  batch_.chunks.clear();
  for (const ScheduledChunk& chunk : plan.chunks) {
    const Sequence& sequence = *chunk.sequence;
    const bool is_read = sequence.num_computed_tokens < sequence.num_tokens();
    batch_.chunks.push_back(
        {.token_ids = is_read ? absl::MakeConstSpan(sequence.token_ids)
                                    .subspan(static_cast<size_t>(sequence.num_computed_tokens),
                                             static_cast<size_t>(chunk.num_tokens))
                              : absl::MakeConstSpan(kUnreadToken),
         .num_context_tokens = sequence.num_computed_tokens + chunk.num_tokens,
         .block_table = sequence.block_table,
         .mode = chunk.mode(),
         .selection = sequence.request.attention.selection,
         .sampler_slot = sequence.sampler_slot,
         .samples = chunk.samples()});
  }
}

Engine::StepInFlight Engine::Describe(const StepPlan& plan) const {
  StepInFlight step;
  step.launch_time = clock_->Now();
  step.report.num_sequences = static_cast<int32_t>(plan.chunks.size());
  bool has_decodes = false;
  for (const ScheduledChunk& chunk : plan.chunks) {
    step.chunks.push_back(Describe(chunk));
    has_decodes = has_decodes || chunk.is_decode;
    if (chunk.sequence->is_correcting) {
      // The current token is not among those that were written before.
      step.report.num_corrected_tokens += chunk.num_tokens - (chunk.samples() ? 1 : 0);
      if (chunk.samples()) ++step.report.num_corrections;
    }
    if (chunk.is_decode) continue;
    step.report.num_prefill_tokens += chunk.num_tokens;
    const bool is_recomputed =
        chunk.sequence->num_preemptions > 0 || chunk.sequence->choice_index > 0;
    if (is_recomputed) step.report.num_recomputed_tokens += chunk.num_tokens;
  }
  if (options_.prefix_caching) {
    for (const Sequence* sequence : plan.admitted) {
      if (sequence->num_preemptions > 0 || sequence->choice_index > 0) continue;
      step.report.num_queried_tokens += sequence->num_prompt_tokens();
      step.report.num_cached_tokens += sequence->num_cached_prompt_tokens;
    }
  }
  step.report.kind = step.report.num_prefill_tokens == 0 ? StepKind::kDecode
                     : has_decodes                       ? StepKind::kMixed
                                                         : StepKind::kPrefill;
  return step;
}

Engine::LaunchedChunk Engine::Describe(const ScheduledChunk& chunk) const {
  const Sequence& sequence = *chunk.sequence;
  LaunchedChunk launched = {.ticket = sequence.ticket,
                            .is_decode = chunk.is_decode,
                            .samples = chunk.samples(),
                            .num_computed_tokens = sequence.num_computed_tokens + chunk.num_tokens};
  if (chunk.is_decode && launched.samples) {
    const int32_t num_context_tokens = launched.num_computed_tokens;
    launched.num_available_tokens = int64_t{plan_.num_layers()} * num_context_tokens;
    launched.num_attended_tokens = plan_.AttendedTokens(
        chunk.mode(), sequence.request.attention.selection, num_context_tokens);
    if (chunk.mode() == AttentionMode::kTidal) launched.num_selections = num_selection_layers_;
  }
  return launched;
}

absl::Status Engine::CollectStep() {
  std::vector<SampledToken> sampled;
  TIDAL_RETURN_IF_ERROR(runner_->Collect(&sampled));
  MarkProgress();
  const StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  const absl::Time now = clock_->Now();
  StepReport report = step.report;
  report.duration = now - std::max(step.launch_time, last_step_end_);
  last_step_end_ = now;
  MeasurePrefill(report);
  AccountAttention(step, &report);
  // Before the requests' owners hear of the tokens, so that what they see afterwards is true.
  observer_->OnStep(report);
  ReportProgress(step);
  DeliverTokens(step, std::move(sampled));
  PublishLoad();
  return absl::OkStatus();
}

Sequence* Engine::FindSequence(RequestTicket ticket) {
  const auto it = sequences_.find(ticket);
  return it == sequences_.end() ? nullptr : it->second.get();
}

void Engine::MeasurePrefill(const StepReport& report) {
  // What nearly empty steps compute a second says little of what a full one would.
  if (report.num_prefill_tokens * 2 < options_.max_batch_tokens) return;
  if (report.duration <= absl::ZeroDuration()) return;
  // Slow steps count slowly: a long context makes them, and others may be shorter.
  constexpr double kForgetting = 0.98;
  fastest_prefill_rate_ =
      std::max(report.num_prefill_tokens / absl::ToDoubleSeconds(report.duration),
               fastest_prefill_rate_ * kForgetting);
}

Generation* Engine::GenerationOf(const Sequence& sequence) {
  const auto it =
      generations_.find(sequence.ticket - static_cast<RequestTicket>(sequence.choice_index));
  TIDAL_CHECK(it != generations_.end(), "a request lives as long as its choices");
  return it->second.get();
}

void Engine::AccountAttention(const StepInFlight& step, StepReport* report) {
  for (const LaunchedChunk& chunk : step.chunks) {
    Sequence* sequence = FindSequence(chunk.ticket);
    if (sequence == nullptr) continue;
    if (chunk.samples) ++report->num_generated_tokens;
    sequence->num_available_tokens += chunk.num_available_tokens;
    sequence->num_attended_tokens += chunk.num_attended_tokens;
    report->num_available_tokens += chunk.num_available_tokens;
    report->num_attended_tokens += chunk.num_attended_tokens;
    report->num_selections += chunk.num_selections;
  }
}

void Engine::ReportProgress(const StepInFlight& step) {
  for (const LaunchedChunk& chunk : step.chunks) {
    const Sequence* sequence = FindSequence(chunk.ticket);
    if (sequence == nullptr || sequence->num_generated_tokens() > 0) continue;
    if (sequence->choice_index > 0) continue;  // the prompt is done
    GenerationOf(*sequence)->observer->OnProgress(chunk.num_computed_tokens,
                                                  sequence->num_prompt_tokens());
  }
}

void Engine::DeliverTokens(const StepInFlight& step, std::vector<SampledToken> sampled) {
  const absl::Time now = clock_->Now();
  size_t num_sampled = 0;
  for (const LaunchedChunk& chunk : step.chunks) {
    if (!chunk.samples) continue;
    TIDAL_CHECK(num_sampled < sampled.size(), "each chunk that samples yields a token");
    SampledToken& token = sampled[num_sampled++];
    // A sequence that has ended meanwhile wants no more.
    Sequence* sequence = FindSequence(chunk.ticket);
    if (sequence != nullptr) Deliver(sequence, std::move(token), now);
  }
  TIDAL_CHECK(num_sampled == sampled.size(), "no token without a chunk that samples");
}

void Engine::Deliver(Sequence* sequence, SampledToken token, absl::Time now) {
  const int32_t token_id = token.token_id;
  Generation* generation = GenerationOf(*sequence);
  sequence->AppendToken(token_id);
  if (sequence->num_generated_tokens() > 1) {
    observer_->OnInterTokenLatency(now - sequence->last_token_time);
  } else if (sequence->choice_index == 0) {
    generation->first_token_time = now;
    observer_->OnFirstToken(now - generation->arrival_time);
    EnqueueOtherChoices(*sequence, generation);
  }
  sequence->last_token_time = now;

  std::optional<ChoiceEnding> ending = EndingAfter(*sequence, token_id);
  const bool is_hidden_stop = ending.has_value() && ending->matched_token_id.has_value() &&
                              !sequence->request.stopping.include_stop_in_output;
  GenerationDelta delta;
  delta.choice_index = sequence->choice_index;
  if (!is_hidden_stop) {
    const bool match_stops =
        sequence->num_generated_tokens() >= sequence->request.sampling.min_new_tokens;
    delta.text = sequence->output_text.Append(token_id, match_stops);
  }
  if (sequence->output_text.matched_stop_string().has_value()) {
    ending = ChoiceEnding{.reason = FinishReason::kStopString,
                          .matched_stop_string = sequence->output_text.matched_stop_string()};
  } else if (ending.has_value()) {
    delta.text += sequence->output_text.Flush();
  }
  delta.tokens.push_back(std::move(token));
  delta.ending = ending;
  generation->observer->OnDelta(std::move(delta));
  if (ending.has_value()) FinishChoice(sequence, *ending);
}

std::optional<ChoiceEnding> Engine::EndingAfter(const Sequence& sequence, int32_t token_id) const {
  const StoppingCriteria& stopping = sequence.request.stopping;
  if (Contains(stopping.stop_token_ids, token_id)) {
    return ChoiceEnding{.reason = FinishReason::kStopToken, .matched_token_id = token_id};
  }
  if (!stopping.ignore_eos && Contains(options_.eos_token_ids, token_id)) {
    return ChoiceEnding{.reason = FinishReason::kEndOfSequence, .matched_token_id = token_id};
  }
  if (sequence.num_generated_tokens() >= stopping.max_new_tokens) {
    return ChoiceEnding{.reason = FinishReason::kLength};
  }
  return std::nullopt;
}

void Engine::FinishChoice(Sequence* sequence, const ChoiceEnding& ending) {
  Generation* generation = GenerationOf(*sequence);
  if (sequence->choice_index == 0) generation->first_ending = ending;
  if (generation->live_choices.size() > 1) {
    RetireChoice(sequence, generation);
    return PublishLoad();
  }
  RequestReport report;
  report.finish_reason = generation->first_ending.reason;
  const std::unique_ptr<Generation> retired = Retire(generation, &report);
  observer_->OnRequestEnded(report);
  retired->observer->OnFinished(
      {.ending = retired->first_ending, .usage = report.usage, .timings = report.timings});
}

void Engine::Fail(Generation* generation, const absl::Status& reason) {
  RequestReport report;
  report.status = reason;
  const std::unique_ptr<Generation> retired = Retire(generation, &report);
  observer_->OnRequestEnded(report);
  retired->observer->OnFailed(reason);
}

void Engine::RetireChoice(Sequence* sequence, Generation* generation) {
  generation->Account(*sequence);
  std::erase(generation->live_choices, sequence);
  scheduler_.Remove(sequence);
  sequences_.erase(sequence->ticket);
}

std::unique_ptr<Generation> Engine::Retire(Generation* generation, RequestReport* report) {
  report->id = generation->request_id;
  for (const Sequence* choice : generation->live_choices) {
    report->stage = std::max(report->stage, choice->stage());
  }
  while (!generation->live_choices.empty()) {
    RetireChoice(generation->live_choices.back(), generation);
  }
  report->usage = generation->usage;
  report->timings = generation->TimingsUntil(clock_->Now());
  auto node = generations_.extract(generation->ticket);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_ids_.erase(generation->request_id);
    if (live_ids_.empty()) became_idle_.notify_all();
  }
  // Before the owner hears of it, so that what it sees afterwards is true.
  PublishLoad();
  return std::move(node.mapped());
}

void Engine::FailAll(const absl::Status& reason) {
  Inbox rest;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    rest = std::exchange(inbox_, Inbox{});
  }
  for (Submission& submission : rest.submissions) Accept(std::move(submission));
  FlushFor(std::move(rest.flushes));
  DescribeFor(rest.debug_state_receivers);
  while (!generations_.empty()) Fail(generations_.begin()->second.get(), reason);
}

void Engine::PublishLoad() {
  const std::lock_guard<std::mutex> lock(mutex_);
  load_ = {.num_running_requests = scheduler_.num_running(),
           .num_waiting_requests =
               scheduler_.num_waiting() + static_cast<int32_t>(inbox_.submissions.size()),
           .num_waiting_prompt_tokens =
               scheduler_.num_waiting_prompt_tokens() + inbox_.num_prompt_tokens,
           .num_used_blocks = scheduler_.blocks().num_used_blocks(),
           .num_cached_blocks = scheduler_.blocks().num_cached_blocks(),
           .num_total_blocks = scheduler_.blocks().num_blocks()};
  observer_->OnLoadChanged(load_);
}

void Engine::MarkProgress() {
  last_progress_nanos_.store(absl::ToUnixNanos(clock_->Now()), std::memory_order_relaxed);
}

}  // namespace tidal
