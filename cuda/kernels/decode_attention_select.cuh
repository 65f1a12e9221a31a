// kSelect's second half in decode_attention.h: the positions with the highest scores.
#pragma once

#include <cstdint>

#include "cuda/kernels/decode_attention_warp.cuh"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::decode {

inline constexpr int kSelectThreads = 512;
inline constexpr int kSelectWarps = kSelectThreads / kWarpSize;
inline constexpr int kMaxSelectBlocks = 8;  // of a cluster

// Positions whose keys a block holds.
constexpr int32_t NumBlockKeys(bool is_sm90) { return is_sm90 ? 26624 : 16384; }
inline constexpr int32_t kBlockKeys = NumBlockKeys(kIsSm90);

// A key orders scores as unsigned numbers; digits of 11, 11 and 10 bits, the highest first.
inline constexpr int kNumDigits = 3;
inline constexpr int kMaxBins = 2048;
__device__ inline int DigitShift(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }
__device__ inline int NumBins(int digit) { return digit == 2 ? 1024 : kMaxBins; }

// Of positions that are kept whatever their score.
inline constexpr uint32_t kKeptKey = 0xFFFFFFFFu;

__device__ inline uint32_t MakeKey(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 is as high as 0
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return min(key, kKeptKey - 1);
}

// Candidates that a cluster's threads can hold in registers, and that a block can list.
inline constexpr int kThreadCandidates = 16;
inline constexpr int kMaxCandidates = kThreadCandidates * kSelectThreads;
inline constexpr int kMaxListed = kMaxBins;

// Before the block's keys.
struct alignas(16) SelectShared {
  uint32_t histograms[2][kMaxBins];
  // In the second histogram's place: the block's candidates, in any order.
  __device__ uint32_t* candidates() { return histograms[1]; }
  // In the place of both, after that: the block's positions of the set.
  __device__ int32_t* selected() { return reinterpret_cast<int32_t*>(histograms[0]); }
  static_assert(2 * kMaxBins >= kMaxTokenBudget);

  int32_t num_candidates;  // of the block, listed or not
  int32_t num_kept;        // of the cluster's candidates
  uint32_t highest;        // of the cluster's candidates that are not kept
  // Of each warp, then summed up over the warps before it.
  int32_t warp_higher[kSelectWarps];
  int32_t warp_equal[kSelectWarps];
  int32_t warp_counts[kSelectWarps];
  int32_t num_higher;  // of the block
  int32_t num_equal;
  uint32_t bin;       // of the last key in the set
  int32_t remaining;  // of the set, to be taken from that bin

  __device__ uint32_t* keys() { return reinterpret_cast<uint32_t*>(this + 1); }  // [kBlockKeys]
};

inline uint32_t SelectSharedBytes(bool is_sm90) {
  return static_cast<uint32_t>(sizeof(SelectShared) +
                               static_cast<size_t>(NumBlockKeys(is_sm90)) * sizeof(uint32_t));
}

// Positions a warp goes over at a time: 4 a lane.
inline constexpr int32_t kStride = 4 * kWarpSize;

// The scores that a set is picked by.
struct SetScores {
  const float* scores;  // [head][pitch], of the set's first query head
  int32_t pitch;
  int32_t num_heads;
  SelectionScope scope;
  const float2* softmax;  // of the set's heads: reference (log2), sum

  // The pooled scores of kCount times four positions: from `position`, a multiple of 4, and each
  // kStride further on. Those from `end` on are not read.
  template <int kCount>
  __device__ void Load(int32_t position, int32_t end, float4 (&pooled)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) pooled[i] = {};
#pragma unroll 1
    for (int32_t head = 0; head < num_heads; ++head) {
      const float* row = scores + int64_t{head} * pitch;
      float4 raw[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int32_t first = position + i * kStride;
        raw[i] = first < end ? __ldcg(reinterpret_cast<const float4*>(row + first)) : float4{};
      }
      const float2 state = __ldcg(softmax + head);
      const float factor = 1.0f / state.y;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        pooled[i] = {Pool(pooled[i].x, raw[i].x, state.x, factor),
                     Pool(pooled[i].y, raw[i].y, state.x, factor),
                     Pool(pooled[i].z, raw[i].z, state.x, factor),
                     Pool(pooled[i].w, raw[i].w, state.x, factor)};
      }
    }
  }

 private:
  // `pooled` with one more head's score. Never contracted to a fused multiply-add, so that it is
  // the same wherever it is computed.
  __device__ float Pool(float pooled, float score, float max, float factor) const {
    if (scope == SelectionScope::kQueryHead) return score;
    const float p = __fmul_rn(Exp2(__fadd_rn(__fmul_rn(score, kLog2E), -max)), factor);
    return scope == SelectionScope::kKvHead ? __fadd_rn(pooled, p) : fmaxf(pooled, p);
  }
};

