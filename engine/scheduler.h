// Decides what each step computes: every running sequence's decode first, then chunks of prompts,
// short ones first, the oldest never without its share (README.md has the rule). Owns the queue,
// the running batch, the sampler slots, the blocks and the prefix cache. Engine thread only.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "engine/block_manager.h"
#include "engine/prefix_hash.h"
#include "engine/sequence.h"

namespace tidal {

struct SchedulerOptions {
  int32_t max_batch_tokens = 0;      // tokens a step
  int32_t max_running_requests = 0;  // at most max_batch_tokens, so that every decode has its place
  int32_t num_blocks = 0;
  bool prefix_caching = true;  // otherwise only the choices of a request share their prompt
};

struct ScheduledChunk {
  Sequence* sequence;
  int32_t num_tokens;  // from sequence->num_computed_tokens on
  bool is_decode;      // of a generated token, or its correction; otherwise prefill

  // Prefill and correction are always full attention, and so is whatever the budget covers whole.
  AttentionMode mode() const {
    const AttentionOptions& attention = sequence->request.attention;
    const int32_t num_context_tokens = sequence->num_computed_tokens + num_tokens;
    const bool runs_full = !is_decode || sequence->is_correcting ||
                           num_context_tokens <= attention.selection.token_budget;
    return runs_full ? AttentionMode::kFull : attention.mode;
  }

  // Whether the chunk's last token is the sequence's last, so that a new one is drawn.
  bool samples() const {
    return sequence->num_computed_tokens + num_tokens == sequence->num_tokens_ahead();
  }
};

struct StepPlan {
  std::vector<ScheduledChunk> chunks;
  std::vector<Sequence*> admitted;   // have just got blocks and a sampler slot
  std::vector<Sequence*> preempted;  // have just lost theirs, and wait again
  bool needs_preemption = false;     // which was not allowed; nothing else is planned then
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Puts a sequence into the queue, which is ordered by priority, then by arrival.
  void Enqueue(Sequence* sequence);

  // Takes a sequence out, wherever it is; its blocks and slot are free.
  void Remove(Sequence* sequence);

  // Plans the next step and allocates the blocks it writes. When blocks run out for a decode, the
  // newest sequence of the lowest priority is preempted. All tokens of a sequence must be read
  // before it is, so where steps are in flight `may_preempt` is false, and the plan says that it
  // would have had to. Otherwise the plan is empty only where every sequence is drawn to its end: a
  // sequence alone always fits, as the engine refuses those that never would.
  StepPlan PlanStep(bool may_preempt = true);

  // The fewest prompt tokens that will be computed until a sequence that is not enqueued yet can
  // have its first token, unless others are cancelled: its own, but for those that are cached or
  // that live sequences also have, and those of prefills that are served before it.
  int64_t MinTokensToFirstToken(Sequence* sequence) const;

  // The step is launched: its chunks' tokens count as computed, and those it draws as drawn. Blocks
  // that are full now can be found by later sequences: their steps come after this one.
  void MarkLaunched(const StepPlan& plan);

  // Empties the prefix cache; returns the number of blocks that could be found in it.
  int32_t FlushPrefixCache() { return blocks_.FlushCache(); }

  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t num_waiting_prompt_tokens() const { return num_waiting_prompt_tokens_; }
  const BlockManager& blocks() const { return blocks_; }

 private:
  // Whether `a` leaves the queue before `b`, and is preempted after it.
  struct ComesBefore {
    bool operator()(const Sequence* a, const Sequence* b) const {
      if (a->request.priority != b->request.priority) {
        return a->request.priority > b->request.priority;
      }
      return a->ticket < b->ticket;
    }
  };
  using Queue = std::set<Sequence*, ComesBefore>;

  void PlanDecodes(bool may_preempt, StepPlan* plan);
  // Shares what decodes leave of the step's tokens among sequences that correct, the oldest first.
  void PlanCorrections(StepPlan* plan);
  // Shares what decodes and corrections leave of the step's tokens among prefills, those admitted
  // now included.
  void PlanPrefills(StepPlan* plan);
  void AdmitWaiting(StepPlan* plan);

  // Makes room for one more token; false where that cost the sequence itself its place, or would
  // have cost another's.
  bool ReserveDecodeSlot(Sequence* sequence, bool may_preempt, StepPlan* plan);
  bool TryAdmit(Sequence* sequence);
  void Preempt(Sequence* sequence, StepPlan* plan);
  void ReleaseResources(Sequence* sequence);

  // A sequence that prefills in the step being planned.
  struct Prefill {
    Sequence* sequence;
    int32_t num_tokens_to_go;
  };
  // Whether `a` gets its tokens before `b`: by priority, then the one that is done sooner.
  static bool IsServedBefore(const Prefill& a, const Prefill& b);
  void AddPrefill(const Prefill& prefill);
  // The one that comes before all others in the queue's order; null where nothing prefills.
  const Prefill* OldestPrefill() const;
  // Tokens that the oldest prefill gets before any other.
  int32_t NumReservedTokens(const Prefill& oldest) const;
  // Whether the step being planned has tokens for one more prefill.
  bool HasTokensFor(const Prefill& prefill) const;
  // What a waiting sequence would have to compute.
  int32_t NumTokensToGoWhenAdmitted(Sequence* sequence) const;

  // The hashes of the blocks that a sequence may take over: at least one token is left to compute.
  absl::Span<const BlockHash> ReusablePrefix(Sequence* sequence) const;
  // Whether the sequence's blocks are found by others, and others' by it.
  bool SharesBlocks(const Sequence& sequence) const;
  // Makes block_hashes reach as far as the sequence's tokens fill blocks.
  void HashFullBlocks(Sequence* sequence) const;
  // Lets others find the sequence's blocks that are full, and exact.
  void OfferBlocks(Sequence* sequence);

  const SchedulerOptions options_;
  const PrefixHasher hasher_;
  BlockManager blocks_;
  Queue waiting_;
  Queue running_;
  int64_t num_waiting_prompt_tokens_ = 0;
  std::vector<int32_t> free_sampler_slots_;
  // Of the step being planned.
  int32_t num_tokens_left_ = 0;
  std::vector<Prefill> prefills_;  // in the order in which they are served
};

}  // namespace tidal
