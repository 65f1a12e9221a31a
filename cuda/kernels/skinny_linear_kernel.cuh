// The one kernel behind all products of skinny_linear.h. A Product says where its input rows are
// (kNormalizes: float32 rows to be normalised; else rows of T) and what becomes of a pair of
// neighbouring outputs:
//   using Element; struct Prefetched; weight;
//   kHoldsNextBack: the kernel behind starts only when the ones in front have ended
//   (kNormalizes only)
//   InputRow(row): index of the input row, or -1 where there is none (kNormalizes only)
//   Prefetch(output, row): what Store needs and can be loaded before the sums are there
//   Store(prefetched, output, row, first, second): outputs `output` (even) and `output` + 1
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/skinny_linear.h"
#include "cuda/kernels/weight_ring.cuh"

namespace tidal::cuda::skinny {

inline constexpr int kNumWarps = 8;  // that multiply
inline constexpr int kNumMultipliers = kNumWarps * kWarpSize;
inline constexpr int kNumThreads = kNumMultipliers + kWarpSize;  // one more warp fills the ring
inline constexpr int kBlocksPerMultiprocessor = 2;

// Inputs go by units of 32: 4 lanes (the mma's "thread in group") of 16 bytes each, two steps of
// k = 16. The order of k within a unit is the lanes' own, the same for weights and inputs.
inline constexpr int kUnit = 32;
inline constexpr int kLaneElements = 8;
inline constexpr int kMaxSlice = 16 * kUnit;  // of a warp, in one phase
inline constexpr int kMaxPhaseInputs = kMaxSlice * kNumWarps;
static_assert(kMaxPhaseInputs >= kMaxNormalizedInputs);

// Rows of W in a tile: few, since a tile of whole rows is what reads fastest, and some tiles must
// fit in the ring.
inline constexpr int kTileRows = 4;

// A tile's rows alone would leave most of an mma's A empty. So a warp's slice falls into kSplit
// strips, unit by unit in turn. A's rows are rows of the tile by strips: its row i is of strip
// i % kSplit of row i / kSplit. B's columns are input rows by strips in the same way, and a sum
// counts where both are of the same strip. The fewer input rows, the fewer products a tile takes.
template <int kSplit>
struct Strips {
  static_assert(kSplit == 2 || kSplit == 4 || kSplit == 8);
  static constexpr int kInputRows = 8 / kSplit;
  // Units of a strip at most.
  static constexpr int kUnits = kMaxSlice / kUnit / kSplit;
  // Rows of the tile in one A, and A's that a tile takes.
  static constexpr int kRows = kSplit == 8 ? 2 : kTileRows;
  static constexpr int kNumSets = kTileRows / kRows;
  // Halves of A, of 8 rows each, that have something in them; and rows of the tile in each.
  static constexpr int kHalves = kSplit * kRows / 8;
  static constexpr int kHalfRows = 8 / kSplit;
};

// Strips for so many input rows.
inline constexpr int SplitOf(int32_t num_rows) { return num_rows == 1 ? 8 : num_rows == 2 ? 4 : 2; }
static_assert(kMaxSkinnyRows <= Strips<SplitOf(kMaxSkinnyRows)>::kInputRows);

// Tiles, and rows of W, between two meetings of the warps.
inline constexpr int kGroupTiles = 8;
inline constexpr int kGroupRows = kGroupTiles * kTileRows;
// Floats from one input row's partial sums to the next's; free of bank conflicts for the writes.
inline constexpr int kPartialPitch = kGroupRows + 4;

// A thread for each pair of outputs of a group and input row.
inline constexpr int kGroupPairs = kGroupRows / 2;
inline constexpr int kNumStoreThreads = kGroupPairs * kMaxSkinnyRows;
static_assert(kNumStoreThreads <= kNumMultipliers);

// Behind the ring and the exchange: the warps' sums of squares, what each slot holds, barriers.
inline constexpr uint32_t kFixedSharedBytes =
    kNumWarps * sizeof(float) + kMaxRingSlots * sizeof(int32_t) + kRingBarrierBytes;

// How a product is cut; made by the host.
struct Cut {
  int32_t num_rows;    // of the input
  int32_t inputs;      // W's columns
  int32_t outputs;     // W's rows
  int32_t num_tiles;   // of W's rows
  int32_t num_phases;  // passes over the inputs for a group of tiles
  int32_t slice;       // inputs of one warp in one phase
  int32_t split;       // strips of a slice
  int32_t num_slots;
  uint32_t slot_bytes;
  uint32_t row_pitch;       // bytes between a tile's rows in a slot
  uint32_t exchange_bytes;  // the warps' partial sums, or one normalised row
  float rms_norm_eps;
};

inline Cut MakeCut(int32_t num_rows, int32_t inputs, int32_t outputs, int32_t shared_bytes) {
  const auto divide_up = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  Cut cut = {};
  cut.num_rows = num_rows;
  cut.inputs = inputs;
  cut.outputs = outputs;
  cut.num_tiles = divide_up(outputs, kTileRows);
  cut.num_phases = divide_up(inputs, kMaxPhaseInputs);
  cut.split = SplitOf(num_rows);
  const int32_t step = cut.split * kUnit;
  cut.slice = divide_up(inputs, cut.num_phases * kNumWarps * step) * step;
  // Nothing between the rows: copies that begin inside of 128 bytes take much longer.
  cut.row_pitch = static_cast<uint32_t>(std::min(inputs, cut.slice * kNumWarps)) * 2;
  const uint32_t partial_bytes = kNumWarps * num_rows * kPartialPitch * sizeof(float);
  const uint32_t row_bytes = kMaxNormalizedInputs * 2;
  cut.exchange_bytes = partial_bytes > row_bytes ? partial_bytes : row_bytes;
  const int32_t ring_bytes = shared_bytes - static_cast<int32_t>(cut.exchange_bytes) -
                             static_cast<int32_t>(kFixedSharedBytes);
  cut.slot_bytes = cut.row_pitch * kTileRows;
  const int32_t fitting = ring_bytes / static_cast<int32_t>(cut.slot_bytes);
  cut.num_slots = fitting < kMaxRingSlots ? fitting : kMaxRingSlots;
  return cut;
}

inline uint32_t SharedBytes(const Cut& cut) {
  return cut.num_slots * cut.slot_bytes + cut.exchange_bytes + kFixedSharedBytes;
}

// Some neighbouring inputs.
struct Slice {
  int32_t first;
  int32_t size;  // maybe 0
};

__device__ inline Slice PhaseInputs(const Cut& cut, int32_t phase) {
  const int32_t phase_inputs = kNumWarps * cut.slice;
  const int32_t first = phase * phase_inputs;
  return {first, max(0, min(phase_inputs, cut.inputs - first))};
}

__device__ inline Slice WarpSlice(const Cut& cut, int32_t phase, int32_t warp) {
  const int32_t first = (phase * kNumWarps + warp) * cut.slice;
  return {first, max(0, min(cut.slice, cut.inputs - first))};
}

// What a slot holds, as the filling warp tells the others.
struct Tile {
  int32_t row;  // of W, its first one
  int32_t num_rows;
  bool is_last;  // of the block, in its phase

