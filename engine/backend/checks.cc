#include "engine/backend/checks.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

absl::Status CheckSelection(const SequenceChunk& chunk) {
  const Selection& selection = chunk.selection;
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_tokens of a chunk with sparse attention", chunk.num_tokens(), 1, 1));
  TIDAL_RETURN_IF_ERROR(CheckRange("token_budget", selection.token_budget, 1,
                                   std::min(kMaxTokenBudget, chunk.num_context_tokens - 1)));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_recent_tokens", selection.num_recent_tokens, 0, selection.token_budget));
  return CheckRange("num_sink_tokens", selection.num_sink_tokens, 0,
                    selection.token_budget - std::max(selection.num_recent_tokens, 1));
}

absl::Status CheckChunk(const SequenceChunk& chunk, const ModelShape& shape,
                        const StepLimits& limits, int32_t num_blocks) {
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_context_tokens", chunk.num_context_tokens, 1, limits.max_model_len));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_tokens of a chunk", chunk.num_tokens(), 1, chunk.num_context_tokens));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("sampler_slot", chunk.sampler_slot, 0, limits.max_batch_sequences - 1));
  const size_t needed_blocks =
      (static_cast<size_t>(chunk.num_context_tokens) + kBlockSize - 1) / kBlockSize;
  if (chunk.block_table.size() < needed_blocks) {
    return absl::InvalidArgumentError(absl::StrCat("block_table has ", chunk.block_table.size(),
                                                   " blocks, ", chunk.num_context_tokens,
                                                   " tokens need ", needed_blocks));
  }
  for (const int32_t block : chunk.block_table.first(needed_blocks)) {
    TIDAL_RETURN_IF_ERROR(CheckRange("block id", block, 0, num_blocks - 1));
  }
  for (const int32_t token_id : chunk.token_ids) {
    TIDAL_RETURN_IF_ERROR(
        CheckRange("token id", token_id, kLastSampledToken, shape.vocab_size - 1));
  }
  return chunk.mode == AttentionMode::kFull ? absl::OkStatus() : CheckSelection(chunk);
}

absl::Status CheckTokenIds(absl::string_view name, absl::Span<const int32_t> token_ids,
                           int32_t vocab_size) {
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " holds ", id, ", must be in 0..", vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRange(absl::string_view name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, ", must be in ", min, "..", max));
}

absl::Status Backend::CheckAttention(AttentionMode mode, const Selection& selection) const {
  if (mode == AttentionMode::kQuest) {
    return absl::UnimplementedError(
        absl::StrCat("attention mode quest is not served on this device (", description(),
                     "); use tidal or full"));
  }
  if (mode == AttentionMode::kTidal && selection.scope == SelectionScope::kLayer) {
    return absl::UnimplementedError(
        absl::StrCat("selection scope layer is not served on this device (", description(),
                     "); use query_head or kv_head"));
  }
  return absl::OkStatus();
}

absl::Status CheckShape(const ModelShape& shape) {
  constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max() / 8;
  constexpr int64_t kMaxHeadDim = 512;
  TIDAL_RETURN_IF_ERROR(CheckRange("num_layers", shape.num_layers, 1, kMaxSize));
  TIDAL_RETURN_IF_ERROR(CheckRange("hidden_size", shape.hidden_size, 1, kMaxSize));
  TIDAL_RETURN_IF_ERROR(CheckRange("intermediate_size", shape.intermediate_size, 1, kMaxSize));
  TIDAL_RETURN_IF_ERROR(CheckRange("vocab_size", shape.vocab_size, 1, kMaxSize));
  TIDAL_RETURN_IF_ERROR(CheckRange("head_dim", shape.head_dim, 2, kMaxHeadDim));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_query_heads", shape.num_query_heads, 1, kMaxSize / kMaxHeadDim));
  TIDAL_RETURN_IF_ERROR(CheckRange("num_kv_heads", shape.num_kv_heads, 1, shape.num_query_heads));
  if (shape.num_query_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_query_heads is ", shape.num_query_heads,
                                                   ", must be a multiple of num_kv_heads ",
                                                   shape.num_kv_heads));
  }
  const int64_t num_frequencies = static_cast<int64_t>(shape.rope_inverse_frequencies.size());
  return CheckRange("the number of rope_inverse_frequencies", num_frequencies, shape.head_dim / 2,
                    shape.head_dim / 2);
}

absl::Status CheckLimits(const StepLimits& limits) {
  constexpr int64_t kMaxCount = 1 << 20;
  TIDAL_RETURN_IF_ERROR(CheckRange("max_batch_tokens", limits.max_batch_tokens, 1, kMaxCount));
  TIDAL_RETURN_IF_ERROR(CheckRange("max_batch_sequences", limits.max_batch_sequences, 1, 1 << 14));
  return CheckRange("max_model_len", limits.max_model_len, 1, 1 << 26);
}

absl::Status CheckStep(const StepBatch& batch, const ModelShape& shape, const StepLimits& limits,
                       int32_t num_blocks) {
  TIDAL_RETURN_IF_ERROR(CheckRange("number of chunks in a step",
                                   static_cast<int64_t>(batch.chunks.size()), 1,
                                   limits.max_batch_sequences));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("number of tokens in a step", batch.num_tokens(), 1, limits.max_batch_tokens));
  for (const SequenceChunk& chunk : batch.chunks) {
    TIDAL_RETURN_IF_ERROR(CheckChunk(chunk, shape, limits, num_blocks));
  }
  return absl::OkStatus();
}

absl::Status CheckBinding(int32_t slot, const SamplingParams& params,
                          absl::Span<const int32_t> prompt_token_ids,
                          absl::Span<const int32_t> generated_token_ids, int32_t num_slots,
                          int32_t vocab_size) {
  TIDAL_RETURN_IF_ERROR(CheckRange("sampler slot", slot, 0, num_slots - 1));
  TIDAL_RETURN_IF_ERROR(CheckRange("num_top_logprobs", params.num_top_logprobs, 0,
                                   std::min(kMaxTopLogprobs, vocab_size)));
  for (const LogitBias& entry : params.logit_bias) {
    TIDAL_RETURN_IF_ERROR(CheckTokenIds("logit_bias", {&entry.token_id, 1}, vocab_size));
  }
  TIDAL_RETURN_IF_ERROR(
      CheckTokenIds("suppressed_token_ids", params.suppressed_token_ids, vocab_size));
  TIDAL_RETURN_IF_ERROR(CheckTokenIds("prompt_token_ids", prompt_token_ids, vocab_size));
  return CheckTokenIds("generated_token_ids", generated_token_ids, vocab_size);
}

}  // namespace tidal
