// A step's tables on their way to the device: packed into pinned memory, and unpacked there by one
// kernel into tables whose addresses never change (kernels/step_view.h), so that recorded graphs
// find them. Block tables stay on the device, a row for each sampler slot; only entries that change
// are sent. Engine thread only.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "cuda/device.h"
#include "cuda/kernels/step_view.h"
#include "cuda/kernels/unpack_step.h"
#include "engine/backend/backend.h"
#include "engine/backend/step_batch.h"

namespace tidal::cuda {

class DeviceStepTables {
 public:
  // `group_size`: query heads a KV head, for the tiles of prefill attention.
  DeviceStepTables(const StepLimits& limits, int32_t group_size);

  // Takes the tables' device memory; twice, as arenas are laid out.
  void LayOut(DeviceArena* arena);
  // The host's side of it; after the second LayOut.
  absl::Status Allocate();

  // Slot `slot` is another sequence's from now on: what is known of its blocks is forgotten.
  void ForgetSlot(int32_t slot);

  // Enqueues what brings the batch to the device. The batch has passed CheckStep; its spans need
  // not outlive the call.
  absl::Status Enqueue(const StepBatch& batch, cudaStream_t stream);

  StepView view() const;
  // Of the last batch enqueued.
  const StepView::Counts& counts() const { return counts_; }
  const PrefillTile* prefill_tiles() const { return tables_.prefill_tiles; }

 private:
  // What one launch of the unpacking kernel reads.
  struct Image {
    PinnedArray<int32_t> token_ids;
    PinnedArray<int32_t> positions;
    PinnedArray<int32_t> cache_rows;
    PinnedArray<int32_t> chunk_of_row;
    PinnedArray<DeviceChunk> chunks;
    PinnedArray<int32_t> sampling_chunks;
    PinnedArray<PrefillTile> prefill_tiles;
    PinnedArray<BlockTableChange> changes;
    Event is_free;  // recorded behind the kernel that reads it
  };
  static constexpr size_t kNumImages = 3;

  // The next image, once the device has read what it held.
  absl::Status NextImage(Image** image);
  // Of an image with the step's tables (`has_tables`: counts_ says how much), or with changes
  // alone.
  absl::Status Send(Image* image, bool has_tables, int32_t num_changes, cudaStream_t stream);
  // Writes the entries of the chunk's block table that the device does not have; sends full images
  // on the way.
  absl::Status AddBlockTable(const SequenceChunk& chunk, Image** image, int32_t* num_changes,
                             cudaStream_t stream);
  // Adds a chunk, its rows and what it samples to the image and to counts_.
  void AddChunk(const SequenceChunk& chunk, Image* image);

  const StepLimits limits_;
  const int32_t group_size_;
  const int32_t block_table_stride_;
  const int32_t max_changes_;  // of an image
  StepTablesOnDevice tables_ = {};
  StepView::Counts counts_ = {};
  std::array<Image, kNumImages> images_;
  size_t next_image_ = 0;
  std::vector<int32_t> block_tables_;      // as on the device
  std::vector<int32_t> num_known_blocks_;  // of each slot's row, from the first on
};

}  // namespace tidal::cuda
