// The one kernel behind all products of skinny_linear.h. A Product says where its input rows are
// (kNormalizes: float32 rows to be normalised; else rows of T) and what becomes of a pair of
// neighbouring outputs:
//   using Element; struct Prefetched; weight;
//   InputRow(row): index of the input row, or -1 where there is none (kNormalizes only)
//   Prefetch(output, row): what Store needs and can be loaded before the sums are there
//   Store(prefetched, output, row, first, second): outputs `output` (even) and `output` + 1
#pragma once

#include <cstdint>

#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/skinny_linear.h"
#include "cuda/kernels/weight_ring.cuh"

namespace tidal::cuda::skinny {

inline constexpr int kNumWarps = 8;
inline constexpr int kNumThreads = kNumWarps * kWarpSize;
inline constexpr int kBlocksPerMultiprocessor = 2;

// Inputs go by units of 32: 4 lanes (the mma's "thread in group") of 16 bytes each, two steps of
// k = 16. The order of k within a unit is the lanes' own, the same for weights and inputs.
inline constexpr int kUnit = 32;
inline constexpr int kLaneElements = 8;
inline constexpr int kMaxUnits = 16;  // of a warp's slice: 64 registers of inputs
inline constexpr int kMaxSlice = kUnit * kMaxUnits;
inline constexpr int kMaxPhaseInputs = kMaxSlice * kNumWarps;
static_assert(kMaxPhaseInputs >= kMaxNormalizedInputs);

// Rows of W between two meetings of the warps.
inline constexpr int kGroupTiles = 2;
inline constexpr int kGroupRows = kGroupTiles * kTileRows;
// Floats from one input row's partial sums to the next's; free of bank conflicts for the writes.
inline constexpr int kPartialPitch = kGroupRows + 4;

// A thread for each pair of outputs of a group and input row.
inline constexpr int kGroupPairs = kGroupRows / 2;
inline constexpr int kNumStoreThreads = kGroupPairs * kMaxSkinnyRows;
static_assert(kNumStoreThreads <= kNumThreads);

// How a product is cut; made by the host.
struct Cut {
  int32_t num_rows;    // of the input
  int32_t inputs;      // W's columns
  int32_t outputs;     // W's rows
  int32_t num_phases;  // passes over the inputs for a group of rows
  int32_t slice;       // inputs of one warp in one phase
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
  cut.num_phases = divide_up(inputs, kMaxPhaseInputs);
  cut.slice = divide_up(inputs, cut.num_phases * kNumWarps * kUnit) * kUnit;
  // An odd number of 64-byte units: eight lanes of a 16-byte load, four of one row and four of the
  // next, then touch all banks once.
  cut.row_pitch = (cut.slice / kUnit | 1) * kUnit * 2;
  cut.slot_bytes = cut.row_pitch * kTileRows;
  const uint32_t partial_bytes = kNumWarps * num_rows * kPartialPitch * sizeof(float);
  const uint32_t row_bytes = kMaxNormalizedInputs * 2;
  cut.exchange_bytes = partial_bytes > row_bytes ? partial_bytes : row_bytes;
  const int32_t fixed_bytes = static_cast<int32_t>(cut.exchange_bytes) +
                              kNumWarps * static_cast<int32_t>(sizeof(float)) +
                              kMaxRingSlots * (kBarrierBytes + kFillCountBytes);
  const int32_t fitting = (shared_bytes - fixed_bytes) / static_cast<int32_t>(cut.slot_bytes);
  cut.num_slots = fitting < kMaxRingSlots ? fitting : kMaxRingSlots;
  return cut;
}

inline uint32_t SharedBytes(const Cut& cut) {
  return cut.num_slots * cut.slot_bytes + cut.exchange_bytes +
         kNumWarps * static_cast<uint32_t>(sizeof(float)) +
         kMaxRingSlots * (kBarrierBytes + kFillCountBytes);
}

// The block's rows of W, [begin, end); begin is even.
struct RowRange {
  int32_t begin;
  int32_t end;
};

__device__ inline RowRange BlockRows(const Cut& cut) {
  const int64_t num_pairs = (cut.outputs + 1) / 2;
  const auto boundary = [&](int64_t block) {
    return static_cast<int32_t>(2 * (num_pairs * block / gridDim.x));
  };
  return {boundary(blockIdx.x), min(boundary(blockIdx.x + 1), cut.outputs)};
}

// The inputs of one warp in one phase.
struct Slice {
  int32_t first;
  int32_t size;  // maybe 0
};

__device__ inline Slice WarpSlice(const Cut& cut, int32_t phase, int32_t warp) {
  const int32_t first = (phase * kNumWarps + warp) * cut.slice;
  return {first, max(0, min(cut.slice, cut.inputs - first))};
}

// A place in the order in which a block goes through its tiles: groups of rows, phases of a group,
// tiles of a phase. At each place every warp has its slice of the tile.
class TileCursor {
 public:
  __device__ TileCursor(const Cut& cut, RowRange rows)
      : num_phases_(cut.num_phases), end_(rows.end), group_(rows.begin), row_(rows.begin) {}

