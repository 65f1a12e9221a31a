// kSparse of decode_attention.h: attention over the rows of a selection.
#pragma once

#include <cstdint>

#include "cuda/kernels/decode_attention_warp.cuh"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::decode {

// Blocks that share a task, always as many, so that sums do not depend on the batch.
inline constexpr int32_t kSparseParts = 4;

// The group of query heads that the blocks of a task attend, and the set of rows they attend.
struct SparseTask {
  int32_t kv_head;
  int32_t first_head;
  int32_t num_queries;
  int32_t set;

  __device__ SparseTask(SelectionScope scope, int32_t task, int32_t group_size) {
    const bool is_query_head = scope == SelectionScope::kQueryHead;
    kv_head = is_query_head ? task / group_size : task;
    first_head = is_query_head ? task : task * group_size;
    num_queries = is_query_head ? 1 : group_size;
    set = scope == SelectionScope::kLayer ? 0 : task;
  }
};

// One warp's units of selected rows: every num_warps-th of the task's, gathered into a ring.
template <typename T, int kHeadDim>
class GatherRing {
 public:
  static constexpr int kSlots = Unit<kHeadDim>::kSlots;

  // Fills all slots, but for the set's last row: that may be the step's own token, which the kernel
  // in front of this one writes. `rows`: the set's cache rows; `first_unit`: this warp's first,
  // `stride` from each to the next.
  __device__ GatherRing(const KvCacheView<T>& cache, int32_t kv_head, const int32_t* rows,
                        int32_t num_rows, int32_t first_unit, int32_t stride, char* slots)
      : cache_(cache),
        kv_head_(kv_head),
        rows_(rows),
        num_rows_(num_rows),
        first_unit_(first_unit),
        stride_(stride),
        slots_(slots),
        held_back_(num_rows - 1) {
    upcoming_ = LoadRows(0);
    for (int i = 0; i < kSlots; ++i) Fill(i);
  }

  // Copies the last row where it is missing. Once, before the first Wait, and after the kernels in
  // front have ended.
  __device__ void FillLast() {
    constexpr int kLanesPerRow = Unit<kHeadDim>::kRowBytes / kLaneBytes;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int32_t units_ahead = held_back_ / kUnitTokens - first_unit_;
    const int32_t slot = units_ahead / stride_;
    if (units_ahead >= 0 && units_ahead % stride_ == 0 && slot < kSlots && lane < kLanesPerRow) {
      const T* key = cache_.base + cache_.key_offset(__ldcg(rows_ + held_back_), kv_head_) +
                     lane * kLaneElements;
      const uint32_t target =
          SharedAddress(slots_ + slot * Unit<kHeadDim>::kBytes) +
          static_cast<uint32_t>(held_back_ % kUnitTokens * Unit<kHeadDim>::kRowBytes +
                                lane * kLaneBytes);
      CopyAsync16(target, key);
      CopyAsync16(target + Unit<kHeadDim>::kValuesOffset, key + cache_.value_offset());
    }
    CommitAsyncCopies();
    held_back_ = -1;
  }
  // Until all that is on its way has arrived.
  __device__ void WaitForAll() const { WaitForAsyncCopies<0>(); }

  // The oldest unit in the ring, once it has arrived.
  __device__ const char* Wait() const {
    WaitForAsyncCopies<kSlots - 1>();
    __syncwarp();
    return slots_ + slot_ * Unit<kHeadDim>::kBytes;
  }

  __device__ void Release() {
    __syncwarp();
    Fill(slot_);
    slot_ = slot_ + 1 == kSlots ? 0 : slot_ + 1;
  }

