// The words of TidalDecode at the seam: which attention a sequence asks for, and what each layer of
// the plan makes of it. Policy (which layer selects, when a budget covers the whole context) lives
// above the seam; a backend only looks up what to compute.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace tidal {

// The KV cache's unit of allocation, in tokens.
inline constexpr int32_t kBlockSize = 16;

// The largest token budget that a backend must support.
inline constexpr int32_t kMaxTokenBudget = 4096;

// How a sequence attends in a step. The engine passes kFull for every prefill chunk and wherever
// the token budget covers the whole context.
enum class AttentionMode : uint8_t { kFull = 0, kTidal = 1, kQuest = 2 };
inline constexpr int kNumAttentionModes = 3;

// What one layer computes for a chunk.
enum class AttentionKind : uint8_t {
  kFull,    // causal attention over the whole KV cache
  kSelect,  // kFull's output; also picks this step's positions (see Selection)
  kSparse,  // softmax over the positions of the latest kSelect of this step only
  kQuest,   // each query head attends the best blocks by Quest's bound (see QuestBlocks)
};

// One layer's answer to each mode.
struct AttentionPass {
  std::array<AttentionKind, kNumAttentionModes> kind_of_mode = {
      AttentionKind::kFull, AttentionKind::kFull, AttentionKind::kFull};

  AttentionKind kind(AttentionMode mode) const { return kind_of_mode[static_cast<size_t>(mode)]; }
};

// Which heads share one set of selected positions.
enum class SelectionScope : uint8_t {
  kQueryHead,  // a set for each query head, by the raw score q.k / sqrt(head_dim)
  kKvHead,     // a set for each KV head, by post-softmax probability summed over its query heads
  kLayer,      // a set for all heads, by post-softmax probability, max over query heads
};

// How kSelect picks positions for one sequence. The set has exactly `token_budget` members (the
// context is longer than that, or the mode would be kFull), in ascending order: the current token,
// the first `num_sink_tokens`, the last `num_recent_tokens`, and the highest scores; ties go to the
// lower position. sinks + max(recents, 1) <= token_budget.
struct Selection {
  SelectionScope scope = SelectionScope::kQueryHead;
  int32_t token_budget = 0;       // 1..kMaxTokenBudget
  int32_t num_sink_tokens = 0;    // first positions, always kept
  int32_t num_recent_tokens = 0;  // last positions (the current one among them), always kept
};

// Which blocks kQuest (Tang et al., arXiv 2406.10774) attends: those with the highest
// sum_d max(q_d * min_d, q_d * max_d), where min and max are element-wise over the block's keys in
// the cache; ties go to the lower block. Always among them: the last one, and those that hold a
// sink or a recent token.
struct QuestBlocks {
  int32_t num_blocks = 0;   // of the context
  int32_t num_sinks = 0;    // first ones, always kept
  int32_t num_recents = 0;  // last ones, always kept; at least 1
  int32_t num_chosen = 0;  // of all, those kept included: max(3, token_budget / kBlockSize) or more

  // Positions attended: whole blocks but for the last one, which may be filled in part.
  int32_t num_positions(int32_t num_context_tokens) const {
    return num_context_tokens - (num_blocks - num_chosen) * kBlockSize;
  }
};

inline QuestBlocks QuestBlocksOf(const Selection& selection, int32_t num_context_tokens) {
  constexpr int32_t kMinBlocks = 3;
  const int32_t first_recent = num_context_tokens - std::max(selection.num_recent_tokens, 1);
  QuestBlocks blocks;
  blocks.num_blocks = (num_context_tokens + kBlockSize - 1) / kBlockSize;
  blocks.num_sinks = (selection.num_sink_tokens + kBlockSize - 1) / kBlockSize;
  blocks.num_recents = blocks.num_blocks - first_recent / kBlockSize;
  blocks.num_chosen =
      std::min(blocks.num_blocks, std::max({kMinBlocks, selection.token_budget / kBlockSize,
                                            blocks.num_sinks + blocks.num_recents}));
  return blocks;
}

}  // namespace tidal
