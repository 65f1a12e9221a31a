// kFull and kSelect of decode_attention.h: attention over whole contexts.
#pragma once

#include <cstdint>

#include "cuda/kernels/decode_attention_warp.cuh"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::decode {

// Where each chunk's work begins, in shared memory; entry num_chunks is the end.
struct ChunkTable {
  int32_t* first_unit;         // [num_chunks + 1]
  int32_t* first_score_block;  // [num_chunks + 1], of the kSelect chunks alone
  int32_t num_chunks;

  static constexpr uint32_t Bytes(int32_t max_chunks) {
    return 2 * static_cast<uint32_t>(max_chunks + 1) * static_cast<uint32_t>(sizeof(int32_t));
  }

  // By one warp.
  template <typename T>
  __device__ void Fill(const Arguments<T>& arguments) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    int32_t units_before = 0;
    int32_t score_blocks_before = 0;
    for (int32_t first = 0; first < arguments.num_chunks; first += kWarpSize) {
      const int32_t index = first + lane;
      int32_t units = 0;
      int32_t score_blocks = 0;
      DeviceChunk chunk = {};
      if (index < arguments.num_chunks) chunk = arguments.LoadChunk(index);
      if (index < num_chunks) {
        const bool selects = arguments.Selects(chunk);
        if (selects || (chunk.num_tokens == 1 && arguments.Kind(chunk) == AttentionKind::kFull)) {
          units = NumBlocks(chunk) * arguments.cache.num_kv_heads;
          score_blocks = selects ? NumBlocks(chunk) : 0;
        }
      }
#pragma unroll
      for (int distance = 1; distance < kWarpSize; distance *= 2) {
        const int32_t more_units = __shfl_up_sync(kFullWarp, units, distance);
        const int32_t more_blocks = __shfl_up_sync(kFullWarp, score_blocks, distance);
        units += lane >= distance ? more_units : 0;
        score_blocks += lane >= distance ? more_blocks : 0;
      }
      if (index < num_chunks) {
        first_unit[index + 1] = units_before + units;
        first_score_block[index + 1] = score_blocks_before + score_blocks;
      }
      units_before += __shfl_sync(kFullWarp, units, kWarpSize - 1);
      score_blocks_before += __shfl_sync(kFullWarp, score_blocks, kWarpSize - 1);
    }
    if (lane == 0) {
      first_unit[0] = 0;
      first_score_block[0] = 0;
    }
  }

  __device__ int32_t num_units() const { return first_unit[num_chunks]; }

  // The chunk that the unit belongs to.
  __device__ int32_t Find(int32_t unit) const {
    int32_t low = 0;
    int32_t high = num_chunks - 1;
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (first_unit[middle] <= unit) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// How the units are cut into the blocks' shares.
struct Shares {
  int64_t num_units;
  int64_t num_blocks;  // those that get a share; all of them are larger than 0

  __device__ Shares(int32_t units, int32_t grid) : num_units(units), num_blocks(min(units, grid)) {}

  __device__ int32_t Begin(int64_t block) const {
    return static_cast<int32_t>(num_units * block / num_blocks);
  }
  __device__ int32_t BlockOf(int64_t unit) const {
    return static_cast<int32_t>(((unit + 1) * num_blocks - 1) / num_units);
  }
};

// A block's part of one (chunk, KV head).
struct Segment {
  int32_t chunk;  // of the launch
  int32_t kv_head;
  int32_t first;  // unit of the (chunk, KV head)
  int32_t last;   // one behind its last unit
  int32_t begin;  // the block's part of them
  int32_t end;

  __device__ Segment(const ChunkTable& table, int32_t num_kv_heads, int32_t unit,
                     int32_t share_end) {
    chunk = table.Find(unit);
    const int32_t chunk_unit = table.first_unit[chunk];
    const int32_t num_blocks = (table.first_unit[chunk + 1] - chunk_unit) / num_kv_heads;
    kv_head = (unit - chunk_unit) / num_blocks;
    first = chunk_unit + kv_head * num_blocks;
    last = first + num_blocks;
    begin = unit;
    end = min(last, share_end);
  }
};

// One warp's ring of units: every kNumWarps-th unit of the block's share, in order.
template <typename T, int kHeadDim>
class UnitRing {
 public:
  static constexpr int kSlots = Unit<kHeadDim>::kSlots;

  // Fills all slots. `slots`: this warp's, with initialised barriers.
  __device__ UnitRing(const Arguments<T>& arguments, const ChunkTable& table, char* slots,
                      uint32_t barriers, int32_t first_unit, int32_t end_unit)
      : arguments_(arguments),
        table_(table),
        slots_(slots),
        barriers_(barriers),
        first_unit_(first_unit),
        end_unit_(end_unit) {
#ifdef TIDAL_SM90
    policy_ = MakeCachePolicy<CachePolicy::kEvictFirst>();
#endif
    upcoming_ = Locate(0);
    for (int i = 0; i < kSlots; ++i) Fill(i);
  }

  // The oldest unit in the ring, once it has arrived.
  __device__ char* Wait() const {
#ifdef TIDAL_SM90
    WaitForBarrier(barriers_ + slot_ * kBarrierBytes, parity_);
#else
    WaitForAsyncCopies<kSlots - 1>();
    __syncwarp();
#endif
    return slots_ + slot_ * Unit<kHeadDim>::kBytes;
  }

  // Gives the oldest unit's slot to the next one; all lanes have read it.
  __device__ void Release() {
    __syncwarp();
    Fill(slot_);
    if (++slot_ == kSlots) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  // Where this lane's unit begins, the lane-th of the warp's from `index` on, in elements.
  __device__ int64_t Locate(int32_t index) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t unit = first_unit_ + int64_t{index + lane} * kNumWarps;
    if (unit >= end_unit_) return 0;
    const Segment segment(table_, arguments_.cache.num_kv_heads, static_cast<int32_t>(unit),
                          end_unit_);
    const StepView& step = arguments_.step;
    const int32_t slot = step.chunks[arguments_.first_chunk + segment.chunk].sampler_slot;
    const int32_t block =
        step.block_tables[int64_t{slot} * step.block_table_stride + segment.begin - segment.first];
    return block * arguments_.cache.block_stride() +
           int64_t{segment.kv_head} * kBlockSize * kHeadDim;
  }

  __device__ void Fill(int slot) {
    const int32_t index = num_filled_++;
    if (index % kWarpSize == 0) {
      located_ = upcoming_;
      upcoming_ = Locate(index + kWarpSize);
    }
    const int64_t offset = __shfl_sync(kFullWarp, located_, index % kWarpSize);
    const bool exists = first_unit_ + int64_t{index} * kNumWarps < end_unit_;
    const T* keys = arguments_.cache.base + offset;
    const T* values = keys + arguments_.cache.value_offset();
    const uint32_t target = SharedAddress(slots_ + slot * Unit<kHeadDim>::kBytes);
    constexpr int kHalf = Unit<kHeadDim>::kValuesOffset;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#ifdef TIDAL_SM90
    if (!exists || lane != 0) return;
    const uint32_t barrier = barriers_ + slot * kBarrierBytes;
    ArriveAndExpectBytes(barrier, Unit<kHeadDim>::kBytes);
    CopyBulk(target, keys, kHalf, barrier, policy_);
    CopyBulk(target + kHalf, values, kHalf, barrier, policy_);
#else
    if (exists) {
      for (int i = lane * kLaneBytes; i < kHalf; i += kWarpSize * kLaneBytes) {
        CopyAsync16(target + i, reinterpret_cast<const char*>(keys) + i);
        CopyAsync16(target + kHalf + i, reinterpret_cast<const char*>(values) + i);
      }
    }
    CommitAsyncCopies();
#endif
  }

  const Arguments<T>& arguments_;
  const ChunkTable& table_;
  char* slots_;
  uint32_t barriers_;
  int32_t first_unit_;
  int32_t end_unit_;
  int32_t num_filled_ = 0;
  int64_t located_ = 0;   // of 32 successive units, one a lane
  int64_t upcoming_ = 0;  // of the next 32
  int slot_ = 0;
  uint32_t parity_ = 0;
  [[maybe_unused]] uint64_t policy_ = 0;
};

// Rows of V behind the context's end hold anything, NaN too; 0 * NaN must not reach the sum.
template <int kHeadDim>
__device__ void ClearValuesFrom(char* unit, int32_t num_tokens, int lane) {
  char* values = unit + Unit<kHeadDim>::kValuesOffset;
  for (int i = num_tokens * Unit<kHeadDim>::kRowBytes + lane * kLaneBytes;
       i < Unit<kHeadDim>::kValuesOffset; i += kWarpSize * kLaneBytes) {
    *reinterpret_cast<uint4*>(values + i) = uint4{};
  }
  FenceSharedForAsync();  // before the slot's next unit
  __syncwarp();
}

// The (chunk, KV head) that a segment belongs to.
template <typename T, int kHeadDim>
struct HeadGroup {
  const Arguments<T>& arguments;
  DeviceChunk chunk;
  int32_t chunk_index;  // of the step
  int32_t kv_head;
  float* scores;  // of the group's first head; null for kFull
  int32_t score_pitch;

  __device__ HeadGroup(const Arguments<T>& all, const ChunkTable& table, const Segment& segment)
      : arguments(all),
        chunk(all.step.chunks[all.first_chunk + segment.chunk]),
        chunk_index(all.first_chunk + segment.chunk),
        kv_head(segment.kv_head),
        scores(nullptr),
        score_pitch(NumBlocks(chunk) * kBlockSize) {
    if (!all.Selects(chunk)) return;
    const DecodeAttentionWorkspace& workspace = all.workspace;
    const int64_t first = int64_t{table.first_score_block[segment.chunk]} * kBlockSize;
    if (first + score_pitch > workspace.max_score_tokens) __trap();
    scores = workspace.scores + first * all.num_query_heads + int64_t{first_head()} * score_pitch;
  }

  __device__ int32_t first_head() const { return kv_head * arguments.group_size; }
  __device__ int64_t query_offset() const {
    return (int64_t{chunk.first_row} * arguments.num_query_heads + first_head()) * kHeadDim;
  }

  __device__ void StoreScores(int32_t first_token, const float (&values)[4], int lane) const {
    const int query = lane / kLanesPerQuery;
    if (query >= arguments.group_size) return;
    float* target = scores + int64_t{query} * score_pitch + first_token + lane % kLanesPerQuery * 2;
    *reinterpret_cast<float2*>(target) = {values[0], values[1]};
    *reinterpret_cast<float2*>(target + kMmaColumns) = {values[2], values[3]};
  }

  // One element of the whole (chunk, KV head), as MergeWarps gives it.
  __device__ void StoreOutput(int query, int element, float output, float max, float sum) const {
    arguments.output[query_offset() + query * kHeadDim + element] = static_cast<T>(output / sum);
    if (element == 0 && scores != nullptr) {
      arguments.workspace
          .softmax[int64_t{chunk_index} * arguments.num_query_heads + first_head() + query] = {max,
                                                                                               sum};
    }
  }
};

// This warp's units of a segment; `unit` is its next one.
template <typename T, int kHeadDim>
__device__ void AttendSegment(const HeadGroup<T, kHeadDim>& group, const Segment& segment,
                              const LaneQuery<kHeadDim>& query, UnitRing<T, kHeadDim>* ring,
                              int64_t* unit, WarpSoftmax<T, kHeadDim>* softmax) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const float scale = group.arguments.score_scale;
  for (; *unit < segment.end; *unit += kNumWarps) {
    const int32_t first_token = static_cast<int32_t>(*unit - segment.first) * kUnitTokens;
    const int32_t num_tokens = group.chunk.num_context_tokens - first_token;
    char* slot = ring->Wait();
    float scores[4];
    ComputeScores<T, kHeadDim>(slot, query, lane, scores);
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] *= scale;
    if (num_tokens < kUnitTokens) {
      const int first = lane % kLanesPerQuery * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + i % 2 + i / 2 * kMmaColumns >= num_tokens) scores[i] = -INFINITY;
      }
      ClearValuesFrom<kHeadDim>(slot, num_tokens, lane);
    }
    if (group.scores != nullptr) group.StoreScores(first_token, scores, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] *= kLog2E;
    softmax->Add(scores, SharedAddress(slot) + Unit<kHeadDim>::kValuesOffset, lane);
    ring->Release();
  }
}

