// What one warp does in decode attention: softmax(q k) v of one KV head's group of query heads over
// units of 16 tokens that lie in shared memory, [K, V][16 tokens][head_dim]; and how a block puts
// its warps' results together.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/kernels/decode_attention.h"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::decode {

inline constexpr int kNumWarps = 4;
inline constexpr int kNumThreads = kNumWarps * kWarpSize;
inline constexpr int kBlocksPerMultiprocessor = 2;

inline constexpr int kUnitTokens = kBlockSize;
inline constexpr int kLaneBytes = 16;     // of one load
inline constexpr int kLaneElements = 8;   // of T in them
inline constexpr int kMmaColumns = 8;     // n of m16n8k16
inline constexpr int kLanesPerQuery = 4;  // a query head is the mma's row lane / 4
inline constexpr float kLog2E = 1.4426950408889634f;

// Everything that the kernels are given; made by the host.
template <typename T>
struct Arguments {
  const T* query;
  KvCacheView<T> cache;
  T* output;
  StepView step;
  DecodeAttentionWorkspace workspace;
  uint32_t kinds;  // of each mode, a byte each
  int32_t num_query_heads;
  int32_t group_size;
  int32_t first_chunk;
  int32_t num_chunks;  // of the launch
  int32_t max_sets;
  float score_scale;  // 1 / sqrt(head_dim)

  // The chunks of the launch that the step has.
  __device__ int32_t NumChunks() const {
    return max(0, min(num_chunks, step.counts->num_chunks - first_chunk));
  }
  // Chunk `index` of the launch, perhaps one that the step does not have: need not wait for
  // NumChunks.
  __device__ DeviceChunk LoadChunk(int32_t index) const {
    uint4 words[2];
    static_assert(sizeof(words) == sizeof(DeviceChunk));
    const auto* source = reinterpret_cast<const uint4*>(step.chunks + first_chunk + index);
    words[0] = __ldcg(source);
    words[1] = __ldcg(source + 1);
    DeviceChunk chunk;
    memcpy(&chunk, words, sizeof(chunk));
    return chunk;
  }
  // Of any chunk, also one that LoadChunk made of nothing.
  __device__ AttentionKind Kind(const DeviceChunk& chunk) const {
    static_assert(kNumAttentionModes <= 4);
    return static_cast<AttentionKind>(kinds >> (static_cast<int>(chunk.mode) & 3) * 8 & 0xFF);
  }
  // Whether chunk `index` of the launch, in `chunk`, is of this kind, and has more than `task`
  // tasks. Without branches, so that all of the chunk comes at once.
  __device__ bool Serves(const DeviceChunk& chunk, int32_t index, AttentionKind kind, int32_t task,
                         int32_t num_tasks) const {
    return ((index < NumChunks()) & (chunk.num_tokens == 1) & (Kind(chunk) == kind) &
            (task < num_tasks) & (chunk.token_budget > 0)) != 0;
  }
  __device__ bool Selects(const DeviceChunk& chunk) const {
    return chunk.num_tokens == 1 && Kind(chunk) == AttentionKind::kSelect;
  }
};

__device__ inline int32_t NumBlocks(const DeviceChunk& chunk) {
  return (chunk.num_context_tokens + kBlockSize - 1) / kBlockSize;
}

// Whether device code is compiled for sm_90; host code asks the device. Before, a block may have as
// little as 99 KB of shared memory.
#ifdef TIDAL_SM90
inline constexpr bool kIsSm90 = true;
#else
inline constexpr bool kIsSm90 = false;
#endif

// The sizes of a unit, and of a warp's ring of them.
template <int kHeadDim>
struct Unit {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kValuesOffset = kUnitTokens * kRowBytes;
  static constexpr int kBytes = 2 * kValuesOffset;

  static constexpr int RingBytes(bool is_sm90) { return (is_sm90 ? 24 : 16) * 1024; }
  static constexpr int kRingBytes = RingBytes(kIsSm90);
  static constexpr int kSlots = kRingBytes / kBytes;
  static constexpr int kMaxSlots = RingBytes(true) / kBytes;
};

// One lane's part of the group's queries: query head lane / 4, 8 elements of each 32. The mma's
// order of k within 32 elements is the lanes' own, the same for queries and keys.
template <int kHeadDim>
struct LaneQuery {
  uint4 parts[kHeadDim / 32];
};

