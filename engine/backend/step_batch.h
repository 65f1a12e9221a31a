// What a backend computes in one step: chunks of sequences, each a run of successive positions.
// A decode is a chunk of one token; prefill, the recomputation after a preemption and KV-cache
// correction are longer ones. Spans are valid from BeginStep until the last
// stage of the step has been called.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/attention.h"

namespace tidal {

// In SequenceChunk::token_ids: the token that the chunk's sampler slot drew last, which the host
// may not have read yet.
inline constexpr int32_t kLastSampledToken = -1;

struct SequenceChunk {
  // [num_tokens] input tokens at positions num_context_tokens - num_tokens .. num_context_tokens
  // - 1. Their K and V are written to the cache, over what is there.
  absl::Span<const int32_t> token_ids;
  // Tokens in the cache once this chunk is written. Each query attends the positions up to its own.
  int32_t num_context_tokens = 0;
  // [ceil(num_context_tokens / kBlockSize) or more] block ids.
  absl::Span<const int32_t> block_table;
  // kTidal and kQuest only for chunks of one token whose context exceeds selection.token_budget.
  AttentionMode mode = AttentionMode::kFull;
  Selection selection = {};
  // The sequence's sampler (Backend::BindSampler), 0..max_batch_sequences - 1; no two chunks of a
  // step share one. From one BindSampler of a slot to the next, the blocks of positions before a
  // chunk are those that earlier chunks of the slot named: a backend may keep them. The first chunk
  // after BindSampler may begin behind blocks that other slots have written, and still read.
  int32_t sampler_slot = 0;
  // Whether the last token's logits are computed and a token is drawn.
  bool samples = false;

  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
};

struct StepBatch {
  std::vector<SequenceChunk> chunks;

  int32_t num_tokens() const {
    int32_t total = 0;
    for (const SequenceChunk& chunk : chunks) total += chunk.num_tokens();
    return total;
  }
};

}  // namespace tidal