  __device__ int32_t Pack() const { return row << 4 | num_rows << 1 | (is_last ? 1 : 0); }
  __device__ static Tile Unpack(int32_t word) {
    return {word >> 4, word >> 1 & 7, (word & 1) != 0};
  }
};

// Hands a product's tiles out to the blocks: the first ones of each are fixed, the others go to
// whoever comes first, since the memory does not serve all multiprocessors alike. A tile is drawn
// well before it is taken, so that nobody waits for the counter.
class TileQueue {
 public:
  // `counters`: [2], zero before and after the product.
  __device__ TileQueue(const Cut& cut, uint32_t* counters)
      : counters_(counters),
        num_fixed_left_((cut.num_slots + cut.num_phases - 1) / cut.num_phases + 1) {
    next_fixed_ = static_cast<int32_t>(blockIdx.x);
    first_drawn_ = static_cast<int32_t>(gridDim.x) * num_fixed_left_;
    next_ = Draw();
    after_next_ = Draw();
  }

  // The number of a tile; at or above cut.num_tiles if there are no more. By a whole warp.
  __device__ int32_t Take() {
    const int32_t tile = __shfl_sync(kFullWarp, next_, 0);
    next_ = after_next_;
    after_next_ = Draw();
    return tile;
  }

  // After the last Take. The last block to come here leaves the counters as it found them.
  __device__ void Finish() {
    // What has been drawn has been counted.
    static_cast<void>(__shfl_sync(kFullWarp, next_ + after_next_, 0));
    if (threadIdx.x % kWarpSize != 0) return;
    const uint32_t last = gridDim.x - 1;
    if (atomicInc(counters_ + 1, last) == last) atomicExch(counters_, 0u);
  }