// `query`: the group's first head; heads from num_queries on are zero.
template <typename T, int kHeadDim>
__device__ LaneQuery<kHeadDim> LoadQuery(const T* query, int32_t num_queries, int lane) {
  LaneQuery<kHeadDim> result;
  const int row = lane / kLanesPerQuery;
  const T* source = query + row * kHeadDim + lane % kLanesPerQuery * kLaneElements;
#pragma unroll
  for (int i = 0; i < kHeadDim / 32; ++i) {
    result.parts[i] =
        row < num_queries ? __ldcg(reinterpret_cast<const uint4*>(source + i * 32)) : uint4{};
  }
  return result;
}

// The scores q k of a unit's tokens with query head lane / 4: tokens 2 (lane % 4) and one more in
// [0..1], those 8 higher in [2..3]. A token's score does not depend on its place in the unit.
template <typename T, int kHeadDim>
__device__ void ComputeScores(const char* unit, const LaneQuery<kHeadDim>& query, int lane,
                              float (&scores)[4]) {
  constexpr int kTiles = kUnitTokens / kMmaColumns;
  const char* keys =
      unit + lane / kLanesPerQuery * Unit<kHeadDim>::kRowBytes + lane % kLanesPerQuery * kLaneBytes;
  // Two chains a tile hide half of the latency.
  float even[kTiles][4] = {};
  float odd[kTiles][4] = {};
#pragma unroll
  for (int i = 0; i < kHeadDim / 32; ++i) {
    const uint4& q = query.parts[i];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 k = *reinterpret_cast<const uint4*>(
          keys + tile * kMmaColumns * Unit<kHeadDim>::kRowBytes + i * 32 * 2);
      Mma16816<T>(even[tile], {q.x, 0, q.y, 0}, {k.x, k.y});
      Mma16816<T>(odd[tile], {q.z, 0, q.w, 0}, {k.z, k.w});
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    scores[2 * tile] = even[tile][0] + odd[tile][0];
    scores[2 * tile + 1] = even[tile][1] + odd[tile][1];
  }
}

__device__ inline void SwapIf(bool swaps, uint32_t& a, uint32_t& b) {
  const uint32_t old = a;
  a = swaps ? b : a;
  b = swaps ? old : b;
}

// V of 32 elements of the head from `column` on, as B operands: fragments[half][i] is tokens
// 8 half + 2 (lane % 4) and one more, element column + 8 i + lane / 4. Rows of V lie a multiple of
// 128 bytes apart, so eight rows of one matrix would meet in the same banks: each pair of rows is
// read from another matrix's column instead, and the lanes put their fragments in order.
template <int kHeadDim>
__device__ void LoadValues(uint32_t values, int column, int lane, uint32_t (&fragments)[2][4]) {
  const int row = lane % 8;
  const int matrix = lane / 8 ^ row / 2;
  const int pair = lane % kLanesPerQuery;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t(&f)[4] = fragments[half];
    LoadMatricesTransposed(
        f, values + (half * 8 + row) * Unit<kHeadDim>::kRowBytes + (column + matrix * 8) * 2);
    SwapIf((pair & 1) != 0, f[0], f[1]);
    SwapIf((pair & 1) != 0, f[2], f[3]);
    SwapIf((pair & 2) != 0, f[0], f[2]);
    SwapIf((pair & 2) != 0, f[1], f[3]);
  }
}