// The results of shares of a (chunk, KV head), in device memory. A block leaves two at most: of a
// segment that others have begun, in place 0, and of one that it begins and others end, in 1.
template <int kHeadDim>
struct Partials {
  float* outputs;   // [block][2][query head of the group][kHeadDim]
  float2* softmax;  // [block][2][query head of the group], reference (log2) and sum
  int32_t group_size;

  __device__ Partials(float* memory, int32_t num_blocks, int32_t group)
      : outputs(memory),
        softmax(reinterpret_cast<float2*>(memory + int64_t{num_blocks} * 2 * group * kHeadDim)),
        group_size(group) {}

  __device__ int32_t Row(int32_t block, bool begins, int query) const {
    return (block * 2 + (begins ? 1 : 0)) * group_size + query;
  }
};

// Merges all shares of the group, which the blocks first_block .. first_block + num_shares - 1 have
// left, and stores the outputs.
template <typename T, int kHeadDim>
__device__ void MergeShares(const HeadGroup<T, kHeadDim>& group, const Partials<kHeadDim>& partials,
                            int32_t first_block, int32_t num_shares) {
  constexpr int kElements = kHeadDim / kWarpSize;  // a lane's
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int query = warp; query < partials.group_size; query += kNumWarps) {
    const auto row = [&](int32_t share) {
      return partials.Row(first_block + share, share == 0, query);
    };
    float max = -INFINITY;
    for (int32_t share = lane; share < num_shares; share += kWarpSize) {
      max = fmaxf(max, __ldcg(&partials.softmax[row(share)]).x);
    }
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      max = fmaxf(max, __shfl_xor_sync(kFullWarp, max, distance));
    }
    float sum = 0.0f;
    float output[kElements] = {};
