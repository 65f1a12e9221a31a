// What the sampler's kernel is made of: passes of a team of blocks over one row of logits, and the
// search for the token at which top_k or top_p ends.
#pragma once

#include <cstdint>

#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::sampling {

inline constexpr int32_t kNumThreads = 512;
inline constexpr int32_t kNumWarps = kNumThreads / kWarpSize;

// The largest cluster that every sm_90 device can launch.
inline constexpr int32_t kMaxTeamSize = 8;

// Tokens that a thread takes at once, and how many such groups it loads before it uses them.
inline constexpr int32_t kGroupTokens = 4;
inline constexpr int32_t kGroupsInFlight = 4;

// A rank orders tokens, the most probable highest: 32 bits of the logit above 18 bits of the id,
// lower ids higher.
inline constexpr int32_t kIdBits = 18;
inline constexpr uint32_t kIdMask = (1u << kIdBits) - 1;

// The search looks at ranks in digits of 10 bits, after a first digit that is no part of the rank:
// the distance to the highest logit, in 32nds, up to 32.
inline constexpr int32_t kDigitBits = 10;
inline constexpr int32_t kNumBins = 1 << kDigitBits;
inline constexpr int32_t kNumRankDigits = (32 + kIdBits) / kDigitBits;
inline constexpr float kBinsPerUnit = 32.0f;

// Tokens that the search compares with each other.
inline constexpr int32_t kMaxCandidates = 512;

// Probabilities relative to the highest are fixed-point numbers of 40 bits behind the point; 2^18
// of them cannot overflow 64 bits.
inline constexpr float kMassOne = 0x1p40f;

static_assert((32 + kIdBits) % kDigitBits == 0);
static_assert(kNumBins % kNumThreads == 0 && kNumBins % kMaxTeamSize == 0);
static_assert(kMaxCandidates == kNumThreads);

// A block's shared memory.
struct Shared {
  uint32_t counts[kNumBins];  // of this block's tokens
  uint32_t mass_low[kNumBins];
  uint32_t mass_high[kNumBins];
  uint32_t team_counts[kNumBins];  // of all the team's tokens, in the bins that this block sums up
  uint64_t team_mass[kNumBins];
  uint64_t candidates[kMaxCandidates];      // the leader's are used
  uint64_t candidate_mass[kMaxCandidates];  // the same
  uint32_t num_candidates;                  // the same
  uint64_t threshold;                       // the same
  uint64_t warp_values[kNumWarps];
  uint64_t reduced[2];  // this block's part of a reduction over the team, alternating
  double reduced_sum;
  int32_t found_bin;
  uint32_t found_count;
  uint64_t found_before;
};

// A block's share of the vocabulary.
struct Slice {
  int32_t begin;  // a multiple of kGroupTokens
  int32_t end;
  bool vectorized;  // rows are aligned to 16 bytes, and the length is a multiple of kGroupTokens
};

// The bits of a logit as an integer in the order of logits; both zeros are one.
__device__ inline uint32_t OrderedBits(float logit) {
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline uint64_t RankOf(float logit, int32_t id) {
  return (uint64_t{OrderedBits(logit)} << kIdBits) | (kIdMask - static_cast<uint32_t>(id));
}

__device__ inline int32_t IdOf(uint64_t rank) {
  return static_cast<int32_t>(kIdMask - (static_cast<uint32_t>(rank) & kIdMask));
}

__device__ inline float LogitOf(uint64_t rank) {
  const uint32_t bits = static_cast<uint32_t>(rank >> kIdBits);
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7FFFFFFFu : ~bits);
}

__device__ inline uint64_t MassOf(float logit, float max) {
  return static_cast<uint64_t>(__float2ull_rn(expf(logit - max) * kMassOne));
}

// Calls visit(id, value of the row) for each token of the slice, in this thread or another.
template <typename Visit>
__device__ void VisitSlice(const float* row, const Slice& slice, const Visit& visit) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  if (!slice.vectorized) {
    for (int32_t id = slice.begin + thread; id < slice.end; id += kNumThreads) visit(id, row[id]);
    return;
  }
  const float4* groups = reinterpret_cast<const float4*>(row);
  const int32_t end = slice.end / kGroupTokens;
  for (int32_t first = slice.begin / kGroupTokens + thread; first < end;
       first += kNumThreads * kGroupsInFlight) {
    float4 values[kGroupsInFlight];
#pragma unroll
    for (int32_t i = 0; i < kGroupsInFlight; ++i) {
      if (first + i * kNumThreads < end) values[i] = groups[first + i * kNumThreads];
    }
#pragma unroll
    for (int32_t i = 0; i < kGroupsInFlight; ++i) {
      const int32_t id = (first + i * kNumThreads) * kGroupTokens;
      if (id >= slice.end) continue;
      visit(id, values[i].x);
      visit(id | 1, values[i].y);
      visit(id | 2, values[i].z);
      visit(id | 3, values[i].w);
    }
  }
}

struct Max {
  template <typename Value>
  __device__ Value operator()(Value a, Value b) const {
    return a > b ? a : b;
  }
};
struct Sum {
  template <typename Value>
  __device__ Value operator()(Value a, Value b) const {
    return a + b;
  }
};

