#include "engine/cpu/step_tables.h"

#include <algorithm>

#include "engine/backend/checks.h"
#include "engine/backend/status_macros.h"

namespace tidal::cpu {

StepTables::StepTables(const ModelShape& shape, const StepLimits& limits)
    : shape_(shape), limits_(limits) {
  const size_t num_chunks = static_cast<size_t>(limits.max_batch_sequences);
  const size_t num_rows = static_cast<size_t>(limits.max_batch_tokens);
  chunks_.reserve(num_chunks);
  sampling_chunks_.reserve(num_chunks);
  written_blocks_.reserve(num_rows);
  for (std::vector<int32_t>* column : {&token_ids_, &positions_, &slots_, &chunk_of_row_}) {
    column->reserve(num_rows);
  }
}

void StepTables::AddChunk(const SequenceChunk& chunk) {
  const int32_t index = static_cast<int32_t>(chunks_.size());
  const int32_t first_position = chunk.num_context_tokens - chunk.num_tokens();
  chunks_.push_back({chunk, num_rows(), first_position});
  if (chunk.samples) sampling_chunks_.push_back(index);
  for (int32_t i = first_position / kBlockSize; i * kBlockSize < chunk.num_context_tokens; ++i) {
    written_blocks_.push_back({chunk.block_table[static_cast<size_t>(i)],
                               std::min(kBlockSize, chunk.num_context_tokens - i * kBlockSize)});
  }
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
  TIDAL_RETURN_IF_ERROR(CheckStep(batch, shape_, limits_, num_blocks));
  chunks_.clear();
  sampling_chunks_.clear();
  written_blocks_.clear();
  for (std::vector<int32_t>* column : {&token_ids_, &positions_, &slots_, &chunk_of_row_}) {
    column->clear();
  }
  for (const SequenceChunk& chunk : batch.chunks) AddChunk(chunk);
  return absl::OkStatus();
}

}  // namespace tidal::cpu
