#include "engine/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/backend/checks.h"
#include "engine/backend/status_macros.h"

namespace tidal::cpu {

CpuAttention::CpuAttention(const ModelShape& shape, const StepLimits& limits,
                           const Kernels* kernels, ThreadPool* pool)
    : shape_(shape),
      pool_(pool),
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
  decode_.ForgetScores();
  const absl::Span<const StepChunk> chunks = inputs.step->chunks();
  // The long tasks first, so that threads finish together.
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i].chunk.num_tokens() > 1) {
      prefill_.AddTasks(chunks[i], static_cast<int32_t>(i), &tasks_.runs);
    }
  }
  for (size_t i = 0; i < chunks.size(); ++i) {
    const SequenceChunk& chunk = chunks[i].chunk;
    if (chunk.num_tokens() > 1) continue;
    const int32_t index = static_cast<int32_t>(i);
    const AttentionKind kind = pass.kind(chunk.mode);
    if (DecodeAttention::KeepsScores(kind) && !decode_.ReserveScores(index, chunk, kind)) {
      // The room for scores is full: finish what holds it.
      RunTasks(inputs);
      decode_.ForgetScores();
      decode_.ReserveScores(index, chunk, kind);
    }
    TIDAL_RETURN_IF_ERROR(decode_.AddTasks(chunk, index, kind, &tasks_));
  }
  RunTasks(inputs);
  return absl::OkStatus();
}

absl::Status CpuAttention::ReadProbabilities(const AttentionInputs& inputs, int32_t chunk_index,
                                             std::vector<std::vector<float>>* probabilities) const {
  const absl::Span<const StepChunk> chunks = inputs.step->chunks();
  TIDAL_RETURN_IF_ERROR(
      CheckRange("chunk index", chunk_index, 0, static_cast<int64_t>(chunks.size()) - 1));
  const StepChunk& chunk = chunks[static_cast<size_t>(chunk_index)];
  const int32_t row = chunk.first_row + chunk.chunk.num_tokens() - 1;
  probabilities->clear();
  for (int32_t head = 0; head < shape_.num_query_heads; ++head) {
    const float* query =
        inputs.queries.first + row * inputs.queries.row_stride + int64_t{head} * shape_.head_dim;
    const KvHeadView kv = inputs.cache->Head(inputs.layer, head / shape_.group_size());
    std::vector<float>& of_head = probabilities->emplace_back();
    for (int32_t position = 0; position < chunk.chunk.num_context_tokens; ++position) {
      const int64_t block = chunk.chunk.block_table[static_cast<size_t>(position / kBlockSize)];
      const float* key =
          kv.keys + block * kv.block_stride + int64_t{position % kBlockSize} * shape_.head_dim;
      of_head.push_back(std::inner_product(query, query + shape_.head_dim, key, 0.0f));
    }
    const float max = *std::max_element(of_head.begin(), of_head.end());
    double sum = 0;
    for (float& value : of_head) sum += value = std::exp(value - max);
    for (float& value : of_head) value = static_cast<float>(value / sum);
  }
  return absl::OkStatus();
}

template <typename Function>
void CpuAttention::RunEach(std::vector<AttentionTask>* tasks, const Function& run) {
  if (tasks->empty()) return;
  pool_->ParallelFor(static_cast<int>(tasks->size()), [&](int index, int thread) {
    run((*tasks)[static_cast<size_t>(index)], thread);
  });
  tasks->clear();
}

void CpuAttention::RunTasks(const AttentionInputs& inputs) {
  RunEach(&tasks_.choices, [&](const AttentionTask& task, int) { decode_.Choose(inputs, task); });
  RunEach(&tasks_.runs, [&](const AttentionTask& task, int thread) {
    task.prefill ? prefill_.Run(inputs, task, thread) : decode_.Run(inputs, task, thread);
  });
  RunEach(&tasks_.merges, [&](const AttentionTask& task, int) { decode_.Merge(inputs, task); });
  RunEach(&tasks_.unions, [&](const AttentionTask& task, int) { decode_.Unite(inputs, task); });
}

}  // namespace tidal::cpu