#pragma unroll 4
    for (int32_t share = 0; share < num_shares; ++share) {
      const float2 softmax = __ldcg(&partials.softmax[row(share)]);
      const float* source = partials.outputs + int64_t{row(share)} * kHeadDim;
      const float weight = PartWeight(softmax, max);
      sum += weight * softmax.y;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        output[i] += weight * __ldcg(source + i * kWarpSize + lane);
      }
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      group.StoreOutput(query, i * kWarpSize + lane, output[i], max, sum);
    }
  }
}

// Shared memory besides the ring.
template <int kHeadDim>
struct ContextShared {
  MergeArea<kHeadDim> merge;
  uint64_t barriers[kNumWarps][Unit<kHeadDim>::kMaxSlots];
  int32_t is_last;
};

template <int kHeadDim>
uint32_t ContextSharedBytes(bool is_sm90, int32_t max_chunks) {
  return kNumWarps * Unit<kHeadDim>::RingBytes(is_sm90) +
         static_cast<uint32_t>(sizeof(ContextShared<kHeadDim>)) + ChunkTable::Bytes(max_chunks);
}

// Leaves this block's share of the group, and merges all shares where it is the last to do so.
template <typename T, int kHeadDim>
__device__ void FinishSegment(const HeadGroup<T, kHeadDim>& group, const Segment& segment,
                              const Shares& shares, const WarpSoftmax<T, kHeadDim>& softmax,
                              ContextShared<kHeadDim>* shared) {
  const Arguments<T>& arguments = group.arguments;
  const int32_t group_size = arguments.group_size;
  if (segment.begin == segment.first && segment.end == segment.last) {
    MergeWarps(softmax, group_size, &shared->merge,
               [&](int query, int element, float output, float max, float sum) {
                 group.StoreOutput(query, element, output, max, sum);
               });
    return;
  }
  const Partials<kHeadDim> partials(arguments.workspace.partials, static_cast<int32_t>(gridDim.x),
                                    group_size);
  const bool begins = segment.begin == segment.first;
  MergeWarps(softmax, group_size, &shared->merge,
             [&](int query, int element, float output, float max, float sum) {
               const int32_t row = partials.Row(static_cast<int32_t>(blockIdx.x), begins, query);
               partials.outputs[int64_t{row} * kHeadDim + element] = output;
               if (element == 0) partials.softmax[row] = {max, sum};
             });
  const int32_t first_block = shares.BlockOf(segment.first);
  const int32_t num_shares = shares.BlockOf(segment.last - 1) - first_block + 1;
  uint32_t* counter = arguments.workspace.counters +
                      int64_t{group.chunk_index} * arguments.cache.num_kv_heads + group.kv_head;
  if (!ArrivesLast(counter, num_shares, &shared->is_last)) return;
  MergeShares(group, partials, first_block, num_shares);
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kNumThreads, kBlocksPerMultiprocessor)
    ContextAttentionKernel(const __grid_constant__ Arguments<T> arguments) {
  char* slots = DynamicSharedMemory();
  LetNextKernelStart();
  constexpr int kRingBytes = Unit<kHeadDim>::kRingBytes;
  auto* shared = reinterpret_cast<ContextShared<kHeadDim>*>(slots + kNumWarps * kRingBytes);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kNumWarps * Unit<kHeadDim>::kMaxSlots; ++i) {
      InitBarrier(SharedAddress(&shared->barriers[0][0] + i), 1);
    }
    FenceBarrierInit();
  }
  WaitForPreviousKernels();
  int32_t* table_memory = reinterpret_cast<int32_t*>(shared + 1);
  const ChunkTable table = {table_memory, table_memory + arguments.num_chunks + 1,
                            arguments.NumChunks()};
  if (warp == 0) table.Fill(arguments);
  __syncthreads();
  const Shares shares(table.num_units(), static_cast<int32_t>(gridDim.x));
  if (static_cast<int64_t>(blockIdx.x) >= shares.num_blocks) return;
  const int32_t begin = shares.Begin(blockIdx.x);
  const int32_t end = shares.Begin(int64_t{blockIdx.x} + 1);
  UnitRing<T, kHeadDim> ring(arguments, table, slots + warp * kRingBytes,
                             SharedAddress(&shared->barriers[warp][0]), begin + warp, end);
  int64_t unit = int64_t{begin} + warp;
  for (int32_t next = begin; next < end;) {
    const Segment segment(table, arguments.cache.num_kv_heads, next, end);
    const HeadGroup<T, kHeadDim> group(arguments, table, segment);
    const LaneQuery<kHeadDim> query =
        LoadQuery<T, kHeadDim>(arguments.query + group.query_offset(), arguments.group_size,
                               static_cast<int>(threadIdx.x) % kWarpSize);
    WarpSoftmax<T, kHeadDim> softmax;
    AttendSegment(group, segment, query, &ring, &unit, &softmax);
    FinishSegment(group, segment, shares, softmax, shared);
    next = segment.end;
  }
}

}  // namespace tidal::cuda::decode
