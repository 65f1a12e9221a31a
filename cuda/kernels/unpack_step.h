// Brings a step's tables from the host's image into the fixed device tables that kernels see.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/kernels/prefill_attention.h"
#include "cuda/kernels/step_view.h"

namespace tidal::cuda {

// One entry of a block table that has changed.
struct BlockTableChange {
  int32_t index;  // slot * block_table_stride + block of the sequence
  int32_t block_id;
};

// A step as the host packs it, in pinned memory that the device reads. Arrays are of as many
// elements as the counts say.
struct StepImage {
  StepView::Counts counts;
  bool has_tables;  // else only the changes count, and the tables stay
  int32_t num_changes;
  const int32_t* token_ids;
  const int32_t* positions;
  const int32_t* cache_rows;
  const int32_t* chunk_of_row;
  const DeviceChunk* chunks;
  const int32_t* sampling_chunks;
  const PrefillTile* prefill_tiles;
  const BlockTableChange* changes;
};

// The tables of StepView as their writer sees them.
struct StepTablesOnDevice {
  StepView::Counts* counts;
  int32_t* token_ids;
  int32_t* positions;
  int32_t* cache_rows;
  int32_t* chunk_of_row;
  DeviceChunk* chunks;
  int32_t* sampling_chunks;
  PrefillTile* prefill_tiles;
  int32_t* block_tables;
};

// Host code. What `image` points to must stay as it is until the kernel has run.
cudaError_t LaunchUnpackStep(const StepImage& image, const StepTablesOnDevice& tables,
                             cudaStream_t stream);

}  // namespace tidal::cuda