 private:
  __device__ int32_t Draw() {
    if (num_fixed_left_ > 0) {
      --num_fixed_left_;
      const int32_t tile = next_fixed_;
      next_fixed_ += static_cast<int32_t>(gridDim.x);
      return tile;
    }
    if (threadIdx.x % kWarpSize != 0) return 0;
    return first_drawn_ + static_cast<int32_t>(FetchAndIncrement(counters_));
  }

  uint32_t* counters_;
  int32_t num_fixed_left_;
  int32_t next_fixed_;
  int32_t first_drawn_;
  int32_t next_;
  int32_t after_next_;
};

// The warp that fills the ring.
class WeightStream {
 public:
  // `tiles`: [num_slots], shared.
  __device__ WeightStream(const Cut& cut, const void* weight, const WeightRing& ring,
                          int32_t* tiles)
      : cut_(cut),
        weight_(static_cast<const char*>(weight)),
        ring_(ring),
        tiles_(tiles),
        policy_(EvictFirstPolicy()),
        slot_(ring.num_slots) {}

  // The tiles that the queue hands out, with all their phases.
  __device__ void LoadQueued(uint32_t* counters) {
    TileQueue queue(cut_, counters);
    int32_t tile = queue.Take();
    while (tile < cut_.num_tiles) {
      const int32_t next = queue.Take();
      for (int32_t phase = 0; phase < cut_.num_phases; ++phase) {
        Load(tile, phase, next >= cut_.num_tiles);
      }
      tile = next;
    }
    queue.Finish();
  }

  // The block's share of the tiles: groups of them, phases of a group, tiles of a phase.
  __device__ void LoadGroups() {
    const auto boundary = [&](int64_t block) {
      return static_cast<int32_t>(cut_.num_tiles * block / gridDim.x);
    };
    const int32_t end = boundary(int64_t{blockIdx.x} + 1);
    for (int32_t group = boundary(blockIdx.x); group < end; group += kGroupTiles) {
      const int32_t group_end = min(group + kGroupTiles, end);
      for (int32_t phase = 0; phase < cut_.num_phases; ++phase) {
        for (int32_t tile = group; tile < group_end; ++tile) Load(tile, phase, tile + 1 == end);
      }
    }
  }

 private:
  __device__ void Load(int32_t index, int32_t phase, bool is_last) {
    constexpr int64_t kElementBytes = 2;
    const int32_t row = index * kTileRows;
    const Tile tile = {row, min(kTileRows, cut_.outputs - row), is_last};
    const Slice inputs = PhaseInputs(cut_, phase);
    const int64_t row_bytes = cut_.inputs * kElementBytes;
    WaitForEmptySlot(ring_, slot_);
    if (threadIdx.x % kWarpSize == 0) tiles_[slot_.slot()] = tile.Pack();
    FillSlot(ring_, slot_.slot(), weight_ + row * row_bytes + inputs.first * kElementBytes,
             row_bytes, tile.num_rows, static_cast<uint32_t>(inputs.size * kElementBytes), policy_);
    slot_.Advance();
  }