// All threads' values combined, valid in warp 0. Always in the same order.
template <typename Value, typename Combine>
__device__ Value ReduceInBlock(Value value, Value* warp_values, const Combine& combine) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kFullWarp, value, offset));
  }
  __syncthreads();  // warp_values may still be read
  if (thread % kWarpSize == 0) warp_values[thread / kWarpSize] = value;
  __syncthreads();
  if (thread < kWarpSize) {
    value = warp_values[thread % kNumWarps];
    for (int32_t offset = kNumWarps / 2; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(kFullWarp, value, offset));
    }
  }
  return value;
}

// A team at work on one row. All its threads call every member alike.
class RowTeam {
 public:
  __device__ explicit RowTeam(Shared* shared) : shared_(shared) {}

  __device__ bool is_leader() const { return ClusterRank() == 0; }

  // Combined over all the team's threads, valid in all of them.
  template <typename Combine>
  __device__ uint64_t Reduce(uint64_t value, const Combine& combine) {
    uint64_t* reduced = &shared_->reduced[parity_];
    parity_ ^= 1;  // others may still read the last reduction
    value = ReduceInBlock(value, shared_->warp_values, combine);
    if (threadIdx.x == 0) *reduced = value;
    ClusterSync();
    value = *InClusterBlock(0, reduced);
    for (int32_t other = 1; other < ClusterSize(); ++other) {
      value = combine(value, *InClusterBlock(other, reduced));
    }
    return value;
  }

  __device__ double ReduceSum(double value) {
    value = ReduceInBlock(value, reinterpret_cast<double*>(shared_->warp_values), Sum{});
    if (threadIdx.x == 0) shared_->reduced_sum = value;
    ClusterSync();
    value = 0.0;
    for (int32_t other = 0; other < ClusterSize(); ++other) {
      value += *InClusterBlock(other, &shared_->reduced_sum);
    }
    ClusterSync();
    return value;
  }

  // The rank at which the sum of `wanted` is reached, where tokens of at least the rank `floor` are
  // taken from the most probable on. Each counts for one, or, `by_mass`, for its MassOf. At least
  // `wanted` > 0 must be there. `max` is the row's highest logit.
  __device__ uint64_t FindThreshold(const float* row, const Slice& slice, float max, uint64_t floor,
                                    bool by_mass, uint64_t wanted) {
    if (threadIdx.x == 0) shared_->num_candidates = 0;
    Search search = {.max = max, .floor = floor, .by_mass = by_mass, .wanted = wanted};
    uint32_t count = 0;
    do {
      CountDigits(row, slice, search);
      count = NarrowDown(&search);
    } while (count > kMaxCandidates);
    Gather(row, slice, search);
    ClusterSync();
    if (is_leader()) Resolve(search);
    ClusterSync();
    return *InClusterBlock(0, &shared_->threshold);
  }

  // Leaves the ranks of all tokens of at least the rank `floor`, at most kMaxCandidates, in the
  // leader's `candidates`, in no order.
  __device__ void Collect(const float* row, const Slice& slice, uint64_t floor) {
    if (threadIdx.x == 0) shared_->num_candidates = 0;
    ClusterSync();
    Gather(row, slice, {.max = 0.0f, .floor = floor});
    ClusterSync();
  }

 private:
  // The tokens that may yet be the threshold: those of a first bin and of a beginning of ranks.
  struct Search {
    float max;
    uint64_t floor;
    bool by_mass = false;
    uint64_t wanted = 0;     // less what lies above
    int32_t num_digits = 0;  // known, the first bin among them
    int32_t first_bin = 0;
    uint64_t prefix = 0;  // the known digits of the rank

    // Descending distance from the maximum makes bins ascend with falling logits.
    __device__ int32_t FirstBin(float logit) const {
      return static_cast<int32_t>(
          fminf((max - logit) * kBinsPerUnit, static_cast<float>(kNumBins - 1)));
    }
    __device__ int32_t Shift(int32_t rank_digits) const {
      return (kNumRankDigits - rank_digits) * kDigitBits;
    }
    __device__ bool Holds(float logit, uint64_t rank) const {
      if (rank < floor) return false;
      if (num_digits == 0) return true;
      return FirstBin(logit) == first_bin && (rank >> Shift(num_digits - 1)) == prefix;
    }
    // The bin of the next digit; most probable tokens first.
    __device__ int32_t Bin(float logit, uint64_t rank) const {
      if (num_digits == 0) return FirstBin(logit);
      return kNumBins - 1 - static_cast<int32_t>((rank >> Shift(num_digits)) & (kNumBins - 1));
    }
    __device__ void Take(int32_t bin) {
      if (num_digits == 0) {
        first_bin = bin;
      } else {
        prefix = (prefix << kDigitBits) | static_cast<uint64_t>(kNumBins - 1 - bin);
      }
      ++num_digits;
    }
  };