  __device__ bool done() const { return group_ >= end_; }
  __device__ int32_t row() const { return row_; }
  __device__ int32_t num_rows() const { return min(kTileRows, end_ - row_); }
  __device__ int32_t phase() const { return phase_; }

  __device__ void Advance() {
    row_ += kTileRows;
    if (row_ < min(group_ + kGroupRows, end_)) return;
    if (++phase_ == num_phases_) {
      phase_ = 0;
      group_ += kGroupRows;
    }
    row_ = group_;
  }

 private:
  int32_t num_phases_;
  int32_t end_;
  int32_t group_;
  int32_t row_;
  int32_t phase_ = 0;
};

// What one warp adds to the ring: the tiles that follow those it reads in the same slots.
template <typename T>
class WeightLoader {
 public:
  // Fills the slots that this warp reads first.
  __device__ WeightLoader(const Cut& cut, const T* weight, const WeightRing& ring, RowRange rows,
                          int32_t warp)
      : cut_(cut), ring_(ring), weight_(weight), policy_(EvictFirstPolicy()), cursor_(cut, rows) {
    slice_warp_ = warp;
    for (int32_t slot = warp; slot < ring.num_slots; slot += kNumWarps) Refill(slot, /*lap=*/0);
    // Slot `warp` is next, with the tile of the sequence num_slots after it.
    const int32_t next = warp + ring.num_slots;
    slice_warp_ = next % kNumWarps;
    cursor_ = TileCursor(cut, rows);
    for (int32_t i = 0; i < next / kNumWarps; ++i) cursor_.Advance();
  }

  __device__ void Refill(int32_t slot, uint32_t lap) {
    if (cursor_.done()) return;
    const Slice slice = WarpSlice(cut_, cursor_.phase(), slice_warp_);
    const T* source = weight_ + int64_t{cursor_.row()} * cut_.inputs + slice.first;
    FillSlot(ring_, slot, lap, reinterpret_cast<const char*>(source),
             int64_t{cut_.inputs} * static_cast<int64_t>(sizeof(T)), cursor_.num_rows(),
             slice.size * static_cast<uint32_t>(sizeof(T)), policy_);
    cursor_.Advance();
  }

 private:
  const Cut& cut_;
  const WeightRing& ring_;
  const T* weight_;
  uint64_t policy_;
  TileCursor cursor_;
  int32_t slice_warp_;  // whose slices are loaded
};

// One lane's part of a warp's inputs: input row lane / 4, 8 elements of each unit.
using LaneInputs = uint4[kMaxUnits];

// Elements of the slice from the lane's first one on; unit u is there where u * kUnit is below it.
__device__ inline int32_t LaneLimit(const Slice& slice, int lane) {
  return slice.size - lane % 4 * kLaneElements;
}

// From rows of T in device memory.
template <typename T>
__device__ void LoadInputs(const Cut& cut, const T* input, const Slice& slice, int lane,
                           LaneInputs& x) {
  const int row = lane / 4;
  const T* source = input + int64_t{row} * cut.inputs + slice.first + lane % 4 * kLaneElements;
  const int32_t limit = row < cut.num_rows ? LaneLimit(slice, lane) : 0;
#pragma unroll
  for (int unit = 0; unit < kMaxUnits; ++unit) {
    x[unit] = unit * kUnit < limit ? __ldcg(reinterpret_cast<const uint4*>(source + unit * kUnit))
                                   : uint4{};
  }
}

// One row in float32, spread over the threads, 4 elements of each 4 * kNumThreads.
inline constexpr int kRowLoads = kMaxPhaseInputs / (4 * kNumThreads);
using RowPart = float4[kRowLoads];

template <typename Product>
__device__ void LoadRowPart(const Cut& cut, const Product& product, int32_t row, RowPart& part) {
  const int32_t input_row = product.InputRow(row);
  const float* source = product.hidden + int64_t{input_row} * cut.inputs;
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    const int32_t first = (i * kNumThreads + static_cast<int>(threadIdx.x)) * 4;
    part[i] = input_row >= 0 && first < cut.inputs
                  ? __ldcg(reinterpret_cast<const float4*>(source + first))
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
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kNumWarps; ++warp) total += sums[warp];
  return rsqrtf(total / static_cast<float>(cut.inputs) + cut.rms_norm_eps);
}

