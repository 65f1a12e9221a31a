#include "engine/cpu/step_tables.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/backend/status_macros.h"

namespace tidal::cpu {
namespace {

absl::Status CheckRange(absl::string_view name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, ", must be in ", min, "..", max));
}

// What a later version of this backend will compute.
absl::Status CheckImplemented(const SequenceChunk& chunk) {
  if (chunk.mode == AttentionMode::kQuest) {
    return absl::UnimplementedError("attention mode quest is not implemented on the CPU backend");
  }
  if (chunk.mode == AttentionMode::kTidal && chunk.selection.scope == SelectionScope::kLayer) {
    return absl::UnimplementedError(
        "selection scope layer is not implemented on the CPU backend; use query_head or kv_head");
  }
  return absl::OkStatus();
}

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

}  // namespace

StepTables::StepTables(const ModelShape& shape, const StepLimits& limits)
    : shape_(shape), limits_(limits) {
  const size_t num_chunks = static_cast<size_t>(limits.max_batch_sequences);
  const size_t num_rows = static_cast<size_t>(limits.max_batch_tokens);
  chunks_.reserve(num_chunks);
  sampling_chunks_.reserve(num_chunks);
  for (std::vector<int32_t>* column : {&token_ids_, &positions_, &slots_, &chunk_of_row_}) {
    column->reserve(num_rows);
  }
}

absl::Status StepTables::CheckChunk(const SequenceChunk& chunk, int32_t num_blocks) const {
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_context_tokens", chunk.num_context_tokens, 1, limits_.max_model_len));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("num_tokens of a chunk", chunk.num_tokens(), 1, chunk.num_context_tokens));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("sampler_slot", chunk.sampler_slot, 0, limits_.max_batch_sequences - 1));
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
        CheckRange("token id", token_id, kLastSampledToken, shape_.vocab_size - 1));
  }
  TIDAL_RETURN_IF_ERROR(CheckImplemented(chunk));
  return chunk.mode == AttentionMode::kFull ? absl::OkStatus() : CheckSelection(chunk);
}

void StepTables::AddChunk(const SequenceChunk& chunk) {
  const int32_t index = static_cast<int32_t>(chunks_.size());
  const int32_t first_position = chunk.num_context_tokens - chunk.num_tokens();
  chunks_.push_back({chunk, num_rows(), first_position});
  if (chunk.samples) sampling_chunks_.push_back(index);
  for (int32_t i = 0; i < chunk.num_tokens(); ++i) {
    const int32_t position = first_position + i;
    const int32_t block = chunk.block_table[static_cast<size_t>(position / kBlockSize)];
    token_ids_.push_back(chunk.token_ids[static_cast<size_t>(i)]);
    positions_.push_back(position);
    slots_.push_back(block * kBlockSize + position % kBlockSize);
    chunk_of_row_.push_back(index);
  }
}

absl::Status StepTables::Set(const StepBatch& batch, int32_t num_blocks) {
  TIDAL_RETURN_IF_ERROR(CheckRange("number of chunks in a step",
                                   static_cast<int64_t>(batch.chunks.size()), 1,
                                   limits_.max_batch_sequences));
  TIDAL_RETURN_IF_ERROR(
      CheckRange("number of tokens in a step", batch.num_tokens(), 1, limits_.max_batch_tokens));
  for (const SequenceChunk& chunk : batch.chunks) {
    TIDAL_RETURN_IF_ERROR(CheckChunk(chunk, num_blocks));
  }
  chunks_.clear();
  sampling_chunks_.clear();
  for (std::vector<int32_t>* column : {&token_ids_, &positions_, &slots_, &chunk_of_row_}) {
    column->clear();
  }
  for (const SequenceChunk& chunk : batch.chunks) AddChunk(chunk);
  return absl::OkStatus();
}

}  // namespace tidal::cpu
