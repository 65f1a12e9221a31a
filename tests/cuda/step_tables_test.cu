// The tables of random steps, several of them enqueued before the device has read any: each must
// find its own when it runs. A kernel-sized copy behind each step plays the part of its kernels.

#include "cuda/step_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "tests/cuda/device_array.h"

namespace tidal::cuda {
namespace {

using testing::HasDevice;
using testing::TestStream;

constexpr StepLimits kLimits = {
    .max_batch_tokens = 96, .max_batch_sequences = 6, .max_model_len = 700};

// A sequence as the engine would drive it.
struct TestSequence {
  int32_t slot;
  int32_t num_tokens = 0;  // in the cache
  std::vector<int32_t> blocks;
};

// A step's tables as they are on the device once the step runs, copied by the stream.
class Snapshot {
 public:
  void Enqueue(const StepView& view, cudaStream_t stream) {
    const auto num_rows = kLimits.max_batch_tokens;
    const auto num_sequences = kLimits.max_batch_sequences;
    Copy(view.counts, 1, stream, &counts);
    Copy(view.token_ids, num_rows, stream, &token_ids);
    Copy(view.positions, num_rows, stream, &positions);
    Copy(view.cache_rows, num_rows, stream, &cache_rows);
    Copy(view.chunk_of_row, num_rows, stream, &chunk_of_row);
    Copy(view.chunks, num_sequences, stream, &chunks);
    Copy(view.sampling_chunks, num_sequences, stream, &sampling_chunks);
    Copy(view.block_tables, num_sequences * view.block_table_stride, stream, &block_tables);
  }

  PinnedArray<StepView::Counts> counts;
  PinnedArray<int32_t> token_ids;
  PinnedArray<int32_t> positions;
  PinnedArray<int32_t> cache_rows;
  PinnedArray<int32_t> chunk_of_row;
  PinnedArray<DeviceChunk> chunks;
  PinnedArray<int32_t> sampling_chunks;
  PinnedArray<int32_t> block_tables;