// One set's positions, as this warp sees them: a part of the block's part of the context.
struct SetRange {
  int32_t context;
  int32_t num_sinks;
  int32_t first_recent;
  int32_t block_begin;
  int32_t begin;
  int32_t end;

  __device__ SetRange(const DeviceChunk& chunk, int warp)
      : context(chunk.num_context_tokens),
        num_sinks(chunk.num_sink_tokens),
        first_recent(chunk.num_context_tokens - max(chunk.num_recent_tokens, 1)) {
    const int32_t num_parts = ClusterSize() * kSelectWarps;
    const int32_t part = ((context + num_parts - 1) / num_parts + 3) / 4 * 4;
    block_begin = ClusterRank() * kSelectWarps * part;
    begin = min(block_begin + warp * part, context);
    end = min(begin + part, context);
  }

  __device__ bool Keeps(int32_t position) const {
    return position < num_sinks || position >= first_recent;
  }
  __device__ uint4 MakeKeys(int32_t position, const float4& scores) const {
    return {Keeps(position) ? kKeptKey : MakeKey(scores.x),
            Keeps(position + 1) ? kKeptKey : MakeKey(scores.y),
            Keeps(position + 2) ? kKeptKey : MakeKey(scores.z),
            Keeps(position + 3) ? kKeptKey : MakeKey(scores.w)};
  }
};

// Calls visit(position, keys) for every four positions from `begin` on, by whole warps, where the
// warp has a key of at least `lowest`; positions from `end` on are not the warp's. Reads keys that
// are not in shared memory from the scores.
template <typename Visit>
__device__ void VisitKeys(const SetRange& range, const SetScores& scores, const uint32_t* keys,
                          uint32_t lowest, const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int32_t first = range.begin; first < range.end; first += kStride) {
    const int32_t position = first + lane * 4;
    const int32_t index = position - range.block_begin;
    uint4 four = {};
    if (index + 4 <= kBlockKeys) {
      if (position < range.end) four = *reinterpret_cast<const uint4*>(keys + index);
    } else {
      float4 loaded[1];
      scores.Load(position, range.end, loaded);
      four = range.MakeKeys(position, loaded[0]);
    }
    const uint32_t highest = max(max(four.x, four.y), max(four.z, four.w));
    if (__any_sync(kFullWarp, highest >= lowest)) visit(position, four);
  }
}

// Brings the keys to shared memory, and counts by their first digit the highest of each 32 or so.
__device__ inline void LoadKeys(const SetRange& range, const SetScores& scores, uint32_t* histogram,
                                uint32_t* keys) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  constexpr int kLoads = 8;  // in flight a thread: 64 KB a block
  for (int32_t first = range.begin; first < range.end; first += kLoads * kStride) {
    float4 loaded[kLoads];
    scores.Load(first + lane * 4, range.end, loaded);
    uint32_t highest = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int32_t position = first + i * kStride + lane * 4;
      if (position >= range.end) continue;
      const uint4 four = range.MakeKeys(position, loaded[i]);
      const int32_t index = position - range.block_begin;
      if (index + 4 <= kBlockKeys) *reinterpret_cast<uint4*>(keys + index) = four;
      const uint32_t each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (position + j < range.end) highest = max(highest, each[j]);
      }
    }
    if (first + lane * 4 < range.end) atomicAdd(histogram + (highest >> DigitShift(0)), 1u);
  }
}