  const Cut& cut_;
  const char* weight_;
  const WeightRing& ring_;
  int32_t* tiles_;
  uint64_t policy_;
  RingCursor slot_;
};

// A barrier of the warps that multiply.
__device__ inline void SyncMultipliers() { SyncNamedBarrier(1, kNumMultipliers); }

// The warp's inputs of one phase as B: column lane / 4, 8 elements of each unit of its strip.
template <int kSplit>
using LaneInputs = uint4[Strips<kSplit>::kUnits];

// A lane's part of a strip of a slice: 8 elements of each unit.
struct LaneStrip {
  int32_t first;  // the lane's first element in the slice
  int32_t limit;  // unit u is there where u * kSplit * kUnit is below it

  __device__ LaneStrip(int32_t slice_size, int strip, int lane)
      : first(strip * kUnit + lane % 4 * kLaneElements), limit(slice_size - first) {}
};

// The lane's place in B.
template <int kSplit>
struct InputColumn : LaneStrip {
  int row;  // input row

  __device__ InputColumn(const Cut& cut, const Slice& slice, int lane)
      : LaneStrip(slice.size, lane / 4 % kSplit, lane), row(lane / 4 / kSplit) {
    if (row >= cut.num_rows) limit = 0;
  }
};

// From rows of T in device memory.
template <int kSplit, typename T>
__device__ void LoadInputs(const Cut& cut, const T* input, const Slice& slice, int lane,
                           LaneInputs<kSplit>& x) {
  constexpr int32_t kStep = kSplit * kUnit;
  const InputColumn<kSplit> column(cut, slice, lane);
  const T* source = input + int64_t{column.row} * cut.inputs + slice.first + column.first;
#pragma unroll
  for (int unit = 0; unit < Strips<kSplit>::kUnits; ++unit) {
    x[unit] = unit * kStep < column.limit
                  ? __ldcg(reinterpret_cast<const uint4*>(source + unit * kStep))
                  : uint4{};
  }
}

// One row in float32, spread over the threads, 4 elements of each 4 * kNumMultipliers.
inline constexpr int kRowLoads = kMaxPhaseInputs / (4 * kNumMultipliers);
using RowPart = float4[kRowLoads];

template <typename Product>
__device__ void LoadRowPart(const Cut& cut, const Product& product, int32_t row, RowPart& part) {
  const int32_t input_row = product.InputRow(row);
  const float* source = product.hidden + int64_t{input_row} * cut.inputs;
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    const int32_t first = (i * kNumMultipliers + static_cast<int>(threadIdx.x)) * 4;
    part[i] = input_row >= 0 && first < cut.inputs
                  ? __ldcg(reinterpret_cast<const float4*>(source + first))
                  : float4{};
  }
}

// The norm's weights, in the order of RowPart. No kernel writes them.
template <typename Product>
__device__ void LoadNormPart(const Cut& cut, const Product& product, RowPart& part) {
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    const int32_t first = (i * kNumMultipliers + static_cast<int>(threadIdx.x)) * 4;
    part[i] = first < cut.inputs
                  ? __ldg(reinterpret_cast<const float4*>(product.norm_weight + first))
                  : float4{};
  }
}

// 1 / rms of the row whose parts the threads hold. `sums`: [kNumWarps], shared.
__device__ inline float InverseRms(const Cut& cut, const RowPart& part, float* sums) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    sum += part[i].x * part[i].x + part[i].y * part[i].y + part[i].z * part[i].z +
           part[i].w * part[i].w;
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  }
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = sum;
  SyncMultipliers();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kNumWarps; ++warp) total += sums[warp];
  return rsqrtf(total / static_cast<float>(cut.inputs) + cut.rms_norm_eps);
}

