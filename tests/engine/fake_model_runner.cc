#include "tests/engine/fake_model_runner.h"

#include <set>
#include <utility>

#include "engine/block_manager.h"
#include "engine/check.h"

namespace tidal {

FakeModelRunner::FakeModelRunner(int32_t num_blocks, NextToken next_token,
                                 int32_t max_steps_in_flight)
    : next_token_(std::move(next_token)),
      max_steps_in_flight_(max_steps_in_flight),
      cache_(static_cast<size_t>(num_blocks) * kBlockSize) {}

absl::Status FakeModelRunner::BindSampler(int32_t slot, const SamplingParams& params,
                                          absl::Span<const int32_t> prompt_token_ids,
                                          absl::Span<const int32_t> generated_token_ids) {
  if (on_bind_) on_bind_(params);
  std::vector<int32_t>& history = bound_history_[slot];
  history.assign(prompt_token_ids.begin(), prompt_token_ids.end());
  history.insert(history.end(), generated_token_ids.begin(), generated_token_ids.end());
  return absl::OkStatus();
}

absl::Status FakeModelRunner::Launch(const StepBatch& batch) {
  if (on_launch_) {
    if (absl::Status status = on_launch_(batch); !status.ok()) return status;
  }
  TIDAL_CHECK(batch.num_tokens() > 0, "a step computes something");
  std::set<int32_t> slots;
  LaunchedStep step;
  TIDAL_CHECK(static_cast<int32_t>(sampled_.size()) < max_steps_in_flight_,
              "no more steps are in flight than allowed");
  std::vector<SampledToken> sampled;
  for (const SequenceChunk& chunk : batch.chunks) {
    TIDAL_CHECK(slots.insert(chunk.sampler_slot).second, "no two chunks share a sampler slot");
    TIDAL_CHECK(chunk.num_tokens() > 0, "no chunk is empty");
    TIDAL_CHECK(
        static_cast<int32_t>(chunk.block_table.size()) >= NumBlocksFor(chunk.num_context_tokens),
        "the block table covers the context");
    TIDAL_CHECK(
        chunk.mode == AttentionMode::kFull ||
            (chunk.num_tokens() == 1 && chunk.num_context_tokens > chunk.selection.token_budget),
        "sparse modes are for decodes beyond their budget");
    for (int32_t i = 0; i < chunk.num_tokens(); ++i) {
      const int32_t position = chunk.num_context_tokens - chunk.num_tokens() + i;
      const int32_t block = chunk.block_table[static_cast<size_t>(position / kBlockSize)];
      int32_t token_id = chunk.token_ids[static_cast<size_t>(i)];
      if (token_id == kLastSampledToken) {
        const std::vector<int32_t>& bound = bound_history_[chunk.sampler_slot];
        TIDAL_CHECK(!bound.empty(), "the slot has drawn a token");
        token_id = bound.back();
      }
      cache_[static_cast<size_t>(block * kBlockSize + position % kBlockSize)] = {token_id,
                                                                                 position};
    }
    step.push_back({chunk.num_tokens(), chunk.num_context_tokens, chunk.mode, chunk.samples,
                    chunk.sampler_slot});
  }
  // Only now, so that a block that two sequences write to is noticed.
  for (const SequenceChunk& chunk : batch.chunks) {
    const std::vector<int32_t> history = ReadHistory(chunk);
    if (!chunk.samples) continue;
    std::vector<int32_t>& bound = bound_history_[chunk.sampler_slot];
    TIDAL_CHECK(bound == history, "the sampler's history is the cache's");
    SampledToken token;
    token.token_id = next_token_(history);
    bound.push_back(token.token_id);
    sampled.push_back(std::move(token));
  }
  sampled_.push_back(std::move(sampled));
  const std::lock_guard<std::mutex> lock(mutex_);
  launched_steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status FakeModelRunner::Collect(std::vector<SampledToken>* sampled) {
  if (on_collect_) {
    if (absl::Status status = on_collect_(); !status.ok()) return status;
  }
  TIDAL_CHECK(!sampled_.empty(), "a step is in flight");
  *sampled = std::move(sampled_.front());
  sampled_.pop_front();
  return absl::OkStatus();
}

std::vector<FakeModelRunner::LaunchedStep> FakeModelRunner::launched_steps() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return launched_steps_;
}

std::vector<int32_t> FakeModelRunner::ReadHistory(const SequenceChunk& chunk) const {
  std::vector<int32_t> history;
  history.reserve(static_cast<size_t>(chunk.num_context_tokens));
  for (int32_t position = 0; position < chunk.num_context_tokens; ++position) {
    const int32_t block = chunk.block_table[static_cast<size_t>(position / kBlockSize)];
    const CachedToken& token =
        cache_[static_cast<size_t>(block * kBlockSize + position % kBlockSize)];
    TIDAL_CHECK(token.position == position, "a block holds its own sequence's tokens");
    history.push_back(token.token_id);
  }
  return history;
}

int32_t FakeModelRunner::HashOfHistory(const std::vector<int32_t>& history, int32_t vocab_size) {
  uint64_t hash = 1469598103934665603u;
  for (const int32_t token_id : history) {
    hash = (hash ^ static_cast<uint32_t>(token_id)) * 1099511628211u;
  }
  return static_cast<int32_t>((hash >> 17) % static_cast<uint64_t>(vocab_size));
}

}  // namespace tidal
