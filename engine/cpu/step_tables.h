// One step's batch, checked and spread out to rows. Engine thread only; the tasks of a stage read
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/model_shape.h"
#include "engine/backend/step_batch.h"

namespace tidal::cpu {

struct StepChunk {
  SequenceChunk chunk;
  int32_t first_row = 0;       // of its tokens in the step's activations
  int32_t first_position = 0;  // of its tokens in the sequence
};

// A block of the KV cache that the step writes to.
struct WrittenBlock {
  int32_t block = 0;
  int32_t num_tokens = 0;  // of the sequence in it, once the step has written
};

class StepTables {
 public:
  StepTables(const ModelShape& shape, const StepLimits& limits);

  // Replaces the last step's tables, or fails as CheckStep does.
  absl::Status Set(const StepBatch& batch, int32_t num_blocks);

  int32_t num_rows() const { return static_cast<int32_t>(token_ids_.size()); }
  absl::Span<const StepChunk> chunks() const { return chunks_; }

  // For each row: its token id (or kLastSampledToken), its position, its KV slot, its chunk.
  absl::Span<const int32_t> token_ids() const { return token_ids_; }
  absl::Span<const int32_t> positions() const { return positions_; }
  absl::Span<const int32_t> slots() const { return slots_; }
  absl::Span<const int32_t> chunk_of_row() const { return chunk_of_row_; }

  absl::Span<const WrittenBlock> written_blocks() const { return written_blocks_; }

  // Indices of the chunks that sample.
  absl::Span<const int32_t> sampling_chunks() const { return sampling_chunks_; }

 private:
  void AddChunk(const SequenceChunk& chunk);

  ModelShape shape_;
  StepLimits limits_;
  std::vector<StepChunk> chunks_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> slots_;
  std::vector<int32_t> chunk_of_row_;
  std::vector<WrittenBlock> written_blocks_;
  std::vector<int32_t> sampling_chunks_;
};

}  // namespace tidal::cpu
