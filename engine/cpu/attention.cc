#include "engine/cpu/attention.h"

#include "engine/backend/status_macros.h"

namespace tidal::cpu {

CpuAttention::CpuAttention(const ModelShape& shape, const StepLimits& limits,
                           const Kernels* kernels, ThreadPool* pool)
    : pool_(pool),
      prefill_(shape, kernels, pool->num_threads()),
      decode_(shape, limits, kernels, pool->num_threads()) {}

void CpuAttention::LayOut(Arena* arena) {
  prefill_.LayOut(arena);
  decode_.LayOut(arena);
}

absl::Status CpuAttention::AllocateScores(int32_t num_blocks) {
  return decode_.AllocateScores(int64_t{num_blocks} * kBlockSize);
}

absl::Status CpuAttention::Run(const AttentionInputs& inputs, const AttentionPass& pass) {
  tasks_.clear();
  merge_tasks_.clear();
  decode_.ForgetScores();
  const absl::Span<const StepChunk> chunks = inputs.step->chunks();
  // The long tasks first, so that threads finish together.
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i].chunk.num_tokens() > 1) {
      prefill_.AddTasks(chunks[i], static_cast<int32_t>(i), &tasks_);
    }
  }
  for (size_t i = 0; i < chunks.size(); ++i) {
    const SequenceChunk& chunk = chunks[i].chunk;
    if (chunk.num_tokens() > 1) continue;
    const int32_t index = static_cast<int32_t>(i);
    const AttentionKind kind = pass.kind(chunk.mode);
    if (kind == AttentionKind::kSelect && !decode_.ReserveScores(index, chunk)) {
      // The room for scores is full: finish what holds it.
      RunTasks(inputs);
      decode_.ForgetScores();
      decode_.ReserveScores(index, chunk);
    }
    TIDAL_RETURN_IF_ERROR(decode_.AddTasks(chunk, index, kind, &tasks_, &merge_tasks_));
  }
  RunTasks(inputs);
  return absl::OkStatus();
}

void CpuAttention::RunTasks(const AttentionInputs& inputs) {
  pool_->ParallelFor(static_cast<int>(tasks_.size()), [&](int index, int thread) {
    const AttentionTask& task = tasks_[static_cast<size_t>(index)];
    task.prefill ? prefill_.Run(inputs, task, thread) : decode_.Run(inputs, task, thread);
  });
  pool_->ParallelFor(static_cast<int>(merge_tasks_.size()), [&](int index, int) {
    decode_.Merge(inputs, merge_tasks_[static_cast<size_t>(index)]);
  });
  tasks_.clear();
  merge_tasks_.clear();
}

}  // namespace tidal::cpu