// RMSNorm of the input rows, one after the other through `exchange` (one row of T).
template <typename Product>
__device__ void LoadNormalizedInputs(const Cut& cut, const Product& product, const Slice& slice,
                                     int lane, char* exchange, float* sums, LaneInputs& x) {
  using T = typename Product::Element;
#pragma unroll
  for (int unit = 0; unit < kMaxUnits; ++unit) x[unit] = uint4{};
  const int32_t limit = LaneLimit(slice, lane);
  const T* lane_source =
      reinterpret_cast<const T*>(exchange) + slice.first + lane % 4 * kLaneElements;
  RowPart next;
  LoadRowPart(cut, product, 0, next);
  for (int32_t row = 0; row < cut.num_rows; ++row) {
    RowPart part;
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) part[i] = next[i];
    if (row + 1 < cut.num_rows) LoadRowPart(cut, product, row + 1, next);
    const float inverse_rms = InverseRms(cut, part, sums);
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int32_t first = (i * kNumThreads + static_cast<int>(threadIdx.x)) * 4;
      if (first >= cut.inputs) continue;
      const float4 weight = __ldg(reinterpret_cast<const float4*>(product.norm_weight + first));
      uint2 packed;
      packed.x =
          PackPair(T(), part[i].x * inverse_rms * weight.x, part[i].y * inverse_rms * weight.y);
      packed.y =
          PackPair(T(), part[i].z * inverse_rms * weight.z, part[i].w * inverse_rms * weight.w);
      *reinterpret_cast<uint2*>(exchange + first * sizeof(T)) = packed;
    }
    __syncthreads();
    if (lane / 4 == row) {
#pragma unroll
      for (int unit = 0; unit < kMaxUnits; ++unit) {
        if (unit * kUnit < limit) {
          x[unit] = *reinterpret_cast<const uint4*>(lane_source + unit * kUnit);
        }
      }
    }
  }
  __syncthreads();  // `exchange` is free
}

// sum[0..1]: W's row lane / 4, input rows 2 * (lane % 4) and one more; sum[2..3]: W's row 8 on.
template <typename T>
__device__ void MultiplyTile(const char* tile, uint32_t row_pitch, int32_t limit, int lane,
                             const LaneInputs& x, float (&sum)[4]) {
  const char* upper = tile + lane / 4 * row_pitch + lane % 4 * (kLaneElements * sizeof(T));
  const char* lower = upper + kTileRows / 2 * row_pitch;
  float second_sum[4] = {};  // two chains hide half of the latency
#pragma unroll
  for (int unit = 0; unit < kMaxUnits; ++unit) {
    uint4 a = {};
    uint4 b = {};
    if (unit * kUnit < limit) {
      a = *reinterpret_cast<const uint4*>(upper + unit * kUnit * sizeof(T));
      b = *reinterpret_cast<const uint4*>(lower + unit * kUnit * sizeof(T));
    }
    Mma16816<T>(sum, {a.x, b.x, a.y, b.y}, {x[unit].x, x[unit].y});
    Mma16816<T>(second_sum, {a.z, b.z, a.w, b.w}, {x[unit].z, x[unit].w});
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += second_sum[i];
}

// Writes a warp's sums of a group to partial [kNumWarps][num_rows][kPartialPitch].
__device__ inline void WritePartials(const Cut& cut, int warp, int lane,
                                     const float (&sums)[kGroupTiles][4], float* partial) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = lane % 4 * 2 + i % 2;
    if (row >= cut.num_rows) continue;
    float* target =
        partial + (warp * cut.num_rows + row) * kPartialPitch + lane / 4 + i / 2 * (kTileRows / 2);
#pragma unroll
    for (int tile = 0; tile < kGroupTiles; ++tile) target[tile * kTileRows] = sums[tile][i];
  }
}

