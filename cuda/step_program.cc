#include "cuda/step_program.h"

#include <algorithm>

#include "cuda/status.h"
#include "engine/backend/status_macros.h"

namespace tidal::cuda {

int32_t NumSets(SelectionScope scope, int32_t num_query_heads, int32_t num_kv_heads) {
  switch (scope) {
    case SelectionScope::kQueryHead:
      return num_query_heads;
    case SelectionScope::kKvHead:
      return num_kv_heads;
    case SelectionScope::kLayer:
      return 1;
  }
  return num_query_heads;
}

void StepTraits::AddDecode(AttentionMode mode, SelectionScope scope) {
  decode_modes = static_cast<uint8_t>(decode_modes | 1u << static_cast<int>(mode));
  if (mode != AttentionMode::kTidal) return;
  tidal_scopes = static_cast<uint8_t>(tidal_scopes | 1u << static_cast<int>(scope));
}

bool StepTraits::HasDecodeOf(const AttentionPass& pass, AttentionKind kind) const {
  for (int mode = 0; mode < kNumAttentionModes; ++mode) {
    if ((decode_modes >> mode & 1) != 0 && pass.kind(static_cast<AttentionMode>(mode)) == kind) {
      return true;
    }
  }
  return false;
}

int32_t StepTraits::MaxSets(int32_t num_query_heads, int32_t num_kv_heads) const {
  int32_t num_sets = 1;
  for (const SelectionScope scope :
       {SelectionScope::kQueryHead, SelectionScope::kKvHead, SelectionScope::kLayer}) {
    if ((tidal_scopes >> static_cast<int>(scope) & 1) == 0) continue;
    num_sets = std::max(num_sets, NumSets(scope, num_query_heads, num_kv_heads));
  }
  return num_sets;
}

int32_t RowBucket(int32_t num_rows, int32_t max_rows) {
  constexpr int32_t kMaxOwn = 8;
  constexpr int32_t kFineStep = 8;
  constexpr int32_t kMaxFine = 64;
  constexpr int32_t kCoarseStep = 32;
  if (num_rows <= kMaxOwn) return num_rows;
  const int32_t step = num_rows <= kMaxFine ? kFineStep : kCoarseStep;
  return std::min((num_rows + step - 1) / step * step, max_rows);
}

absl::Status StepGraphs::Launch(const Key& key, cudaStream_t stream,
                                absl::FunctionRef<absl::Status()> run) {
  const auto [it, is_new] = graphs_.try_emplace(key);
  if (is_new) return run();
  if (it->second == nullptr) TIDAL_RETURN_IF_ERROR(Record(stream, run, &it->second));
  TIDAL_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(it->second.get(), stream));
  return absl::OkStatus();
}

absl::Status StepGraphs::Record(cudaStream_t stream, absl::FunctionRef<absl::Status()> run,
                                Executable* executable) {
  TIDAL_RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const absl::Status status = run();
  cudaGraph_t graph = nullptr;
  // Ends the capture in any case: the stream must be usable again.
  const cudaError_t error = cudaStreamEndCapture(stream, &graph);
  TIDAL_RETURN_IF_ERROR(status);
  TIDAL_RETURN_IF_CUDA_ERROR(error);
  cudaGraphExec_t recorded = nullptr;
  const cudaError_t instantiated = cudaGraphInstantiate(&recorded, graph, 0);
  cudaGraphDestroy(graph);
  TIDAL_RETURN_IF_CUDA_ERROR(instantiated);
  executable->reset(recorded);
  return absl::OkStatus();
}

}  // namespace tidal::cuda