 private:
  template <typename Element>
  static void Copy(const Element* source, int32_t size, cudaStream_t stream,
                   PinnedArray<Element>* target) {
    ASSERT_TRUE(target->Allocate(size).ok());
    EXPECT_EQ(cudaSuccess,
              cudaMemcpyAsync(target->data(), source, static_cast<size_t>(size) * sizeof(Element),
                              cudaMemcpyDeviceToHost, stream));
  }
};

// What a step's tables must say.
struct Expected {
  std::vector<SequenceChunk> chunks;
  std::vector<std::vector<int32_t>> token_ids;
  std::vector<std::vector<int32_t>> blocks;
  StepView::Counts counts;
};

void Compare(const Expected& expected, const Snapshot& actual, int32_t stride) {
  ASSERT_EQ(actual.counts.data()->num_chunks, static_cast<int32_t>(expected.chunks.size()));
  size_t row = 0;
  size_t num_samples = 0;
  for (size_t i = 0; i < expected.chunks.size(); ++i) {
    const SequenceChunk& chunk = expected.chunks[i];
    const DeviceChunk& device_chunk = actual.chunks.data()[i];
    ASSERT_EQ(device_chunk.first_row, static_cast<int32_t>(row));
    ASSERT_EQ(device_chunk.num_tokens, static_cast<int32_t>(expected.token_ids[i].size()));
    ASSERT_EQ(device_chunk.num_context_tokens, chunk.num_context_tokens);
    ASSERT_EQ(device_chunk.sampler_slot, chunk.sampler_slot);
    ASSERT_EQ(device_chunk.mode, chunk.mode);
    ASSERT_EQ(device_chunk.scope, chunk.selection.scope);
    ASSERT_EQ(device_chunk.token_budget, chunk.selection.token_budget);
    ASSERT_EQ(device_chunk.num_sink_tokens, chunk.selection.num_sink_tokens);
    ASSERT_EQ(device_chunk.num_recent_tokens, chunk.selection.num_recent_tokens);
    ASSERT_EQ(device_chunk.samples, chunk.samples);
    if (chunk.samples) {
      ASSERT_EQ(actual.sampling_chunks.data()[num_samples++], static_cast<int32_t>(i));
    }
    const int32_t num_tokens = device_chunk.num_tokens;
    for (int32_t k = 0; k < num_tokens; ++k, ++row) {
      const int32_t position = chunk.num_context_tokens - num_tokens + k;
      ASSERT_EQ(actual.token_ids.data()[row], expected.token_ids[i][static_cast<size_t>(k)]);
      ASSERT_EQ(actual.positions.data()[row], position);
      ASSERT_EQ(actual.cache_rows.data()[row],
                expected.blocks[i][static_cast<size_t>(position / kBlockSize)] * kBlockSize +
                    position % kBlockSize);
      ASSERT_EQ(actual.chunk_of_row.data()[row], static_cast<int32_t>(i));
    }
    const size_t table = static_cast<size_t>(chunk.sampler_slot) * static_cast<size_t>(stride);
    for (size_t block = 0; block * kBlockSize < static_cast<size_t>(chunk.num_context_tokens);
         ++block) {
      ASSERT_EQ(actual.block_tables.data()[table + block], expected.blocks[i][block]);
    }
  }
  ASSERT_EQ(actual.counts.data()->num_rows, static_cast<int32_t>(row));
  ASSERT_EQ(actual.counts.data()->num_samples, static_cast<int32_t>(num_samples));
  ASSERT_EQ(actual.counts.data()->num_prefill_tiles, expected.counts.num_prefill_tiles);
}

TEST(StepTablesTest, EachStepFindsItsOwnTables) {
  if (!HasDevice()) GTEST_SKIP() << "no CUDA device";
  DeviceStepTables tables(kLimits, /*group_size=*/2);
  DeviceArena count;
  tables.LayOut(&count);
  auto arena = DeviceArena::Allocate(count.used_bytes(), count.used_bytes(), "the tables");
  ASSERT_TRUE(arena.ok()) << arena.status();
  tables.LayOut(&*arena);
  ASSERT_TRUE(tables.Allocate().ok());
  const TestStream stream;
  std::mt19937 random(5);
  std::vector<TestSequence> sequences;
  for (int32_t slot = 0; slot < kLimits.max_batch_sequences; ++slot) {
    sequences.push_back({.slot = slot, .blocks = {}});
  }
  int32_t next_block = 0;
  constexpr int kNumRounds = 60;
  constexpr int kStepsAtOnce = 7;  // more than there are images
  for (int round = 0; round < kNumRounds; ++round) {
    std::vector<Expected> expected(kStepsAtOnce);
    std::vector<Snapshot> snapshots(kStepsAtOnce);
    for (int step = 0; step < kStepsAtOnce; ++step) {
      Expected& wanted = expected[static_cast<size_t>(step)];
      std::shuffle(sequences.begin(), sequences.end(), random);
      int32_t num_rows_left = kLimits.max_batch_tokens;
      wanted.token_ids.reserve(sequences.size());
      wanted.blocks.reserve(sequences.size());
      for (TestSequence& sequence : sequences) {
        const bool ends = sequence.num_tokens > 600 || random() % 40 == 0;
        if (ends) {
          sequence.num_tokens = 0;
          sequence.blocks.clear();
          tables.ForgetSlot(sequence.slot);
        }
        if (num_rows_left == 0 || random() % 4 == 0) continue;
        const bool is_decode = sequence.num_tokens > 0 && random() % 3 != 0;
        const int32_t most = std::min(num_rows_left, 60);
        const int32_t num_tokens =
            is_decode ? 1 : 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(most));
        num_rows_left -= num_tokens;
        sequence.num_tokens += num_tokens;
        while (static_cast<int32_t>(sequence.blocks.size()) * kBlockSize < sequence.num_tokens) {
          sequence.blocks.push_back(next_block++ % 10'000);
        }
        std::vector<int32_t>& token_ids = wanted.token_ids.emplace_back();
        for (int32_t i = 0; i < num_tokens; ++i) {
          token_ids.push_back(static_cast<int32_t>(random() % 1000));
        }
        wanted.blocks.push_back(sequence.blocks);
        SequenceChunk chunk = {.token_ids = token_ids,
                               .num_context_tokens = sequence.num_tokens,
                               .block_table = wanted.blocks.back(),
                               .mode = is_decode ? AttentionMode::kTidal : AttentionMode::kFull,
                               .sampler_slot = sequence.slot,
                               .samples = random() % 2 == 0};
        chunk.selection = {.scope = SelectionScope::kKvHead,
                           .token_budget = static_cast<int32_t>(random() % 4096),
                           .num_sink_tokens = static_cast<int32_t>(random() % 9),
                           .num_recent_tokens = static_cast<int32_t>(random() % 9)};
        wanted.chunks.push_back(chunk);
      }
      StepBatch batch;
      batch.chunks = wanted.chunks;
      ASSERT_TRUE(tables.Enqueue(batch, stream.get()).ok());
      wanted.counts = tables.counts();
      snapshots[static_cast<size_t>(step)].Enqueue(tables.view(), stream.get());
    }
    ASSERT_CUDA_OK(cudaStreamSynchronize(stream.get()));
    for (size_t step = 0; step < kStepsAtOnce; ++step) {
      ASSERT_NO_FATAL_FAILURE(
          Compare(expected[step], snapshots[step], tables.view().block_table_stride))
          << "round " << round << " step " << step;
    }
  }
}

}  // namespace
}  // namespace tidal::cuda