// RMSNorm of the input row whose parts the threads hold, into `exchange` (one row of T).
template <typename T>
__device__ void NormalizeRow(const Cut& cut, const RowPart& part, const RowPart& norm,
                             char* exchange, float* sums) {
  const float inverse_rms = InverseRms(cut, part, sums);
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    const int32_t first = (i * kNumMultipliers + static_cast<int>(threadIdx.x)) * 4;
    if (first >= cut.inputs) continue;
    uint2 packed;
    packed.x =
        PackPair(T(), part[i].x * inverse_rms * norm[i].x, part[i].y * inverse_rms * norm[i].y);
    packed.y =
        PackPair(T(), part[i].z * inverse_rms * norm[i].z, part[i].w * inverse_rms * norm[i].w);
    *reinterpret_cast<uint2*>(exchange + first * sizeof(T)) = packed;
  }
  SyncMultipliers();
}

// RMSNorm of the input rows, one after the other through `exchange`. `norm` is LoadNormPart's.
template <int kSplit, typename Product>
__device__ void LoadNormalizedInputs(const Cut& cut, const Product& product, const RowPart& norm,
                                     const Slice& slice, int lane, char* exchange, float* sums,
                                     LaneInputs<kSplit>& x) {
  using T = typename Product::Element;
  constexpr int32_t kStep = kSplit * kUnit;
  const InputColumn<kSplit> column(cut, slice, lane);
  const T* source = reinterpret_cast<const T*>(exchange) + slice.first + column.first;
  const auto take = [&](int32_t row) {
#pragma unroll
    for (int unit = 0; unit < Strips<kSplit>::kUnits; ++unit) {
      if (row == column.row && unit * kStep < column.limit) {
        x[unit] = *reinterpret_cast<const uint4*>(source + unit * kStep);
      } else if (row == 0) {
        x[unit] = uint4{};
      }
    }
  };
  RowPart next;
  LoadRowPart(cut, product, 0, next);
#pragma unroll 1
  for (int32_t row = 0; row < cut.num_rows; ++row) {
    RowPart part;
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) part[i] = next[i];
    if (row + 1 < cut.num_rows) LoadRowPart(cut, product, row + 1, next);
    NormalizeRow<T>(cut, part, norm, exchange, sums);
    take(row);
    SyncMultipliers();  // `exchange` is free
  }
}

// A warp's slice of a tile as A: of each set and unit the lane's 8 elements of A's row lane / 4,
// and of row lane / 4 + 8.
template <int kSplit>
struct LaneWeights {
  using Shape = Strips<kSplit>;

  uint4 a[Shape::kNumSets][Shape::kUnits][Shape::kHalves];

  // Rows that the tile lacks are what the slot held before: their sums are nobody's.
  __device__ void Load(const Cut& cut, const char* slice_of_tile, int32_t slice_size, int lane) {
    constexpr int32_t kElementBytes = 2;
    constexpr int32_t kStep = kSplit * kUnit;
    // Eight lanes of a load have neighbouring strips of one row: they touch all banks once.
    const LaneStrip strip(slice_size, lane / 4 % kSplit, lane);
    const char* source = slice_of_tile + strip.first * kElementBytes;
#pragma unroll
    for (int set = 0; set < Shape::kNumSets; ++set) {
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        const int row = set * Shape::kRows + half * Shape::kHalfRows + lane / 4 / kSplit;
#pragma unroll
        for (int unit = 0; unit < Shape::kUnits; ++unit) {
          a[set][unit][half] = unit * kStep < strip.limit
                                   ? *reinterpret_cast<const uint4*>(source + row * cut.row_pitch +
                                                                     unit * kStep * kElementBytes)
                                   : uint4{};
        }
      }
    }
  }
};

// A warp's sums of a tile, over phases: two chains of products hide half of their latency.
template <int kSplit>
class TileSums {
 public:
  using Shape = Strips<kSplit>;

