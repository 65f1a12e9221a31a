// Attention of chunks of two tokens and more: tiles of queries against tiles of the KV cache, with
// a running softmax. KV tiles start at multiples of kKvTile positions whatever the chunk, so that a
// query's result does not depend on the chunk it came in.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/model_shape.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/attention_task.h"
#include "engine/cpu/kernels.h"

namespace tidal::cpu {

class PrefillAttention {
 public:
  PrefillAttention(const ModelShape& shape, const Kernels* kernels, int num_threads);

  void LayOut(Arena* arena);

  // Appends the chunk's tasks, the longest first.
  void AddTasks(const StepChunk& chunk, int32_t index, std::vector<AttentionTask>* tasks) const;

  void Run(const AttentionInputs& inputs, const AttentionTask& task, int thread);

 private:
  // One thread's tile of queries and tile of KV; shapes as in PrefillTileArguments.
  struct Workspace {
    absl::Span<float> queries;
    absl::Span<int32_t> ends;
    absl::Span<float> keys;
    absl::Span<float> values;
    absl::Span<float> scores;
    absl::Span<float> output;
    absl::Span<float> max;
    absl::Span<float> sum;
  };

  void LoadQueries(const AttentionInputs& inputs, int32_t kv_head, int32_t first_row,
                   int32_t num_tokens, Workspace* workspace) const;
  void LoadKvTile(const KvHeadView& kv, absl::Span<const int32_t> block_table,
                  int32_t first_position, int32_t num_positions, Workspace* workspace) const;
  void StoreOutput(const Workspace& workspace, const AttentionInputs& inputs, int32_t kv_head,
                   int32_t first_row, int32_t num_tokens) const;

  ModelShape shape_;
  const Kernels* kernels_;
  int32_t tile_tokens_;      // queries of one tile; a tile has group_size rows for each
  int32_t padded_head_dim_;  // head_dim rounded up to kPanelWidth
  std::vector<Workspace> workspaces_;
};

}  // namespace tidal::cpu