// Counts by digit `digit` the keys whose digits before it are `prefix`.
__device__ inline void CountDigit(const SetRange& range, const SetScores& scores,
                                  const uint32_t* keys, int digit, uint32_t prefix,
                                  uint32_t* histogram) {
  const int shift = DigitShift(digit);
  const int prefix_shift = DigitShift(max(digit - 1, 0));
  const uint32_t mask = static_cast<uint32_t>(NumBins(digit) - 1);
  const uint32_t lowest = digit == 0 ? 0 : prefix << prefix_shift;
  VisitKeys(range, scores, keys, lowest, [&](int32_t position, const uint4& four) {
    const uint32_t each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool counts = digit == 0 || each[j] >> prefix_shift == prefix;
      if (counts && position + j < range.end) {
        atomicAdd(histogram + (each[j] >> shift & mask), 1u);
      }
    }
  });
}

__device__ inline void ClearHistogram(uint32_t* histogram) {
  for (int bin = static_cast<int>(threadIdx.x); bin < kMaxBins; bin += kSelectThreads) {
    histogram[bin] = 0;
  }
}

// The sum of `value` over the lanes up to this one.
__device__ inline int32_t ScanWarp(int32_t value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int32_t more = __shfl_up_sync(kFullWarp, value, distance);
    value += lane >= distance ? more : 0;
  }
  return value;
}

// The blocks of the cluster from `first` to before `last`.
struct Ranks {
  int32_t first;
  int32_t last;

  __device__ static Ranks All() { return {0, ClusterSize()}; }
  __device__ static Ranks Own() { return {ClusterRank(), ClusterRank() + 1}; }
};

// Finds the bin that holds the `remaining`-th highest key of these blocks' histograms, and how many
// keys remain to be taken from it, in shared->bin and shared->remaining, which stay as they are
// where there are fewer keys. By the whole block, after a ClusterSync (Own: a __syncthreads).
__device__ inline void FindBin(const Ranks& ranks, int32_t remaining, uint32_t* histogram,
                               SelectShared* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  // Thread t has four bins from `low` on, and threads go from the highest bins down.
  static_assert(kMaxBins == 4 * kSelectThreads);
  const int low = kMaxBins - 4 - 4 * thread;
  int32_t counts[4] = {};
  for (int32_t rank = ranks.first; rank < ranks.last; ++rank) {
    const int4 part = *InClusterBlock(rank, reinterpret_cast<const int4*>(histogram + low));
    counts[0] += part.x;
    counts[1] += part.y;
    counts[2] += part.z;
    counts[3] += part.w;
  }
  const int32_t own = counts[0] + counts[1] + counts[2] + counts[3];
  const int32_t up_to = ScanWarp(own);
  if (lane == kWarpSize - 1) shared->warp_counts[warp] = up_to;
  __syncthreads();
  const int32_t totals = ScanWarp(lane < kSelectWarps ? shared->warp_counts[lane] : 0);
  const int32_t before_warp = __shfl_sync(kFullWarp, totals, max(warp - 1, 0));
  int32_t above = (warp > 0 ? before_warp : 0) + up_to - own;
#pragma unroll
  for (int i = 3; i >= 0; --i) {
    if (above < remaining && remaining <= above + counts[i]) {
      shared->bin = static_cast<uint32_t>(low + i);
      shared->remaining = remaining - above;
    }
    above += counts[i];
  }
  __syncthreads();
}

// The last key in the set of `budget`, and how many of the keys equal to it are in the set.
struct Threshold {
  uint32_t key;
  int32_t num_equal;
};

// A key that at least `budget` keys of the cluster's reach, and not many more: so many of those
// that LoadKeys has counted do.
__device__ inline uint32_t FindLowerBound(int32_t budget, SelectShared* shared) {
  __syncwarp();  // ClusterSync takes whole warps
  ClusterSync();
  FindBin(Ranks::All(), budget, shared->histograms[0], shared);
  return shared->bin << DigitShift(0);  // bin 0 where fewer were counted
}

// Lists the block's keys that reach the lower bound.
__device__ inline void ListCandidates(const SetRange& range, const SetScores& scores,
                                      uint32_t lower_bound, SelectShared* shared) {
  VisitKeys(range, scores, shared->keys(), lower_bound, [&](int32_t position, const uint4& four) {
    const uint32_t each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (position + j >= range.end || each[j] < lower_bound) continue;
      const int32_t place = atomicAdd(&shared->num_candidates, 1);
      if (place < kMaxListed) shared->candidates()[place] = each[j];
    }
  });
}