  template <typename T>
  __device__ void Add(const LaneWeights<kSplit>& weights, const LaneInputs<kSplit>& x) {
#pragma unroll
    for (int unit = 0; unit < Shape::kUnits; ++unit) {
#pragma unroll
      for (int set = 0; set < Shape::kNumSets; ++set) {
        const uint4& a = weights.a[set][unit][0];
        uint4 b = {};
        if constexpr (Shape::kHalves == 2) b = weights.a[set][unit][1];
        // A set has its own chain, or the only one has both.
        const int second = Shape::kNumSets == 1 ? 1 : set;
        Mma16816<T>(sums_[set], {a.x, b.x, a.y, b.y}, {x[unit].x, x[unit].y});
        Mma16816<T>(sums_[second], {a.z, b.z, a.w, b.w}, {x[unit].z, x[unit].w});
      }
    }
  }

  // A sum of the tile in each lane; PlaceOf tells which.
  __device__ float Total(int lane) const {
    // Lane 4 group + pair has the columns 2 pair and 2 pair + 1 of A's row `group`, which is of
    // strip group % kSplit, and of row group + 8, which is of the same strip.
    const int strip = lane / 4 % kSplit;
    const bool counts = lane % 4 % (kSplit / 2) == strip / 2;
    const auto pick = [&](int set, int half) {
      const float(&sum)[4] = sums_[set];
      float value = strip % 2 == 0 ? sum[2 * half] : sum[2 * half + 1];
      if constexpr (Shape::kNumSets == 1) {
        value += strip % 2 == 0 ? sums_[1][2 * half] : sums_[1][2 * half + 1];
      }
      return counts ? value : 0.0f;
    };
    if constexpr (kSplit == 8) {
      // Rows 0 to 3 of the tile: each lane keeps half of its sums and gives the other half away.
      const bool upper = lane / 16 != 0;
      float first = Exchange(pick(0, 0), pick(1, 0), upper, 16);
      float second = Exchange(pick(0, 1), pick(1, 1), upper, 16);
      float total = Exchange(first, second, lane / 8 % 2 != 0, 8);
#pragma unroll
      for (int distance : {1, 2, 4}) total += __shfl_xor_sync(kFullWarp, total, distance);
      return total;
    } else if constexpr (kSplit == 4) {
      // Lane bit 4 is row bit 0; strips lie in bits 3, 2 and 0.
      float total = Exchange(pick(0, 0), pick(0, 1), lane / 8 % 2 != 0, 8);
#pragma unroll
      for (int distance : {1, 4}) total += __shfl_xor_sync(kFullWarp, total, distance);
      return total;
    } else {
      const float total = pick(0, 0);
      return total + __shfl_xor_sync(kFullWarp, total, 4);
    }
  }

  // What Total gives a lane.
  struct Place {
    int row;  // of the tile
    int input_row;
    bool is_first;  // of the lanes that have this sum
  };
  __device__ static Place PlaceOf(int lane) {
    if constexpr (kSplit == 8) return {lane / 16 * 2 + lane / 8 % 2, 0, (lane & 7) == 0};
    if constexpr (kSplit == 4) return {lane / 8 % 2 * 2 + lane / 16, lane % 4 / 2, (lane & 5) == 0};
    return {lane / 8, lane % 4, (lane & 4) == 0};
  }

 private:
  // The sum over this lane and lane ^ distance of `lower`, in the lower one, or of `upper`.
  __device__ static float Exchange(float lower, float upper, bool is_upper, int distance) {
    const float other = __shfl_xor_sync(kFullWarp, is_upper ? lower : upper, distance);
    return (is_upper ? upper : lower) + other;
  }

  float sums_[2][4] = {};
};

// The pair of outputs of an input row that a thread stores of each group.
template <typename Product>
class StoredPair {
 public:
  __device__ StoredPair() {
    // The last warps store: the first ones get the next group's weights first.
    const int index = static_cast<int>(threadIdx.x) - (kNumMultipliers - kNumStoreThreads);
    pair_ = index < 0 ? -1 : index % kGroupPairs;
    row_ = index / kGroupPairs;
  }

  // The group's tile `index` has come.
  __device__ void TakeTile(const Cut& cut, const Product& product, int index, const Tile& tile) {
    constexpr int kTilePairs = kTileRows / 2;
    const int row_of_tile = 2 * (pair_ - index * kTilePairs);
    if (row_of_tile < 0 || row_of_tile >= tile.num_rows || row_ >= cut.num_rows) return;
    output_ = tile.row + row_of_tile;
    prefetched_ = product.Prefetch(output_, row_);
  }

