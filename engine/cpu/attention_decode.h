// Attention of single tokens: full, select, sparse and quest. A sequence's positions are cut into
// runs whose lengths depend on its context (or budget) alone; threads take the runs in any order,
// and the runs' partial results are merged in ascending order. Select keeps the scores of the pass
// that computes the attention, and picks positions from them while merging.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/model_shape.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/attention_task.h"
#include "engine/cpu/kernels.h"

namespace tidal::cpu {

class DecodeAttention {
 public:
  DecodeAttention(const ModelShape& shape, const StepLimits& limits, const Kernels* kernels,
                  int num_threads);

  void LayOut(Arena* arena);

  // Allocates room for the scores of as many tokens as the KV cache holds, or of the longest
  // context.
  absl::Status AllocateScores(int64_t num_cache_tokens);
  int64_t scores_size_bytes() const { return scores_arena_.used_bytes(); }

  void ForgetSelections();

  // Whether a layer of this kind keeps scores.
  static bool KeepsScores(AttentionKind kind) {
    return kind == AttentionKind::kSelect || kind == AttentionKind::kQuest;
  }

  // Reserves room for such a layer's scores of one chunk, until ForgetScores; false where it is
  // full. It always suffices for one chunk.
  bool ReserveScores(int32_t index, const SequenceChunk& chunk, AttentionKind kind);
  void ForgetScores() { num_reserved_tokens_ = 0; }

  // Appends the chunk's tasks. FAILED_PRECONDITION for kSparse where the step has no selection yet.
  absl::Status AddTasks(const SequenceChunk& chunk, int32_t index, AttentionKind kind,
                        AttentionTasks* tasks);

  void Choose(const AttentionInputs& inputs, const AttentionTask& task);
  void Run(const AttentionInputs& inputs, const AttentionTask& task, int thread);
  void Merge(const AttentionInputs& inputs, const AttentionTask& task);
  void Unite(const AttentionInputs& inputs, const AttentionTask& task);

  absl::Status ReadSelection(int32_t chunk, std::vector<std::vector<int32_t>>* positions) const;

 private:
  // What a chunk of the current step holds; indexed as the step's chunks.
  struct ChunkState {
    int64_t first_score = 0;  // of its [num_query_heads][score_stride] in scores_
    int64_t score_stride = 0;
    int32_t num_sets = 0;      // 0: no selection yet
    int32_t num_selected = 0;  // positions of each set
    SelectionScope scope = SelectionScope::kQueryHead;
  };

  int32_t RunLength(const SequenceChunk& chunk, AttentionKind kind) const;
  int32_t NumPositions(const SequenceChunk& chunk, AttentionKind kind) const;
  int32_t NumRuns(const SequenceChunk& chunk, AttentionKind kind) const;

  // A head's softmax over all its positions: sum of exp(score - max).
  struct Softmax {
    float max;
    float sum;
  };

  // The place of a head's run in the partial results.
  int64_t PartialIndex(int32_t chunk, int32_t head, int32_t run) const;
  float Partial(absl::Span<const float> of_runs, int32_t chunk, int32_t head, int32_t run) const;
  absl::Span<float> HeadScores(int32_t chunk, int32_t head) const;          // [score_stride]
  absl::Span<int32_t> SelectedPositions(int32_t chunk, int32_t set) const;  // [max_selected]
  // The set that a head of the chunk attends.
  int32_t SetOf(const ChunkState& state, int32_t head) const;
  Softmax MergeHead(int32_t chunk, int32_t head, int32_t num_runs, float* output) const;

  ModelShape shape_;
  StepLimits limits_;
  const Kernels* kernels_;
  int32_t max_run_length_;
  int32_t max_runs_;                               // of one head
  int32_t max_selected_;                           // positions of one set
  std::vector<ChunkState> chunk_states_;           // [max_batch_sequences]
  std::vector<absl::Span<float>> thread_scratch_;  // [group_size][max_run_length] each
  // Partial results, [sequence][KV head][run][head of the group] each.
  absl::Span<float> partial_outputs_;  // [...][head_dim]
  absl::Span<float> partial_max_;
  absl::Span<float> partial_sum_;
  absl::Span<int32_t> selected_;  // [sequence][query head][max_selected]
  Arena scores_arena_;
  absl::Span<float> scores_;
  int64_t scores_capacity_tokens_ = 0;
  int64_t num_reserved_tokens_ = 0;
};

}  // namespace tidal::cpu