// Adds the warps' partial sums of a group up, always in the same order, and stores the outputs.
template <typename Product>
__device__ void StoreGroup(const Cut& cut, const Product& product, int32_t group, int32_t group_end,
                           const float* partial) {
  // The last warps store: the first ones get the next group's weights first.
  const int index = static_cast<int>(threadIdx.x) - (kNumThreads - kNumStoreThreads);
  const int pair = index % kGroupPairs;
  const int row = index / kGroupPairs;
  const int32_t output = group + 2 * pair;
  const bool stores = index >= 0 && row < cut.num_rows && output < group_end;
  typename Product::Prefetched prefetched;
  if (stores) prefetched = product.Prefetch(output, row);
  __syncthreads();
  float2 sum = {};
  if (stores) {
#pragma unroll
    for (int warp = 0; warp < kNumWarps; ++warp) {
      const float2 part = *reinterpret_cast<const float2*>(
          partial + (warp * cut.num_rows + row) * kPartialPitch + 2 * pair);
      sum.x += part.x;
      sum.y += part.y;
    }
  }
  __syncthreads();  // `partial` is free
  if (stores) product.Store(prefetched, output, row, sum.x, sum.y);
}

template <typename Product>
__device__ void ComputeOutputs(const Cut& cut, const Product& product, const WeightRing& ring,
                               RowRange rows, const char* slots, char* exchange, float* sums) {
  using T = typename Product::Element;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  WeightLoader<T> loader(cut, product.weight, ring, rows, warp);
  LaneInputs x;
  WaitForPreviousKernels();
  if constexpr (Product::kNormalizes) {
    LoadNormalizedInputs(cut, product, WarpSlice(cut, 0, warp), lane, exchange, sums, x);
  }
  RingCursor cursor(ring.num_slots);
  cursor.Advance(warp);
  for (int32_t group = rows.begin; group < rows.end; group += kGroupRows) {
    const int32_t group_end = min(group + kGroupRows, rows.end);
    float group_sums[kGroupTiles][4] = {};
    for (int32_t phase = 0; phase < cut.num_phases; ++phase) {
      const Slice slice = WarpSlice(cut, phase, warp);
      if constexpr (!Product::kNormalizes) {
        if (cut.num_phases > 1 || group == rows.begin) {
          LoadInputs(cut, product.input, slice, lane, x);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kGroupTiles; ++tile) {
        if (group + tile * kTileRows >= group_end) break;
        const int32_t slot = cursor.slot();
        WaitForSlot(ring, cursor);
        MultiplyTile<T>(slots + slot * ring.slot_bytes, ring.row_pitch, LaneLimit(slice, lane),
                        lane, x, group_sums[tile]);
        loader.Refill(slot, cursor.lap() + 1);
        cursor.Advance(kNumWarps);
      }
    }
    float* partial = reinterpret_cast<float*>(exchange);
    WritePartials(cut, warp, lane, group_sums, partial);
    StoreGroup(cut, product, group, group_end, partial);
  }
}

template <typename Product>
__global__ void __launch_bounds__(kNumThreads, kBlocksPerMultiprocessor)
    SkinnyLinearKernel(const __grid_constant__ Product product, const __grid_constant__ Cut cut) {
  char* shared = DynamicSharedMemory();
  LetNextKernelStart();
  char* exchange = shared + cut.num_slots * cut.slot_bytes;
  float* sums = reinterpret_cast<float*>(exchange + cut.exchange_bytes);
  const uint32_t barriers = SharedAddress(sums + kNumWarps);
  const WeightRing ring = {SharedAddress(shared),
                           cut.slot_bytes,
                           cut.row_pitch,
                           barriers,
                           barriers + kMaxRingSlots * kBarrierBytes,
                           cut.num_slots};
  if (threadIdx.x == 0) ring.Init();
  __syncthreads();
  ComputeOutputs(cut, product, ring, BlockRows(cut), shared, exchange, sums);
}

}  // namespace tidal::cuda::skinny
