#include "engine/scheduler.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "engine/check.h"

namespace tidal {
namespace {

// Of a step's prefill tokens, the oldest prefill gets one in so many before any other gets some.
constexpr int32_t kOldestPrefillShare = 4;

// Waiting sequences that one step looks at, so that a long queue does not cost much.
constexpr int kMaxExaminedSequences = 64;

// How many leading hashes two sequences have in common. Since each stands for all before it, the
// equal ones come first.
int64_t CountEqual(absl::Span<const BlockHash> a, absl::Span<const BlockHash> b) {
  a = a.first(std::min(a.size(), b.size()));
  const auto differs = std::partition_point(
      a.begin(), a.end(), [&](const BlockHash& hash) { return hash == b[&hash - a.data()]; });
  return differs - a.begin();
}

}  // namespace

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
  PlanCorrections(&plan);
  PlanPrefills(&plan);
  return plan;
}

void Scheduler::MarkLaunched(const StepPlan& plan) {
  for (const ScheduledChunk& chunk : plan.chunks) {
    Sequence& sequence = *chunk.sequence;
    const bool is_exact = sequence.num_exact_tokens == sequence.num_computed_tokens &&
                          chunk.mode() == AttentionMode::kFull;
    if (is_exact) sequence.num_exact_tokens += chunk.num_tokens;
    if (chunk.samples()) {
      ++sequence.num_unread_tokens;
      sequence.is_correcting = false;
    }
    sequence.num_computed_tokens += chunk.num_tokens;
    OfferBlocks(&sequence);
  }
}

void Scheduler::PlanDecodes(bool may_preempt, StepPlan* plan) {
  // Oldest first: preemption takes from the end, so what has been planned keeps its place.
  for (auto it = running_.begin(); it != running_.end() && !plan->needs_preemption;) {
    Sequence* sequence = *it;
    const bool decodes =
        !sequence->is_prefilling() && !sequence->is_correcting && !sequence->is_drawn_to_the_end();
    const bool corrects = decodes && sequence->is_correction_due();
    // A correction computes all tokens anew, so they have to be read first.
    const bool waits = corrects && sequence->num_unread_tokens > 0;
    if (decodes && !waits && ReserveDecodeSlot(sequence, may_preempt, plan)) {
      if (corrects) {
        sequence->is_correcting = true;
        sequence->num_computed_tokens = sequence->num_exact_tokens;
      } else {
        plan->chunks.push_back({.sequence = sequence, .num_tokens = 1, .is_decode = true});
        --num_tokens_left_;
      }
    }
    it = running_.upper_bound(sequence);
  }
}

void Scheduler::PlanCorrections(StepPlan* plan) {
  for (Sequence* sequence : running_) {
    if (!sequence->is_correcting || num_tokens_left_ == 0) continue;
    const int32_t num_tokens =
        std::min(sequence->num_tokens() - sequence->num_computed_tokens, num_tokens_left_);
    plan->chunks.push_back({.sequence = sequence, .num_tokens = num_tokens, .is_decode = true});
    num_tokens_left_ -= num_tokens;
  }
}

void Scheduler::PlanPrefills(StepPlan* plan) {
  prefills_.clear();
  for (Sequence* sequence : running_) {
    if (!sequence->is_prefilling()) continue;
    AddPrefill({sequence, sequence->num_prefill_tokens() - sequence->num_computed_tokens});
  }
  // What has just been taken from a sequence is not given to a newer one.
  if (plan->preempted.empty()) AdmitWaiting(plan);
  const Prefill* oldest = OldestPrefill();
  if (oldest == nullptr) return;
  const int32_t num_reserved_tokens = NumReservedTokens(*oldest);
  num_tokens_left_ -= num_reserved_tokens;
  for (const Prefill& prefill : prefills_) {
    const int32_t num_granted_tokens = &prefill == oldest ? num_reserved_tokens : 0;
    const int32_t num_more_tokens =
        std::min(prefill.num_tokens_to_go - num_granted_tokens, num_tokens_left_);
    num_tokens_left_ -= num_more_tokens;
    const int32_t num_tokens = num_granted_tokens + num_more_tokens;
    if (num_tokens == 0) continue;
    plan->chunks.push_back(
        {.sequence = prefill.sequence, .num_tokens = num_tokens, .is_decode = false});
  }
}

void Scheduler::AdmitWaiting(StepPlan* plan) {
  int num_examined = 0;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (num_running() == options_.max_running_requests || num_tokens_left_ == 0) return;
    if (num_examined++ == kMaxExaminedSequences) return;
    Sequence* sequence = *it;
    // Shorter prompts may overtake one that could not compute anything now, so that they do not
    // wait for it, but none that waits for blocks: a long prompt's turn comes.
    if (!HasTokensFor({sequence, NumTokensToGoWhenAdmitted(sequence)})) {
      ++it;
      continue;
    }
    if (!TryAdmit(sequence)) return;
    it = waiting_.erase(it);
    num_waiting_prompt_tokens_ -= sequence->num_prompt_tokens();
    running_.insert(sequence);
    plan->admitted.push_back(sequence);
    AddPrefill({sequence, sequence->num_prefill_tokens() - sequence->num_computed_tokens});
  }
}

