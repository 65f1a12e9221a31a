#include "engine/scheduler.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "engine/check.h"

namespace tidal {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), blocks_(options.num_blocks) {
  TIDAL_CHECK(options.max_running_requests > 0, "at least one request runs");
  TIDAL_CHECK(options.max_running_requests <= options.max_batch_tokens,
              "every running request can decode in each step");
  for (int32_t slot = options.max_running_requests - 1; slot >= 0; --slot) {
    free_sampler_slots_.push_back(slot);
  }
}

void Scheduler::Enqueue(Sequence* sequence) {
  waiting_.insert(sequence);
  num_waiting_prompt_tokens_ += sequence->num_prompt_tokens();
}

void Scheduler::Remove(Sequence* sequence) {
  if (waiting_.erase(sequence) > 0) {
    num_waiting_prompt_tokens_ -= sequence->num_prompt_tokens();
    return;
  }
  const size_t num_removed = running_.erase(sequence);
  TIDAL_CHECK(num_removed == 1, "a sequence waits or runs");
  ReleaseResources(sequence);
}

StepPlan Scheduler::PlanStep(bool may_preempt) {
  StepPlan plan;
  num_tokens_left_ = options_.max_batch_tokens;
  PlanDecodes(may_preempt, &plan);
  if (plan.needs_preemption) {
    // Blocks that decodes have got meanwhile are theirs; they will need them.
    plan.chunks.clear();
    return plan;
  }
  PlanPrefills(&plan);
  // What has just been taken from a sequence is not given to a newer one.
  if (plan.preempted.empty()) AdmitWaiting(&plan);
  return plan;
}

void Scheduler::MarkLaunched(const StepPlan& plan) {
  for (const ScheduledChunk& chunk : plan.chunks) {
    Sequence& sequence = *chunk.sequence;
    const bool is_exact = sequence.num_exact_tokens == sequence.num_computed_tokens &&
                          chunk.mode() == AttentionMode::kFull;
    if (is_exact) sequence.num_exact_tokens += chunk.num_tokens;
    if (chunk.samples()) ++sequence.num_unread_tokens;
    sequence.num_computed_tokens += chunk.num_tokens;
    OfferBlocks(&sequence);
  }
}

void Scheduler::PlanDecodes(bool may_preempt, StepPlan* plan) {
  // Oldest first: preemption takes from the end, so what has been planned keeps its place.
  for (auto it = running_.begin(); it != running_.end() && !plan->needs_preemption;) {
    Sequence* sequence = *it;
    if (!sequence->is_prefilling() && !sequence->is_drawn_to_the_end() &&
        ReserveDecodeSlot(sequence, may_preempt, plan)) {
      plan->chunks.push_back({.sequence = sequence, .num_tokens = 1, .is_decode = true});
      --num_tokens_left_;
    }
    it = running_.upper_bound(sequence);
  }
}

void Scheduler::PlanPrefills(StepPlan* plan) {
  for (Sequence* sequence : running_) {
    if (num_tokens_left_ == 0) return;
    if (sequence->is_prefilling()) AddPrefillChunk(sequence, plan);
  }
}

void Scheduler::AdmitWaiting(StepPlan* plan) {
  while (!waiting_.empty() && num_tokens_left_ > 0) {
    Sequence* sequence = *waiting_.begin();
    if (!TryAdmit(sequence)) return;  // nobody overtakes: a long prompt's turn comes
    waiting_.erase(waiting_.begin());
    num_waiting_prompt_tokens_ -= sequence->num_prompt_tokens();
    running_.insert(sequence);
    plan->admitted.push_back(sequence);
    AddPrefillChunk(sequence, plan);
  }
}

bool Scheduler::ReserveDecodeSlot(Sequence* sequence, bool may_preempt, StepPlan* plan) {
  const int32_t num_blocks_needed = NumBlocksFor(sequence->num_computed_tokens + 1);
  if (num_blocks_needed <= static_cast<int32_t>(sequence->block_table.size())) return true;
  while (!blocks_.Allocate(1, &sequence->block_table)) {
    if (!may_preempt) {
      plan->needs_preemption = true;
      return false;
    }
    Sequence* newest = *running_.rbegin();
    TIDAL_CHECK(newest != sequence || running_.size() > 1, "a sequence alone fits the KV cache");
    Preempt(newest, plan);
    if (newest == sequence) return false;
  }
  return true;
}