 private:
  // Lanes 0..15: the rows of the warp's unit `index`; 16..31: of the one after it. -1: none.
  __device__ int32_t LoadRows(int32_t index) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t unit = first_unit_ + int64_t{index + lane / kUnitTokens} * stride_;
    const int64_t entry = unit * kUnitTokens + lane % kUnitTokens;
    return entry < num_rows_ ? __ldcg(rows_ + entry) : -1;
  }

  __device__ void Fill(int slot) {
    const int32_t index = num_filled_++;
    if (index % 2 == 0) {
      loaded_ = upcoming_;
      upcoming_ = LoadRows(index + 2);
    }
    const int first_lane = index % 2 * kUnitTokens;
    const int64_t unit = first_unit_ + int64_t{index} * stride_;
    if (__shfl_sync(kFullWarp, loaded_, first_lane) >= 0) {
      Gather(slot, first_lane, static_cast<int32_t>(held_back_ - unit * kUnitTokens));
    }
    CommitAsyncCopies();
  }

  // Copies the rows that the lanes from `first_lane` on have loaded, but for the one at
  // `held_back`; zeros where there is none.
  __device__ void Gather(int slot, int first_lane, int32_t held_back) {
    constexpr int kLanesPerRow = Unit<kHeadDim>::kRowBytes / kLaneBytes;
    constexpr int kRowsAtOnce = kWarpSize / kLanesPerRow;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const uint32_t target = SharedAddress(slots_ + slot * Unit<kHeadDim>::kBytes) +
                            static_cast<uint32_t>(lane * kLaneBytes);
#pragma unroll
    for (int i = 0; i < kUnitTokens / kRowsAtOnce; ++i) {
      const int index = i * kRowsAtOnce + lane / kLanesPerRow;
      const int32_t row = __shfl_sync(kFullWarp, loaded_, first_lane + index);
      if (index == held_back) continue;
      const T* key = cache_.base + cache_.key_offset(max(row, 0), kv_head_) +
                     lane % kLanesPerRow * kLaneElements;
      const uint32_t row_target =
          target + static_cast<uint32_t>(i * kRowsAtOnce * Unit<kHeadDim>::kRowBytes);
      CopyAsync16OrZero(row_target, key, row >= 0);
      CopyAsync16OrZero(row_target + Unit<kHeadDim>::kValuesOffset, key + cache_.value_offset(),
                        row >= 0);
    }
  }

  const KvCacheView<T>& cache_;
  int32_t kv_head_;
  const int32_t* rows_;
  int32_t num_rows_;
  int32_t first_unit_;
  int32_t stride_;
  char* slots_;
  int32_t held_back_;  // entry of the set that Fill leaves out; -1: none
  int32_t num_filled_ = 0;
  int32_t loaded_ = -1;    // of two successive units, one row a lane
  int32_t upcoming_ = -1;  // of the next two
  int slot_ = 0;
};

// Shared memory besides the ring.
template <int kHeadDim>
struct SparseShared {
  MergeArea<kHeadDim> merge;
  int32_t is_last;
};

template <int kHeadDim>
uint32_t SparseSharedBytes(bool is_sm90) {
  return kNumWarps * Unit<kHeadDim>::RingBytes(is_sm90) +
         static_cast<uint32_t>(sizeof(SparseShared<kHeadDim>));
}

// What the blocks of a task leave of it in device memory, for the one that ends last.
template <int kHeadDim>
struct SparseParts {
  float* outputs;   // [query][kSparseParts][kHeadDim]
  float2* softmax;  // [query][kSparseParts], reference (log2) and sum

  // `head`: the task's first query head, counted over the chunks.
  __device__ SparseParts(const DecodeAttentionWorkspace& workspace, int64_t head)
      : outputs(workspace.sparse_outputs + head * kSparseParts * kHeadDim),
        softmax(workspace.sparse_softmax + head * kSparseParts) {}

  __device__ void Store(int query, int element, float output, float max, float sum) const {
    const int row = query * kSparseParts + static_cast<int>(blockIdx.x);
    outputs[row * kHeadDim + element] = output;
    if (element == 0) softmax[row] = {max, sum};
  }

  // Puts the parts together, always in the same order, and stores the outputs of the task's
  // queries.
  template <typename T>
  __device__ void Merge(int32_t num_queries, T* output) const {
    for (int i = static_cast<int>(threadIdx.x); i < num_queries * kHeadDim; i += kNumThreads) {
      const int first = i / kHeadDim * kSparseParts;
      float2 states[kSparseParts];
      float values[kSparseParts];
#pragma unroll
      for (int part = 0; part < kSparseParts; ++part) {
        states[part] = __ldcg(softmax + first + part);
        values[part] = __ldcg(outputs + (first + part) * kHeadDim + i % kHeadDim);
      }
      float max = -INFINITY;
#pragma unroll
      for (int part = 0; part < kSparseParts; ++part) max = fmaxf(max, states[part].x);
      float sum = 0.0f;
      float value = 0.0f;
#pragma unroll
      for (int part = 0; part < kSparseParts; ++part) {
        const float weight = PartWeight(states[part], max);
        sum += weight * states[part].y;
        value += weight * values[part];
      }
      output[i] = static_cast<T>(value / sum);
    }
  }
};