  // Adds the warps' partial sums of the group up, always in the same order, and stores the outputs.
  __device__ void Store(const Cut& cut, const Product& product, const float* partial) {
    SyncMultipliers();
    float2 sum = {};
    if (output_ >= 0) {
#pragma unroll
      for (int warp = 0; warp < kNumWarps; ++warp) {
        const float2 part = *reinterpret_cast<const float2*>(
            partial + (warp * cut.num_rows + row_) * kPartialPitch + 2 * pair_);
        sum.x += part.x;
        sum.y += part.y;
      }
    }
    SyncMultipliers();  // `partial` is free
    if (output_ >= 0) product.Store(prefetched_, output_, row_, sum.x, sum.y);
    output_ = -1;
  }

 private:
  int pair_;  // of a group; below 0: stores nothing
  int row_;
  int32_t output_ = -1;  // of the group at hand; below 0: none
  typename Product::Prefetched prefetched_;
};

// Whether blocks hold the inputs of all phases, so that tiles need not come in groups.
template <int kSplit, typename Product>
inline constexpr int kHeldPhases = kSplit == 8 && !Product::kNormalizes ? 4 : 1;

// The warps that multiply.
template <int kSplit, typename Product>
class Multiplier {
 public:
  using T = typename Product::Element;
  static constexpr int kNumHeld = kHeldPhases<kSplit, Product>;

  // `tiles`: what the slots hold.
  __device__ Multiplier(const Cut& cut, const Product& product, const WeightRing& ring,
                        const int32_t* tiles, const char* slots, char* exchange)
      : cut_(cut),
        product_(product),
        ring_(ring),
        tiles_(tiles),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        slots_(slots + warp_ * cut.slice * sizeof(T)),
        partial_(reinterpret_cast<float*>(exchange)),
        cursor_(ring.num_slots) {}

  // Waits for the previous kernels, and takes what they have written. `sums`: [kNumWarps], shared.
  __device__ void TakeInputs(char* exchange, float* sums) {
    if constexpr (Product::kNormalizes) {
      RowPart norm;
      LoadNormPart(cut_, product_, norm);
      WaitForPreviousKernels();
      if constexpr (Product::kHoldsNextBack) LetNextKernelStart();
      LoadNormalizedInputs<kSplit>(cut_, product_, norm, WarpSlice(cut_, 0, warp_), lane_, exchange,
                                   sums, x_[0]);
    } else {
      WaitForPreviousKernels();
#pragma unroll
      for (int phase = 0; phase < kNumHeld; ++phase) TakePhase(phase, x_[phase]);
    }
  }

  // Tiles with all their phases.
  __device__ void MultiplyTiles() {
    bool is_last = false;
    while (!is_last) {
      for (int index = 0; index < kGroupTiles && !is_last; ++index) {
        TileSums<kSplit> sums;
        Tile tile;
#pragma unroll
        for (int phase = 0; phase < kNumHeld; ++phase) {
          if (phase >= cut_.num_phases) break;
          tile = Multiply(phase, x_[phase], &sums);
        }
        EndTile(tile, index, /*is_first_phase=*/true, sums);
        stored_.TakeTile(cut_, product_, index, tile);
        is_last = tile.is_last;
      }
      stored_.Store(cut_, product_, partial_);
    }
  }

  // Groups of tiles, phase by phase.
  __device__ void MultiplyGroups() {
    bool is_last = false;
    for (bool is_first_group = true; !is_last; is_first_group = false) {
      for (int phase = 0; phase < cut_.num_phases; ++phase) {
        if constexpr (!Product::kNormalizes) {
          const bool is_held = phase == 0 && is_first_group;
          if (cut_.num_phases > 1 && !is_held) TakePhase(phase, x_[0]);
        }
        for (int index = 0; index < kGroupTiles; ++index) {
          TileSums<kSplit> sums;
          const Tile tile = Multiply(phase, x_[0], &sums);
          EndTile(tile, index, phase == 0, sums);
          if (phase == 0) stored_.TakeTile(cut_, product_, index, tile);
          is_last = tile.is_last;
          if (is_last) break;
        }
      }
      stored_.Store(cut_, product_, partial_);
    }
  }