bool Scheduler::TryAdmit(Sequence* sequence) {
  if (num_running() == options_.max_running_requests) return false;
  // At least one token is computed, or nothing would be drawn.
  absl::Span<const BlockHash> prefix;
  if (options_.prefix_caching) {
    HashFullBlocks(sequence);
    prefix = absl::MakeConstSpan(sequence->block_hashes)
                 .first(static_cast<size_t>((sequence->num_prefill_tokens() - 1) / kBlockSize));
  }
  // Each running sequence keeps a block to grow into, or admitting one would soon preempt it again.
  const std::optional<int32_t> num_cached_blocks =
      blocks_.AllocateAfterPrefix(prefix, NumBlocksFor(sequence->num_tokens()),
                                  /*num_spare=*/num_running(), &sequence->block_table);
  if (!num_cached_blocks.has_value()) return false;
  sequence->num_offered_blocks = *num_cached_blocks;
  sequence->num_computed_tokens = *num_cached_blocks * kBlockSize;
  sequence->num_exact_tokens = sequence->num_computed_tokens;
  if (sequence->num_preemptions == 0) {
    sequence->num_cached_prompt_tokens = sequence->num_computed_tokens;
  }
  sequence->sampler_slot = free_sampler_slots_.back();
  free_sampler_slots_.pop_back();
  return true;
}

void Scheduler::Preempt(Sequence* sequence, StepPlan* plan) {
  running_.erase(sequence);
  ReleaseResources(sequence);
  sequence->num_computed_tokens = 0;
  sequence->num_exact_tokens = 0;
  ++sequence->num_preemptions;
  Enqueue(sequence);
  plan->preempted.push_back(sequence);
}

void Scheduler::AddPrefillChunk(Sequence* sequence, StepPlan* plan) {
  const int32_t num_tokens_to_go = sequence->num_prefill_tokens() - sequence->num_computed_tokens;
  const int32_t num_tokens = std::min(num_tokens_to_go, num_tokens_left_);
  plan->chunks.push_back({.sequence = sequence, .num_tokens = num_tokens, .is_decode = false});
  num_tokens_left_ -= num_tokens;
}

void Scheduler::ReleaseResources(Sequence* sequence) {
  OfferBlocks(sequence);
  blocks_.Release(&sequence->block_table);
  sequence->num_offered_blocks = 0;
  free_sampler_slots_.push_back(sequence->sampler_slot);
  sequence->sampler_slot = -1;
}

void Scheduler::HashFullBlocks(Sequence* sequence) const {
  std::vector<BlockHash>& hashes = sequence->block_hashes;
  const auto num_full_blocks = static_cast<size_t>(sequence->num_tokens() / kBlockSize);
  hashes.reserve(num_full_blocks);
  while (hashes.size() < num_full_blocks) {
    const BlockHash parent =
        hashes.empty() ? hasher_.Root(sequence->request.cache_salt) : hashes.back();
    hashes.push_back(hasher_.Next(
        parent,
        absl::MakeConstSpan(sequence->token_ids).subspan(hashes.size() * kBlockSize, kBlockSize)));
  }
}

void Scheduler::OfferBlocks(Sequence* sequence) {
  if (!options_.prefix_caching) return;
  // Tokens that are drawn but not yet read have no hash.
  const int32_t num_blocks =
      std::min(sequence->num_exact_tokens, sequence->num_tokens()) / kBlockSize;
  if (sequence->num_offered_blocks >= num_blocks) return;
  HashFullBlocks(sequence);
  for (; sequence->num_offered_blocks < num_blocks; ++sequence->num_offered_blocks) {
    const auto index = static_cast<size_t>(sequence->num_offered_blocks);
    blocks_.Offer(sequence->block_table[index], sequence->block_hashes[index]);
  }
}

}  // namespace tidal