// A warp's softmax(q k) v so far, of query head lane / 4.
template <typename T, int kHeadDim>
class WarpSoftmax {
 public:
  __device__ WarpSoftmax() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) outputs_[i][j] = 0.0f;
    }
  }

  // `scores` as of ComputeScores, times log2(e); -infinity where there is no token, but not for all
  // tokens of a head. `values`: the shared address of the unit's V, finite in all rows.
  __device__ void Add(const float (&scores)[4], uint32_t values, int lane) {
    const float highest = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    if (__any_sync(kFullWarp, highest > reference_ + kMaxExponent)) RaiseReference(highest);
    float p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = Exp2(scores[i] - reference_);
    sum_ += (p[0] + p[1]) + (p[2] + p[3]);
    const uint32_t a[4] = {PackPair(T(), p[0], p[1]), 0, PackPair(T(), p[2], p[3]), 0};
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      uint32_t v[2][4];
      LoadValues<kHeadDim>(values, i * 32, lane, v);
#pragma unroll
      for (int j = 0; j < 4; ++j) Mma16816<T>(outputs_[i * 4 + j], a, {v[0][j], v[1][j]});
    }
  }

  // Outputs and sum are times 2^-reference.
  __device__ float reference() const { return reference_; }
  // Of the whole row; by the whole warp.
  __device__ float Sum() const {
    float sum = sum_ + __shfl_xor_sync(kFullWarp, sum_, 1);
    return sum + __shfl_xor_sync(kFullWarp, sum, 2);
  }
  // Elements 8 i + 2 (lane % 4) and one more.
  __device__ float2 Output(int i) const { return {outputs_[i][0], outputs_[i][1]}; }

 private:
  // Exponentials reach 2^15, which a half can hold, before everything is scaled anew, which is
  // rare; the highest score so far is then at 2^7, so that a half holds those that are 2^-31 of it.
  static constexpr float kMaxExponent = 15.0f;
  static constexpr float kRaisedExponent = 7.0f;

  __device__ void RaiseReference(float highest) {
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
    const float raised = fmaxf(reference_, highest - kRaisedExponent);
    const float factor = Exp2(reference_ - raised);
    reference_ = raised;
    sum_ *= factor;
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      outputs_[i][0] *= factor;
      outputs_[i][1] *= factor;
    }
  }

  float reference_ = -INFINITY;     // log2
  float sum_ = 0.0f;                // this lane's tokens
  float outputs_[kHeadDim / 8][4];  // [2..3] are rows of no query head
};

// Shared memory in which a block's warps meet.
template <int kHeadDim>
struct MergeArea {
  static constexpr int kQueries = 4;           // at a time
  static constexpr int kPitch = kHeadDim + 8;  // free of bank conflicts for the writes
  float outputs[kNumWarps][kQueries][kPitch];
  float2 softmax[kNumWarps][kMaxAttentionGroup];  // reference (log2), sum
};

// The factor that brings a part of a softmax, {reference (log2), sum}, to another reference; a part
// of no tokens counts nothing.
__device__ inline float PartWeight(float2 part, float max) {
  return part.y == 0.0f ? 0.0f : Exp2(part.x - max);
}

// Whether this block is the last of `num_blocks` to come here: it then sees what all of them have
// written to device memory. `counter` is zero before and after; `flag` is shared. By whole blocks.
__device__ inline bool ArrivesLast(uint32_t* counter, int32_t num_blocks, int32_t* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t last = static_cast<uint32_t>(num_blocks - 1);
    *flag = atomicInc(counter, last) == last ? 1 : 0;
  }
  __syncthreads();
  if (*flag == 0) return false;
  __threadfence();
  return true;
}

// Merges the warps' results, always in the same order, and calls store(query, element, output,
// reference, sum) for each element of each of the group's query heads, in some thread; output is
// not yet divided by sum. By the whole block; `area` is free again afterwards.
template <typename T, int kHeadDim, typename Store>
__device__ void MergeWarps(const WarpSoftmax<T, kHeadDim>& mine, int32_t num_queries,
                           MergeArea<kHeadDim>* area, const Store& store) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  const int row = lane / kLanesPerQuery;
  const int pair = lane % kLanesPerQuery;
  const float sum = mine.Sum();
  if (pair == 0) area->softmax[warp][row] = {mine.reference(), sum};
  for (int first = 0; first < num_queries; first += MergeArea<kHeadDim>::kQueries) {
    const int count = min(MergeArea<kHeadDim>::kQueries, num_queries - first);
    if (row >= first && row < first + count) {
#pragma unroll
      for (int i = 0; i < kHeadDim / 8; ++i) {
        *reinterpret_cast<float2*>(&area->outputs[warp][row - first][i * 8 + pair * 2]) =
            mine.Output(i);
      }
    }
    __syncthreads();
    for (int i = thread; i < count * kHeadDim; i += kNumThreads) {
      const int query = i / kHeadDim;
      const int element = i % kHeadDim;
      float max = -INFINITY;
#pragma unroll
      for (int w = 0; w < kNumWarps; ++w) max = fmaxf(max, area->softmax[w][first + query].x);
      float output = 0.0f;
      float total = 0.0f;
#pragma unroll
      for (int w = 0; w < kNumWarps; ++w) {
        const float2 softmax = area->softmax[w][first + query];
        const float weight = PartWeight(softmax, max);
        output += weight * area->outputs[w][query][element];
        total += weight * softmax.y;
      }
      store(first + query, element, output, max, total);
    }
    __syncthreads();
  }
}

}  // namespace tidal::cuda::decode
