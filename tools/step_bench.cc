#include "tools/step_bench.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

std::vector<double> PerSecond(double amount, const std::vector<double>& seconds) {
  std::vector<double> rates;
  rates.reserve(seconds.size());
  for (const double duration : seconds) rates.push_back(amount / duration);
  return rates;
}

std::vector<double> Scaled(double factor, std::vector<double> values) {
  for (double& value : values) value *= factor;
  return values;
}

// Elements of all matrices that a decode step reads once.
double NumWeights(const ModelShape& shape) {
  const double hidden = shape.hidden_size;
  const double layer =
      hidden * (2.0 * shape.query_size() + 2.0 * shape.kv_size() + 3.0 * shape.intermediate_size);
  return shape.num_layers * layer + hidden * shape.vocab_size;
}

}  // namespace

absl::StatusOr<DecodeResult> StepBench::Decode(const DecodeCase& decode_case, int num_warmup,
                                               int num_steps) {
  const int32_t num_streams = decode_case.num_streams;
  const int num_all_steps = num_warmup + num_steps;
  TIDAL_RETURN_IF_ERROR(
      sequences_.Fill(num_streams, decode_case.num_context_tokens + num_all_steps));
  for (int32_t stream = 0; stream < num_streams; ++stream) {
    TIDAL_RETURN_IF_ERROR(
        model_->runner->BindSampler(stream, SamplingParams{.temperature = 0.0f}, {}, {}));
  }
  step_seconds_.clear();
  double num_attended = 0;
  double num_available = 0;
  for (int step = 0; step < num_all_steps; ++step) {
    const int32_t num_context_tokens = decode_case.num_context_tokens + step;
    StepInFlight next;
    next.work = decode_case.work;
    next.token_ids =
        step == 0 ? RandomTokens(num_streams, model_->config.shape.vocab_size, 3)
                  : std::vector<int32_t>(static_cast<size_t>(num_streams), kLastSampledToken);
    next.batch = DecodeBatch(decode_case, num_context_tokens, next.token_ids);
    if (step >= num_warmup) {
      num_available += model_->plan.num_layers() * static_cast<double>(num_context_tokens);
      num_attended += static_cast<double>(model_->plan.AttendedTokens(
          next.batch.chunks.front().mode, decode_case.selection, num_context_tokens));
    }
    TIDAL_RETURN_IF_ERROR(Launch(std::move(next)));
  }
  TIDAL_RETURN_IF_ERROR(CollectAll());
  const std::vector<double> seconds(step_seconds_.begin() + num_warmup, step_seconds_.end());
  const double bytes =
      StepBytes(decode_case, decode_case.num_context_tokens + num_warmup + 0.5 * num_steps);
  const bool is_full = decode_case.mode == AttentionMode::kFull;
  const bool attends = decode_case.work == DecodeCase::Work::kWholeStep;
  return DecodeResult{.method = !attends  ? "projections"
                                : is_full ? "full"
                                          : "tidal",
                      .num_streams = num_streams,
                      .num_context_tokens = decode_case.num_context_tokens + num_warmup,
                      .token_budget = is_full ? 0 : decode_case.selection.token_budget,
                      .step_ms = SpreadOf(Scaled(1e3, seconds)),
                      .tokens_per_second = SpreadOf(PerSecond(num_streams, seconds)),
                      .attended_share = attends ? num_attended / num_available : 0.0,
                      .step_bytes = bytes,
                      .floor_ms = 1e3 * bytes / read_bandwidth_};
}

StepBatch StepBench::DecodeBatch(const DecodeCase& decode_case, int32_t num_context_tokens,
                                 absl::Span<const int32_t> token_ids) const {
  const bool runs_full = num_context_tokens <= decode_case.selection.token_budget;
  StepBatch batch;
  for (int32_t stream = 0; stream < decode_case.num_streams; ++stream) {
    batch.chunks.push_back({.token_ids = token_ids.subspan(static_cast<size_t>(stream), 1),
                            .num_context_tokens = num_context_tokens,
                            .block_table = sequences_.block_table(stream),
                            .mode = runs_full ? AttentionMode::kFull : decode_case.mode,
                            .selection = decode_case.selection,
                            .sampler_slot = stream,
                            .samples = true});
  }
  return batch;
}