// kSparseParts blocks for each (chunk, task): blockIdx is (part, task, chunk of the launch).
template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kNumThreads, kBlocksPerMultiprocessor)
    SparseAttentionKernel(const __grid_constant__ Arguments<T> arguments) {
  char* slots = DynamicSharedMemory();
  LetNextKernelStart();
  constexpr int kRingBytes = Unit<kHeadDim>::kRingBytes;
  auto* shared = reinterpret_cast<SparseShared<kHeadDim>*>(slots + kNumWarps * kRingBytes);
  // The step's tables, the selection, and the rows of former tokens are older than the kernel in
  // front of this one.
  const int32_t task_index = static_cast<int32_t>(blockIdx.y);
  const int32_t index = static_cast<int32_t>(blockIdx.z);
  const DeviceChunk chunk = arguments.LoadChunk(index);
  const int32_t chunk_index = arguments.first_chunk + index;
  const int32_t num_heads = arguments.num_query_heads;
  const int32_t num_tasks =
      chunk.scope == SelectionScope::kQueryHead ? num_heads : arguments.cache.num_kv_heads;
  if (!arguments.Serves(chunk, index, AttentionKind::kSparse, task_index, num_tasks)) {
    WaitForPreviousKernels();
    return;
  }
  if (num_tasks > static_cast<int32_t>(gridDim.y)) __trap();
  const SparseTask task(chunk.scope, task_index, arguments.group_size);

  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t num_rows = min(chunk.token_budget, chunk.num_context_tokens);
  const int32_t num_units = (num_rows + kUnitTokens - 1) / kUnitTokens;
  constexpr int32_t kStride = kSparseParts * kNumWarps;
  const int32_t first_unit = static_cast<int32_t>(blockIdx.x) * kNumWarps + warp;
  const DecodeAttentionWorkspace& workspace = arguments.workspace;
  GatherRing<T, kHeadDim> ring(
      arguments.cache, task.kv_head,
      workspace.cache_rows +
          (int64_t{chunk_index} * num_heads + task.set) * workspace.max_token_budget,
      num_rows, first_unit, kStride, slots + warp * kRingBytes);
  WaitForPreviousKernels();
  ring.FillLast();
  const int64_t query_offset = (int64_t{chunk.first_row} * num_heads + task.first_head) * kHeadDim;
  const LaneQuery<kHeadDim> query =
      LoadQuery<T, kHeadDim>(arguments.query + query_offset, task.num_queries, lane);
  WarpSoftmax<T, kHeadDim> softmax;
  ring.WaitForAll();
  for (int32_t unit = first_unit; unit < num_units; unit += kStride) {
    const char* slot = ring.Wait();
    float scores[4];
    ComputeScores<T, kHeadDim>(slot, query, lane, scores);
    const int first = unit * kUnitTokens + lane % kLanesPerQuery * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[i] = first + i % 2 + i / 2 * kMmaColumns < num_rows
                      ? scores[i] * arguments.score_scale * kLog2E
                      : -INFINITY;
    }
    softmax.Add(scores, SharedAddress(slot) + Unit<kHeadDim>::kValuesOffset, lane);
    ring.Release();
  }
  const int64_t first_head = int64_t{chunk_index} * num_heads + task.first_head;
  const SparseParts<kHeadDim> parts(workspace, first_head);
  MergeWarps(softmax, task.num_queries, &shared->merge,
             [&parts](int head, int element, float output, float max, float sum) {
               parts.Store(head, element, output, max, sum);
             });
  if (ArrivesLast(workspace.sparse_counters + first_head, kSparseParts, &shared->is_last)) {
    parts.Merge(task.num_queries, arguments.output + query_offset);
  }
}

}  // namespace tidal::cuda::decode
