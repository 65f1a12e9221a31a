#include "tools/step_bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/block_manager.h"

namespace tidal {
namespace {

std::vector<int32_t> RandomTokens(int32_t count, int32_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size)));
  }
  return tokens;
}

std::vector<double> PerSecond(double amount, const std::vector<double>& seconds) {
  std::vector<double> rates;
  rates.reserve(seconds.size());
  for (const double duration : seconds) rates.push_back(amount / duration);
  return rates;
}

}  // namespace

absl::StatusOr<DecodeResult> StepBench::Decode(const DecodeCase& decode_case, int num_warmup,
                                               int num_steps) {
  const int32_t num_streams = decode_case.num_streams;
  TIDAL_RETURN_IF_ERROR(
      FillCache(num_streams, decode_case.num_context_tokens + num_warmup + num_steps));
  for (int32_t stream = 0; stream < num_streams; ++stream) {
    TIDAL_RETURN_IF_ERROR(
        model_->runner->BindSampler(stream, SamplingParams{.temperature = 0.0f}, {}, {}));
  }
  std::vector<int32_t> tokens =
      RandomTokens(num_streams, model_->config.shape.vocab_size, /*seed=*/3);
  std::vector<double> seconds;
  double num_attended = 0;
  double num_available = 0;
  for (int step = 0; step < num_warmup + num_steps; ++step) {
    const int32_t num_context_tokens = decode_case.num_context_tokens + step;
    const bool runs_full = num_context_tokens <= decode_case.selection.token_budget;
    const AttentionMode mode = runs_full ? AttentionMode::kFull : decode_case.mode;
    StepBatch batch;
    for (int32_t stream = 0; stream < num_streams; ++stream) {
      const auto index = static_cast<size_t>(stream);
      batch.chunks.push_back({.token_ids = absl::MakeConstSpan(&tokens[index], 1),
                              .num_context_tokens = num_context_tokens,
                              .block_table = block_tables_[index],
                              .mode = mode,
                              .selection = decode_case.selection,
                              .sampler_slot = stream,
                              .samples = true});
    }
    TIDAL_ASSIGN_OR_RETURN(const double duration, TimeStep(batch));
    if (step >= num_warmup) {
      seconds.push_back(duration);
      num_available += model_->plan.num_layers() * num_context_tokens;
      num_attended += static_cast<double>(
          model_->plan.AttendedTokens(mode, decode_case.selection, num_context_tokens));
    }
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = sampled_[i].token_id;
  }
  std::vector<double> milliseconds;
  milliseconds.reserve(seconds.size());
  for (const double duration : seconds) milliseconds.push_back(1e3 * duration);
  const bool is_full = decode_case.mode == AttentionMode::kFull;
  return DecodeResult{.method = is_full ? "full" : "tidal",
                      .num_streams = num_streams,
                      .num_context_tokens = decode_case.num_context_tokens + num_warmup,
                      .token_budget = is_full ? 0 : decode_case.selection.token_budget,
                      .step_ms = SpreadOf(milliseconds),
                      .tokens_per_second = SpreadOf(PerSecond(num_streams, seconds)),
                      .attended_share = num_attended / num_available};
}

absl::StatusOr<PrefillResult> StepBench::Prefill(int32_t num_prompt_tokens, int num_runs) {
  TIDAL_RETURN_IF_ERROR(ReserveBlocks(/*num_streams=*/1, num_prompt_tokens));
  num_filled_streams_ = 0;
  const int32_t chunk_size = model_->max_batch_tokens;
  const std::vector<int32_t> tokens =
      RandomTokens(num_prompt_tokens, model_->config.shape.vocab_size, /*seed=*/5);
  std::vector<double> seconds;
  for (int run = 0; run < num_runs + 1; ++run) {
    TIDAL_RETURN_IF_ERROR(
        model_->runner->BindSampler(0, SamplingParams{.temperature = 0.0f}, tokens, {}));
    double total_seconds = 0;
    for (int32_t begin = 0; begin < num_prompt_tokens; begin += chunk_size) {
      const int32_t count = std::min(chunk_size, num_prompt_tokens - begin);
      StepBatch batch;
      batch.chunks.push_back({.token_ids = absl::MakeConstSpan(&tokens[static_cast<size_t>(begin)],
                                                               static_cast<size_t>(count)),
                              .num_context_tokens = begin + count,
                              .block_table = block_tables_[0],
                              .samples = begin + count == num_prompt_tokens});
      TIDAL_ASSIGN_OR_RETURN(const double duration, TimeStep(batch));
      total_seconds += duration;
    }
    if (run > 0) seconds.push_back(total_seconds);
  }
  return PrefillResult{.num_prompt_tokens = num_prompt_tokens,
                       .chunk_size = chunk_size,
                       .seconds = SpreadOf(seconds),
                       .tokens_per_second = SpreadOf(PerSecond(num_prompt_tokens, seconds))};
}

absl::Status StepBench::ReserveBlocks(int32_t num_streams, int32_t num_tokens) {
  const int32_t num_blocks_each = NumBlocksFor(num_tokens);
  const int64_t num_needed = int64_t{num_blocks_each} * num_streams;
  if (num_needed > model_->num_blocks || num_tokens > model_->max_model_len) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_streams, " streams of ", num_tokens, " tokens need ", num_needed,
                     " KV blocks; the cache has ", model_->num_blocks, ", and a context may have ",
                     model_->max_model_len, " tokens"));
  }
  block_tables_.assign(static_cast<size_t>(num_streams), {});
  int32_t next_block = 0;
  for (std::vector<int32_t>& table : block_tables_) {
    table.resize(static_cast<size_t>(num_blocks_each));
    std::iota(table.begin(), table.end(), next_block);
    next_block += num_blocks_each;
  }
  return absl::OkStatus();
}

absl::Status StepBench::FillCache(int32_t num_streams, int32_t num_tokens) {
  if (num_streams <= num_filled_streams_ && num_tokens == num_filled_tokens_) {
    return absl::OkStatus();
  }
  TIDAL_RETURN_IF_ERROR(ReserveBlocks(num_streams, num_tokens));
  for (const std::vector<int32_t>& table : block_tables_) TIDAL_RETURN_IF_ERROR(FillBlocks(table));
  num_filled_streams_ = num_streams;
  num_filled_tokens_ = num_tokens;
  return absl::OkStatus();
}

absl::Status StepBench::FillBlocks(absl::Span<const int32_t> blocks) {
  // Each chunk is a short sequence of its own, so that filling takes no long prefill.
  const auto blocks_per_chunk = static_cast<size_t>(model_->max_batch_tokens / kBlockSize);
  for (size_t begin = 0; begin < blocks.size(); begin += blocks_per_chunk) {
    const absl::Span<const int32_t> table = blocks.subspan(begin, blocks_per_chunk);
    const auto count = static_cast<int32_t>(table.size()) * kBlockSize;
    const std::vector<int32_t> tokens =
        RandomTokens(count, model_->config.shape.vocab_size, static_cast<uint32_t>(table.front()));
    StepBatch batch;
    batch.chunks.push_back(
        {.token_ids = tokens, .num_context_tokens = count, .block_table = table});
    TIDAL_ASSIGN_OR_RETURN([[maybe_unused]] const double duration, TimeStep(batch));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> StepBench::TimeStep(const StepBatch& batch) {
  const auto begin = std::chrono::steady_clock::now();
  TIDAL_RETURN_IF_ERROR(model_->runner->Launch(batch));
  TIDAL_RETURN_IF_ERROR(model_->runner->Collect(&sampled_));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace tidal
