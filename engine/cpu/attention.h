// The attention stage: shares out every chunk's work to threads, prefill chunks by tiles of queries
// and decodes by runs of the KV cache, and keeps the step's selections. How work is cut depends on
// a sequence's own lengths only, so neither the batch nor the number of threads changes a result.
// Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/backend/backend.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/attention_decode.h"
#include "engine/cpu/attention_prefill.h"
#include "engine/cpu/attention_task.h"
#include "engine/cpu/step_tables.h"
#include "engine/cpu/thread_pool.h"

namespace tidal::cpu {

class CpuAttention {
 public:
  CpuAttention(const ModelShape& shape, const StepLimits& limits, const Kernels* kernels,
               ThreadPool* pool);

  // Takes the workspaces from `arena`.
  void LayOut(Arena* arena);

  // Room for the scores of select layers, once the KV cache's size is known.
  absl::Status AllocateScores(int32_t num_blocks);
  int64_t scores_size_bytes() const { return decode_.scores_size_bytes(); }

  // Forgets the last step's selections.
  void BeginStep() { decode_.ForgetSelections(); }

  // One layer. FAILED_PRECONDITION for a sparse layer before the first select layer.
  absl::Status Run(const AttentionInputs& inputs, const AttentionPass& pass);

  // Backend::ReadAttentionProbabilities, of the layer and queries in `inputs`.
  absl::Status ReadProbabilities(const AttentionInputs& inputs, int32_t chunk_index,
                                 std::vector<std::vector<float>>* probabilities) const;

  // Backend::ReadSelection.
  absl::Status ReadSelection(int32_t chunk, std::vector<std::vector<int32_t>>* positions) const {
    return decode_.ReadSelection(chunk, positions);
  }

 private:
  // Runs and empties the lists of tasks_.
  void RunTasks(const AttentionInputs& inputs);
  template <typename Function>
  void RunEach(std::vector<AttentionTask>* tasks, const Function& run);

  const ModelShape shape_;
  ThreadPool* pool_;
  PrefillAttention prefill_;
  DecodeAttention decode_;
  AttentionTasks tasks_;
};

}  // namespace tidal::cpu