  // Fills counts and mass of this block's tokens.
  __device__ void CountDigits(const float* row, const Slice& slice, const Search& search) {
    for (int32_t bin = threadIdx.x; bin < kNumBins; bin += kNumThreads) {
      shared_->counts[bin] = 0;
      shared_->mass_low[bin] = 0;
      shared_->mass_high[bin] = 0;
    }
    __syncthreads();
    VisitSlice(row, slice, [&](int32_t id, float logit) {
      const uint64_t rank = RankOf(logit, id);
      if (!search.Holds(logit, rank)) return;
      const uint64_t mass = search.by_mass ? MassOf(logit, search.max) : 0;
      if (search.by_mass && mass == 0) return;  // no sum is reached there
      const int32_t bin = search.Bin(logit, rank);
      atomicAdd(&shared_->counts[bin], 1u);
      if (!search.by_mass) return;
      const uint32_t low = static_cast<uint32_t>(mass);
      const uint32_t before = atomicAdd(&shared_->mass_low[bin], low);
      const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1u : 0u);
      if (high > 0) atomicAdd(&shared_->mass_high[bin], high);
    });
  }

  // Sums up the team's bins, and takes the one in which the sum is reached. Returns its count.
  __device__ uint32_t NarrowDown(Search* search) {
    ClusterSync();
    const int32_t bins_per_block = kNumBins / ClusterSize();
    const int32_t first = ClusterRank() * bins_per_block;
    for (int32_t bin = first + threadIdx.x; bin < first + bins_per_block; bin += kNumThreads) {
      uint32_t count = 0;
      uint64_t mass = 0;
      for (int32_t other = 0; other < ClusterSize(); ++other) {
        const Shared& theirs = *InClusterBlock(other, shared_);
        count += theirs.counts[bin];
        mass += (uint64_t{theirs.mass_high[bin]} << 32) + theirs.mass_low[bin];
      }
      shared_->team_counts[bin] = count;
      shared_->team_mass[bin] = search->by_mass ? mass : count;
    }
    ClusterSync();
    FindBin(search->wanted, bins_per_block);
    const uint32_t count = shared_->found_count;
    search->wanted -= shared_->found_before;
    search->Take(shared_->found_bin);
    return count;
  }

  // Sets found_*: the bin in which the running sum of team_mass reaches `wanted`.
  __device__ void FindBin(uint64_t wanted, int32_t bins_per_block) {
    constexpr int32_t kBinsPerThread = kNumBins / kNumThreads;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    const int32_t lane = thread % kWarpSize;
    uint64_t values[kBinsPerThread];
    uint64_t sum = 0;
    for (int32_t i = 0; i < kBinsPerThread; ++i) {
      const int32_t bin = thread * kBinsPerThread + i;
      values[i] = *InClusterBlock(bin / bins_per_block, &shared_->team_mass[bin]);
      sum += values[i];
    }
    uint64_t running = sum;
    for (int32_t offset = 1; offset < kWarpSize; offset *= 2) {
      const uint64_t lower = __shfl_up_sync(kFullWarp, running, offset);
      if (lane >= offset) running += lower;
    }
    if (lane == kWarpSize - 1) shared_->warp_values[thread / kWarpSize] = running;
    __syncthreads();
    uint64_t before = running - sum;
    for (int32_t warp = 0; warp < thread / kWarpSize; ++warp) {
      before += shared_->warp_values[warp];
    }
    for (int32_t i = 0; i < kBinsPerThread; ++i) {
      const int32_t bin = thread * kBinsPerThread + i;
      if (before < wanted && wanted <= before + values[i]) {
        shared_->found_bin = bin;
        shared_->found_count = *InClusterBlock(bin / bins_per_block, &shared_->team_counts[bin]);
        shared_->found_before = before;
      }
      before += values[i];
    }
    __syncthreads();
  }

  // Collects the tokens left, at most kMaxCandidates, in the leader's shared memory.
  __device__ void Gather(const float* row, const Slice& slice, const Search& search) {
    Shared* leader = InClusterBlock(0, shared_);
    VisitSlice(row, slice, [&](int32_t id, float logit) {
      const uint64_t rank = RankOf(logit, id);
      if (!search.Holds(logit, rank)) return;
      if (search.by_mass && MassOf(logit, search.max) == 0) return;
      leader->candidates[atomicAdd(&leader->num_candidates, 1u)] = rank;
    });
  }

  // Compares all candidates with each other: by the leader, a candidate a thread.
  __device__ void Resolve(const Search& search) {
    const uint32_t num_candidates = shared_->num_candidates;
    const uint32_t own = threadIdx.x;
    if (own < num_candidates) {
      shared_->candidate_mass[own] =
          search.by_mass ? MassOf(LogitOf(shared_->candidates[own]), search.max) : 1;
    }
    __syncthreads();
    if (own >= num_candidates) return;
    const uint64_t rank = shared_->candidates[own];
    uint64_t before = 0;
    for (uint32_t other = 0; other < num_candidates; ++other) {
      if (shared_->candidates[other] > rank) before += shared_->candidate_mass[other];
    }
    if (before < search.wanted && search.wanted <= before + shared_->candidate_mass[own]) {
      shared_->threshold = rank;
    }
  }

  Shared* shared_;
  int32_t parity_ = 0;
};

}  // namespace tidal::cuda::sampling