 private:
  __device__ void TakePhase(int phase, LaneInputs<kSplit>& x) {
    if constexpr (!Product::kNormalizes) {
      LoadInputs<kSplit>(cut_, product_.input, WarpSlice(cut_, phase, warp_), lane_, x);
    }
  }

  // Multiplies what the next slot holds.
  __device__ Tile Multiply(int phase, const LaneInputs<kSplit>& x, TileSums<kSplit>* sums) {
    WaitForFullSlot(ring_, cursor_);
    const Tile tile = Tile::Unpack(tiles_[cursor_.slot()]);
    LaneWeights<kSplit> weights;
    weights.Load(cut_, slots_ + cursor_.slot() * ring_.slot_bytes,
                 WarpSlice(cut_, phase, warp_).size, lane_);
    // The sooner the slot is free, the more is in flight.
    ReleaseSlot(ring_, cursor_);
    cursor_.Advance();
    sums->template Add<T>(weights, x);
    return tile;
  }

  // Adds the warp's sums to its own partial [num_rows][kPartialPitch].
  __device__ void EndTile(const Tile& tile, int index, bool is_first_phase,
                          const TileSums<kSplit>& sums) {
    const float total = sums.Total(lane_);
    const auto [row, input_row, is_first] = TileSums<kSplit>::PlaceOf(lane_);
    if (!is_first || row >= tile.num_rows || input_row >= cut_.num_rows) return;
    float* target =
        partial_ + (warp_ * cut_.num_rows + input_row) * kPartialPitch + index * kTileRows + row;
    *target = is_first_phase ? total : *target + total;
  }

  const Cut& cut_;
  const Product& product_;
  const WeightRing& ring_;
  const int32_t* tiles_;
  const int warp_;
  const int lane_;
  const char* slots_;  // the warp's slice of the first one
  float* partial_;     // [kNumWarps][num_rows][kPartialPitch]
  RingCursor cursor_;
  StoredPair<Product> stored_;
  LaneInputs<kSplit> x_[kNumHeld];
};

template <int kSplit, typename Product>
__global__ void __launch_bounds__(kNumThreads, kBlocksPerMultiprocessor)
    SkinnyLinearKernel(const __grid_constant__ Product product, const __grid_constant__ Cut cut,
                       uint32_t* counters) {
  char* shared = DynamicSharedMemory();
  if constexpr (!Product::kHoldsNextBack) LetNextKernelStart();
  char* exchange = shared + cut.num_slots * cut.slot_bytes;
  float* sums = reinterpret_cast<float*>(exchange + cut.exchange_bytes);
  int32_t* tiles = reinterpret_cast<int32_t*>(sums + kNumWarps);
  const WeightRing ring = {SharedAddress(shared), cut.slot_bytes, cut.row_pitch,
                           SharedAddress(tiles + kMaxRingSlots), cut.num_slots};
  if (threadIdx.x == 0) ring.Init(kNumWarps);
  __syncthreads();
  const bool is_queued = counters != nullptr && cut.num_phases <= kHeldPhases<kSplit, Product>;
  if (threadIdx.x < kNumMultipliers) {
    Multiplier<kSplit, Product> multiplier(cut, product, ring, tiles, shared, exchange);
    multiplier.TakeInputs(exchange, sums);
    if (is_queued) {
      multiplier.MultiplyTiles();
    } else {
      multiplier.MultiplyGroups();
    }
    return;
  }
  WeightStream stream(cut, product.weight, ring, tiles);
  if (is_queued) {
    stream.LoadQueued(counters);
  } else {
    stream.LoadGroups();
  }
}

}  // namespace tidal::cuda::skinny