// The cluster's candidates, spread over a block's threads; every block holds all of them.
class Candidates {
 public:
  // After a ClusterSync.
  __device__ explicit Candidates(SelectShared* shared) : shared_(shared) {
    const int32_t num_blocks = ClusterSize();
    const int32_t max_listed = min(kMaxListed, kMaxCandidates / num_blocks);
    int32_t most = 0;
#pragma unroll
    for (int rank = 0; rank < kMaxSelectBlocks; ++rank) {
      most = max(most, InClusterBlock(min(rank, num_blocks - 1), shared)->num_candidates);
    }
    fit_ = most <= max_listed;
    // As many threads for each block's list.
    const int32_t num_threads = kSelectThreads / num_blocks;
    SelectShared* block = InClusterBlock(static_cast<int32_t>(threadIdx.x) / num_threads, shared);
    const int32_t num_listed = min(block->num_candidates, max_listed);
#pragma unroll
    for (int i = 0; i < kThreadCandidates; ++i) {
      const int32_t place = static_cast<int32_t>(threadIdx.x) % num_threads + i * num_threads;
      keys_[i] = place < num_listed ? block->candidates()[place] : 0;
    }
  }

  // Whether the blocks have listed all of theirs; the same in all threads of the cluster.
  __device__ bool fit() const { return fit_; }

  // By histograms that each divide what the last one has left into 2048 bins.
  __device__ Threshold FindThreshold(int32_t budget, uint32_t lower_bound) {
    FindRange();
    const int32_t num_kept = shared_->num_kept;
    if (budget <= num_kept) return {kKeptKey, budget};
    Threshold result = {lower_bound, budget - num_kept};
    uint32_t last = shared_->highest;
    while (true) {
      constexpr int kBinBits = 11;
      static_assert(kMaxBins == 1 << kBinBits);
      const int shift = max(0, 32 - kBinBits - __clz(static_cast<int>(last - result.key)));
      CountBetween(result.key, last, shift);
      FindBin(Ranks::Own(), result.num_equal, shared_->histograms[0], shared_);
      result = {result.key + (shared_->bin << shift), shared_->remaining};
      if (shift == 0) return result;
      last = result.key + ((1u << shift) - 1);
    }
  }

 private:
  // How many are kept, and the highest of the others.
  __device__ void FindRange() {
    int32_t num_kept = 0;
    uint32_t highest = 0;
#pragma unroll
    for (uint32_t key : keys_) {
      num_kept += key == kKeptKey ? 1 : 0;
      highest = key == kKeptKey ? highest : max(highest, key);
    }
    num_kept = __reduce_add_sync(kFullWarp, num_kept);
    highest = __reduce_max_sync(kFullWarp, highest);
    if (threadIdx.x % kWarpSize == 0) {
      if (num_kept > 0) atomicAdd(&shared_->num_kept, num_kept);
      atomicMax(&shared_->highest, highest);
    }
    __syncthreads();
  }

  __device__ void CountBetween(uint32_t first, uint32_t last, int shift) {
    uint32_t* histogram = shared_->histograms[0];
    ClearHistogram(histogram);
    __syncthreads();
#pragma unroll
    for (uint32_t key : keys_) {
      // No key is 0: that is the place of none.
      if (key != 0 && key >= first && key <= last)
        atomicAdd(histogram + (key - first >> shift), 1u);
    }
    __syncthreads();
  }

  SelectShared* shared_;
  uint32_t keys_[kThreadCandidates];
  bool fit_;
};

// By histograms of all keys, digit by digit.
__device__ inline Threshold FindThresholdOfAll(const SetRange& range, const SetScores& scores,
                                               int32_t budget, SelectShared* shared) {
  ClearHistogram(shared->histograms[0]);
  ClearHistogram(shared->histograms[1]);
  __syncthreads();
  Threshold result = {0, budget};
#pragma unroll 1
  for (int digit = 0; digit < kNumDigits; ++digit) {
    uint32_t* histogram = shared->histograms[digit % 2];
    CountDigit(range, scores, shared->keys(), digit, result.key, histogram);
    __syncwarp();  // ClusterSync takes whole warps
    ClusterSync();
    // The last digit's; all blocks of the cluster have read what it held.
    if (digit == 1) ClearHistogram(shared->histograms[0]);
    FindBin(Ranks::All(), result.num_equal, histogram, shared);
    result = {result.key * NumBins(digit) + shared->bin, shared->remaining};
  }
  return result;
}

