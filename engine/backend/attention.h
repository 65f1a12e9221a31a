// The words of TidalDecode at the seam: which attention a sequence asks for, and what each layer of
// the plan makes of it. Policy (which layer selects, when a budget covers the whole context) lives
// above the seam; a backend only looks up what to compute.
#pragma once

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
  kQuest,   // attends the best blocks by Quest's upper bound
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

}  // namespace tidal