double StepBench::StepBytes(const DecodeCase& decode_case, double num_context_tokens) const {
  const ModelShape& shape = model_->config.shape;
  const double token_bytes = 2.0 * shape.kv_size() * ElementBytes(*model_);
  const double weight_bytes = ElementBytes(*model_) * NumWeights(shape);
  if (decode_case.work == DecodeCase::Work::kProjections) return weight_bytes;
  const auto num_attended = static_cast<double>(model_->plan.AttendedTokens(
      decode_case.mode, decode_case.selection, static_cast<int32_t>(num_context_tokens)));
  return weight_bytes + decode_case.num_streams * token_bytes * num_attended;
}

absl::StatusOr<PrefillResult> StepBench::Prefill(int32_t num_prompt_tokens, int num_runs) {
  TIDAL_RETURN_IF_ERROR(sequences_.Reserve(/*num_sequences=*/1, num_prompt_tokens));
  const int32_t chunk_size = model_->max_batch_tokens;
  const std::vector<int32_t> tokens =
      RandomTokens(num_prompt_tokens, model_->config.shape.vocab_size, /*seed=*/5);
  std::vector<double> seconds;
  for (int run = 0; run < num_runs + 1; ++run) {
    TIDAL_RETURN_IF_ERROR(
        model_->runner->BindSampler(0, SamplingParams{.temperature = 0.0f}, tokens, {}));
    step_seconds_.clear();
    for (int32_t begin = 0; begin < num_prompt_tokens; begin += chunk_size) {
      const int32_t count = std::min(chunk_size, num_prompt_tokens - begin);
      StepInFlight next;
      next.batch.chunks.push_back({.token_ids = absl::MakeConstSpan(tokens).subspan(
                                       static_cast<size_t>(begin), static_cast<size_t>(count)),
                                   .num_context_tokens = begin + count,
                                   .block_table = sequences_.block_table(0),
                                   .samples = begin + count == num_prompt_tokens});
      TIDAL_RETURN_IF_ERROR(Launch(std::move(next)));
    }
    TIDAL_RETURN_IF_ERROR(CollectAll());
    if (run > 0)
      seconds.push_back(std::accumulate(step_seconds_.begin(), step_seconds_.end(), 0.0));
  }
  return PrefillResult{.num_prompt_tokens = num_prompt_tokens,
                       .chunk_size = chunk_size,
                       .seconds = SpreadOf(seconds),
                       .tokens_per_second = SpreadOf(PerSecond(num_prompt_tokens, seconds))};
}

absl::Status StepBench::Launch(StepInFlight step) {
  const auto most = static_cast<size_t>(model_->backend->max_steps_in_flight());
  step.launched = std::chrono::steady_clock::now();
  in_flight_.push_back(std::move(step));
  const StepInFlight& launched = in_flight_.back();
  TIDAL_RETURN_IF_ERROR(launched.work == DecodeCase::Work::kWholeStep
                            ? model_->runner->Launch(launched.batch)
                            : LaunchProjections(launched.batch));
  while (in_flight_.size() >= most) TIDAL_RETURN_IF_ERROR(CollectOldest());
  return absl::OkStatus();
}

absl::Status StepBench::LaunchProjections(const StepBatch& batch) {
  Backend* const backend = model_->backend.get();
  TIDAL_RETURN_IF_ERROR(backend->BeginStep(batch));
  TIDAL_RETURN_IF_ERROR(backend->Embed());
  for (int32_t layer = 0; layer < model_->plan.num_layers(); ++layer) {
    TIDAL_RETURN_IF_ERROR(backend->AttentionInput(layer));
    TIDAL_RETURN_IF_ERROR(backend->AttentionOutput(layer));
    TIDAL_RETURN_IF_ERROR(backend->Mlp(layer));
  }
  return backend->Sample();
}

absl::Status StepBench::CollectAll() {
  while (!in_flight_.empty()) TIDAL_RETURN_IF_ERROR(CollectOldest());
  return absl::OkStatus();
}

absl::Status StepBench::CollectOldest() {
  std::vector<SampledToken> sampled;
  TIDAL_RETURN_IF_ERROR(model_->runner->Collect(&sampled));
  const TimePoint end = std::chrono::steady_clock::now();
  const TimePoint begin = std::max(in_flight_.front().launched, last_end_);
  step_seconds_.push_back(std::chrono::duration<double>(end - begin).count());
  last_end_ = end;
  in_flight_.pop_front();
  return absl::OkStatus();
}

}  // namespace tidal