__device__ inline Threshold FindThreshold(const SetRange& range, const SetScores& scores,
                                          int32_t budget, SelectShared* shared) {
  ClearHistogram(shared->histograms[0]);
  if (threadIdx.x == 0) {
    shared->num_candidates = 0;
    shared->num_kept = 0;
    shared->highest = 0;
    shared->bin = 0;
  }
  __syncthreads();
  LoadKeys(range, scores, shared->histograms[0], shared->keys());
  const uint32_t lower_bound = FindLowerBound(budget, shared);
  ListCandidates(range, scores, lower_bound, shared);
  __syncwarp();
  ClusterSync();
  Candidates candidates(shared);
  return candidates.fit() ? candidates.FindThreshold(budget, lower_bound)
                          : FindThresholdOfAll(range, scores, budget, shared);
}

// Counts this block's keys above and at the threshold: sums over the warps before each in
// warp_higher and warp_equal, the block's in num_higher and num_equal.
__device__ inline void CountSelected(const SetRange& range, const SetScores& scores,
                                     const Threshold& threshold, SelectShared* shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int32_t higher = 0;
  int32_t equal = 0;
  VisitKeys(range, scores, shared->keys(), threshold.key, [&](int32_t position, const uint4& four) {
    const uint32_t each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool is_mine = position + j < range.end;
      higher += is_mine && each[j] > threshold.key ? 1 : 0;
      equal += is_mine && each[j] == threshold.key ? 1 : 0;
    }
  });
  higher = __reduce_add_sync(kFullWarp, higher);
  equal = __reduce_add_sync(kFullWarp, equal);
  if (lane == 0) {
    shared->warp_higher[warp] = higher;
    shared->warp_equal[warp] = equal;
  }
  __syncthreads();
  if (warp == 0) {
    const bool has_warp = lane < kSelectWarps;
    const int32_t own_higher = has_warp ? shared->warp_higher[lane] : 0;
    const int32_t own_equal = has_warp ? shared->warp_equal[lane] : 0;
    const int32_t all_higher = ScanWarp(own_higher);
    const int32_t all_equal = ScanWarp(own_equal);
    if (has_warp) {
      shared->warp_higher[lane] = all_higher - own_higher;
      shared->warp_equal[lane] = all_equal - own_equal;
    }
    if (lane == kWarpSize - 1) {
      shared->num_higher = all_higher;
      shared->num_equal = all_equal;
    }
  }
}

// Lists this warp's positions of the set in ascending order, given how many keys above and at the
// threshold lie before the warp's. `selected`: the set's positions from number `first` on.
__device__ inline void ListSelected(const SetRange& range, const SetScores& scores,
                                    const Threshold& threshold, int32_t higher_before,
                                    int32_t equal_before, const uint32_t* keys, int32_t first,
                                    int32_t* selected) {
  VisitKeys(range, scores, keys, threshold.key, [&](int32_t position, const uint4& four) {
    const uint32_t each[4] = {four.x, four.y, four.z, four.w};
    int32_t higher = 0;
    int32_t equal = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool is_mine = position + j < range.end;
      higher += is_mine && each[j] > threshold.key ? 1 : 0;
      equal += is_mine && each[j] == threshold.key ? 1 : 0;
    }
    // Both counts in one scan; a warp has 128 keys.
    constexpr int32_t kHigh = 1 << 16;
    const int32_t up_to = ScanWarp(higher * kHigh + equal);
    int32_t higher_rank = higher_before + up_to / kHigh - higher;
    int32_t equal_rank = equal_before + up_to % kHigh - equal;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (position + j >= range.end || each[j] < threshold.key) continue;
      const bool is_equal = each[j] == threshold.key;
      if (!is_equal || equal_rank < threshold.num_equal) {
        selected[higher_rank + min(equal_rank, threshold.num_equal) - first] = position + j;
      }
      higher_rank += is_equal ? 0 : 1;
      equal_rank += is_equal ? 1 : 0;
    }
    const int32_t all = __shfl_sync(kFullWarp, up_to, kWarpSize - 1);
    higher_before += all / kHigh;
    equal_before += all % kHigh;
  });
}

