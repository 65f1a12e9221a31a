#include "cuda/step_tables.h"

#include <algorithm>

#include "cuda/status.h"
#include "engine/backend/status_macros.h"

namespace tidal::cuda {
namespace {

constexpr int32_t kMaxChangesOfAnImage = 1 << 16;

int32_t NumBlocks(int32_t num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

}  // namespace

DeviceStepTables::DeviceStepTables(const StepLimits& limits, int32_t group_size)
    : limits_(limits),
      group_size_(group_size),
      block_table_stride_(NumBlocks(limits.max_model_len)),
      max_changes_(static_cast<int32_t>(std::min<int64_t>(
          kMaxChangesOfAnImage, int64_t{limits.max_batch_sequences} * block_table_stride_))),
      block_tables_(static_cast<size_t>(limits.max_batch_sequences) *
                        static_cast<size_t>(block_table_stride_),
                    -1),
      num_known_blocks_(static_cast<size_t>(limits.max_batch_sequences)) {}

void DeviceStepTables::LayOut(DeviceArena* arena) {
  const int64_t num_rows = limits_.max_batch_tokens;
  const int64_t num_chunks = limits_.max_batch_sequences;
  tables_ = {.counts = arena->Take<StepView::Counts>(1),
             .token_ids = arena->Take<int32_t>(num_rows),
             .positions = arena->Take<int32_t>(num_rows),
             .cache_rows = arena->Take<int32_t>(num_rows),
             .chunk_of_row = arena->Take<int32_t>(num_rows),
             .chunks = arena->Take<DeviceChunk>(num_chunks),
             .sampling_chunks = arena->Take<int32_t>(num_chunks),
             .prefill_tiles = arena->Take<PrefillTile>(MaxPrefillTiles(
                 limits_.max_batch_tokens, limits_.max_batch_sequences, group_size_)),
             .block_tables = arena->Take<int32_t>(num_chunks * block_table_stride_)};
}

absl::Status DeviceStepTables::Allocate() {
  for (Image& image : images_) {
    for (PinnedArray<int32_t>* column :
         {&image.token_ids, &image.positions, &image.cache_rows, &image.chunk_of_row}) {
      TIDAL_RETURN_IF_ERROR(column->Allocate(limits_.max_batch_tokens));
    }
    TIDAL_RETURN_IF_ERROR(image.chunks.Allocate(limits_.max_batch_sequences));
    TIDAL_RETURN_IF_ERROR(image.sampling_chunks.Allocate(limits_.max_batch_sequences));
    TIDAL_RETURN_IF_ERROR(image.prefill_tiles.Allocate(
        MaxPrefillTiles(limits_.max_batch_tokens, limits_.max_batch_sequences, group_size_)));
    TIDAL_RETURN_IF_ERROR(image.changes.Allocate(max_changes_));
    TIDAL_RETURN_IF_ERROR(image.is_free.Create());
  }
  return absl::OkStatus();
}

void DeviceStepTables::ForgetSlot(int32_t slot) {
  num_known_blocks_[static_cast<size_t>(slot)] = 0;
}

absl::Status DeviceStepTables::Enqueue(const StepBatch& batch, cudaStream_t stream) {
  Image* image = nullptr;
  TIDAL_RETURN_IF_ERROR(NextImage(&image));
  int32_t num_changes = 0;
  for (const SequenceChunk& chunk : batch.chunks) {
    TIDAL_RETURN_IF_ERROR(AddBlockTable(chunk, &image, &num_changes, stream));
  }
  counts_ = {};
  for (const SequenceChunk& chunk : batch.chunks) AddChunk(chunk, image);
  counts_.num_prefill_tiles = BuildPrefillTiles(image->chunks.data(), counts_.num_chunks,
                                                group_size_, image->prefill_tiles.data());
  return Send(image, /*has_tables=*/true, num_changes, stream);
}

absl::Status DeviceStepTables::NextImage(Image** image) {
  *image = &images_[next_image_++ % kNumImages];
  TIDAL_RETURN_IF_CUDA_ERROR(cudaEventSynchronize((*image)->is_free.get()));
  return absl::OkStatus();
}

absl::Status DeviceStepTables::Send(Image* image, bool has_tables, int32_t num_changes,
                                    cudaStream_t stream) {
  const StepImage packed = {.counts = counts_,
                            .has_tables = has_tables,
                            .num_changes = num_changes,
                            .token_ids = image->token_ids.data(),
                            .positions = image->positions.data(),
                            .cache_rows = image->cache_rows.data(),
                            .chunk_of_row = image->chunk_of_row.data(),
                            .chunks = image->chunks.data(),
                            .sampling_chunks = image->sampling_chunks.data(),
                            .prefill_tiles = image->prefill_tiles.data(),
                            .changes = image->changes.data()};
  TIDAL_RETURN_IF_CUDA_ERROR(LaunchUnpackStep(packed, tables_, stream));
  TIDAL_RETURN_IF_CUDA_ERROR(cudaEventRecord(image->is_free.get(), stream));
  return absl::OkStatus();
}

absl::Status DeviceStepTables::AddBlockTable(const SequenceChunk& chunk, Image** image,
                                             int32_t* num_changes, cudaStream_t stream) {
  const auto slot = static_cast<size_t>(chunk.sampler_slot);
  const size_t row = slot * static_cast<size_t>(block_table_stride_);
  const int32_t first_position = chunk.num_context_tokens - chunk.num_tokens();
  const int32_t num_blocks = NumBlocks(chunk.num_context_tokens);
  for (int32_t i = std::min(num_known_blocks_[slot], first_position / kBlockSize); i < num_blocks;
       ++i) {
    const size_t index = row + static_cast<size_t>(i);
    const int32_t block_id = chunk.block_table[static_cast<size_t>(i)];
    if (block_tables_[index] == block_id) continue;
    if (*num_changes == max_changes_) {
      TIDAL_RETURN_IF_ERROR(Send(*image, /*has_tables=*/false, *num_changes, stream));
      TIDAL_RETURN_IF_ERROR(NextImage(image));
      *num_changes = 0;
    }
    block_tables_[index] = block_id;
    (*image)->changes.data()[(*num_changes)++] = {static_cast<int32_t>(index), block_id};
  }
  num_known_blocks_[slot] = num_blocks;
  return absl::OkStatus();
}

void DeviceStepTables::AddChunk(const SequenceChunk& chunk, Image* image) {
  const int32_t chunk_index = counts_.num_chunks++;
  const int32_t first_position = chunk.num_context_tokens - chunk.num_tokens();
  image->chunks.data()[chunk_index] = {.first_row = counts_.num_rows,
                                       .num_tokens = chunk.num_tokens(),
                                       .num_context_tokens = chunk.num_context_tokens,
                                       .sampler_slot = chunk.sampler_slot,
                                       .token_budget = chunk.selection.token_budget,
                                       .num_sink_tokens = chunk.selection.num_sink_tokens,
                                       .num_recent_tokens = chunk.selection.num_recent_tokens,
                                       .mode = chunk.mode,
                                       .scope = chunk.selection.scope,
                                       .samples = chunk.samples,
                                       .unused = 0};
  for (int32_t i = 0; i < chunk.num_tokens(); ++i) {
    const int32_t row = counts_.num_rows++;
    const int32_t position = first_position + i;
    const int32_t block_id = chunk.block_table[static_cast<size_t>(position / kBlockSize)];
    image->token_ids.data()[row] = chunk.token_ids[static_cast<size_t>(i)];
    image->positions.data()[row] = position;
    image->cache_rows.data()[row] = block_id * kBlockSize + position % kBlockSize;
    image->chunk_of_row.data()[row] = chunk_index;
  }
  if (chunk.samples) image->sampling_chunks.data()[counts_.num_samples++] = chunk_index;
}

StepView DeviceStepTables::view() const {
  return {.counts = tables_.counts,
          .token_ids = tables_.token_ids,
          .positions = tables_.positions,
          .cache_rows = tables_.cache_rows,
          .chunk_of_row = tables_.chunk_of_row,
          .chunks = tables_.chunks,
          .sampling_chunks = tables_.sampling_chunks,
          .block_tables = tables_.block_tables,
          .block_table_stride = block_table_stride_};
}

}  // namespace tidal::cuda