bool Scheduler::IsServedBefore(const Prefill& a, const Prefill& b) {
  if (a.sequence->request.priority != b.sequence->request.priority) {
    return a.sequence->request.priority > b.sequence->request.priority;
  }
  if (a.num_tokens_to_go != b.num_tokens_to_go) return a.num_tokens_to_go < b.num_tokens_to_go;
  return a.sequence->ticket < b.sequence->ticket;
}

void Scheduler::AddPrefill(const Prefill& prefill) {
  prefills_.insert(std::upper_bound(prefills_.begin(), prefills_.end(), prefill, IsServedBefore),
                   prefill);
}

const Scheduler::Prefill* Scheduler::OldestPrefill() const {
  const auto oldest = std::min_element(
      prefills_.begin(), prefills_.end(),
      [](const Prefill& a, const Prefill& b) { return ComesBefore()(a.sequence, b.sequence); });
  return oldest == prefills_.end() ? nullptr : &*oldest;
}

int32_t Scheduler::NumReservedTokens(const Prefill& oldest) const {
  return std::min(oldest.num_tokens_to_go,
                  std::max(std::min(num_tokens_left_, 1), num_tokens_left_ / kOldestPrefillShare));
}

bool Scheduler::HasTokensFor(const Prefill& prefill) const {
  const Prefill* oldest = OldestPrefill();
  if (oldest == nullptr || ComesBefore()(prefill.sequence, oldest->sequence)) {
    return num_tokens_left_ > 0;
  }
  int64_t num_tokens = num_tokens_left_;
  if (!IsServedBefore(*oldest, prefill)) num_tokens -= NumReservedTokens(*oldest);
  for (const Prefill& other : prefills_) {
    if (!IsServedBefore(other, prefill)) break;
    num_tokens -= other.num_tokens_to_go;
  }
  return num_tokens > 0;
}

int32_t Scheduler::NumTokensToGoWhenAdmitted(Sequence* sequence) const {
  return sequence->num_prefill_tokens() - blocks_.CountFound(ReusablePrefix(sequence)) * kBlockSize;
}

int64_t Scheduler::MinTokensToFirstToken(Sequence* sequence) const {
  const absl::Span<const BlockHash> prefix = ReusablePrefix(sequence);
  int64_t num_reusable_blocks = blocks_.CountFound(prefix);
  std::vector<Prefill> others;
  const auto add = [&](Sequence* other, int32_t num_tokens_to_go) {
    others.push_back({other, num_tokens_to_go});
    num_reusable_blocks = std::max(num_reusable_blocks, CountEqual(prefix, other->block_hashes));
  };
  for (Sequence* other : running_) {
    add(other, std::max(other->num_prefill_tokens() - other->num_computed_tokens, 0));
  }
  int num_examined = 0;
  for (Sequence* other : waiting_) {
    if (num_examined++ == kMaxExaminedSequences) break;
    add(other, NumTokensToGoWhenAdmitted(other));
  }
  const auto num_own_tokens =
      static_cast<int32_t>(sequence->num_prefill_tokens() - num_reusable_blocks * kBlockSize);
  int64_t num_tokens = num_own_tokens;
  for (const Prefill& other : others) {
    if (IsServedBefore(other, {sequence, num_own_tokens})) num_tokens += other.num_tokens_to_go;
  }
  return num_tokens;
}

absl::Span<const BlockHash> Scheduler::ReusablePrefix(Sequence* sequence) const {
  if (!SharesBlocks(*sequence)) return {};
  HashFullBlocks(sequence);
  return absl::MakeConstSpan(sequence->block_hashes)
      .first(static_cast<size_t>((sequence->num_prefill_tokens() - 1) / kBlockSize));
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
  // Each running sequence keeps a block to grow into, or admitting one would soon preempt it again.
  const std::optional<int32_t> num_cached_blocks =
      blocks_.AllocateAfterPrefix(ReusablePrefix(sequence), NumBlocksFor(sequence->num_tokens()),
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
  sequence->is_correcting = false;
  ++sequence->num_preemptions;
  Enqueue(sequence);
  plan->preempted.push_back(sequence);
}

void Scheduler::ReleaseResources(Sequence* sequence) {
  OfferBlocks(sequence);
  blocks_.Release(&sequence->block_table);
  sequence->num_offered_blocks = 0;
  free_sampler_slots_.push_back(sequence->sampler_slot);
  sequence->sampler_slot = -1;
}

bool Scheduler::SharesBlocks(const Sequence& sequence) const {
  return options_.prefix_caching || sequence.request.num_choices > 1;
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
  if (!SharesBlocks(*sequence)) return;
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