// Tokens of the scores of the kSelect chunks before `index` of the launch; by each warp.
template <typename T>
__device__ int64_t FirstScoreToken(const Arguments<T>& arguments, int32_t index) {
  int32_t num_blocks = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x) % kWarpSize; i < index; i += kWarpSize) {
    const DeviceChunk& chunk = arguments.step.chunks[arguments.first_chunk + i];
    if (arguments.Selects(chunk)) num_blocks += NumBlocks(chunk);
  }
  return int64_t{__reduce_add_sync(kFullWarp, num_blocks)} * kBlockSize;
}

__device__ inline int32_t NumSets(SelectionScope scope, int32_t num_query_heads,
                                  int32_t num_kv_heads) {
  return scope == SelectionScope::kQueryHead ? num_query_heads
         : scope == SelectionScope::kKvHead  ? num_kv_heads
                                             : 1;
}

// A cluster for each (chunk, set): blockIdx is (rank, set, chunk of the launch).
template <typename T>
__global__ void __launch_bounds__(kSelectThreads, 1)
    SelectKernel(const __grid_constant__ Arguments<T> arguments) {
  auto* shared = reinterpret_cast<SelectShared*>(DynamicSharedMemory());
  LetNextKernelStart();
  WaitForPreviousKernels();
  const int32_t set = static_cast<int32_t>(blockIdx.y);
  const int32_t index = static_cast<int32_t>(blockIdx.z);
  const DeviceChunk chunk = arguments.LoadChunk(index);
  const int32_t chunk_index = arguments.first_chunk + index;
  const int32_t num_heads = arguments.num_query_heads;
  const int32_t num_sets = NumSets(chunk.scope, num_heads, arguments.cache.num_kv_heads);
  if (!arguments.Serves(chunk, index, AttentionKind::kSelect, set, num_sets)) return;
  const DecodeAttentionWorkspace& workspace = arguments.workspace;
  const int32_t budget = min(chunk.token_budget, chunk.num_context_tokens);
  if (budget > workspace.max_token_budget || num_sets > arguments.max_sets) __trap();

  const int32_t first_head = set * (num_heads / num_sets);
  const int32_t pitch = NumBlocks(chunk) * kBlockSize;
  const SetScores scores = {workspace.scores + FirstScoreToken(arguments, index) * num_heads +
                                int64_t{first_head} * pitch,
                            pitch, num_heads / num_sets, chunk.scope,
                            workspace.softmax + int64_t{chunk_index} * num_heads + first_head};
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const SetRange range(chunk, warp);
  const Threshold threshold = FindThreshold(range, scores, budget, shared);
  CountSelected(range, scores, threshold, shared);
  __syncwarp();
  ClusterSync();
  // In the blocks before this one.
  int32_t higher_before = 0;
  int32_t equal_before = 0;
  for (int32_t rank = 0; rank < ClusterRank(); ++rank) {
    const SelectShared* other = InClusterBlock(rank, shared);
    higher_before += other->num_higher;
    equal_before += other->num_equal;
  }
  ClusterArrive();  // no block ends while others read its shared memory
  const int32_t first = higher_before + min(equal_before, threshold.num_equal);
  const int32_t last = higher_before + shared->num_higher +
                       min(equal_before + shared->num_equal, threshold.num_equal);
  ListSelected(range, scores, threshold, higher_before + shared->warp_higher[warp],
               equal_before + shared->warp_equal[warp], shared->keys(), first, shared->selected());
  __syncthreads();
  const StepView& step = arguments.step;
  const int32_t* block_table =
      step.block_tables + int64_t{chunk.sampler_slot} * step.block_table_stride;
  const int64_t row = (int64_t{chunk_index} * num_heads + set) * workspace.max_token_budget;
  for (int32_t i = first + static_cast<int32_t>(threadIdx.x); i < last; i += kSelectThreads) {
    const int32_t position = shared->selected()[i - first];
    workspace.positions[row + i] = position;
    workspace.cache_rows[row + i] =
        block_table[position / kBlockSize] * kBlockSize + position % kBlockSize;
  }
  __syncwarp();
  ClusterWait();
}

}  // namespace tidal::cuda::decode
