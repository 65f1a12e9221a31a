// A ring of weight tiles in shared memory, filled far ahead of its use: one warp fills the slots in
// turn, all others read each of them. A slot has two mbarriers: one completes when the slot is
// full, the other when every reading warp is done with it. Both see their slot's laps one after the
// other, so a lap's parity tells it from its neighbours.
//
// On sm_90 a tile's rows come by bulk copies, which need no registers and no threads while they
// fly, and are marked to leave the L2 first, since a weight is read once a step. A copy of 4 KB or
// more reads as fast as the memory can; pieces of 1 KB lose a quarter. Before sm_90 the filling
// warp copies by cp.async, 16 bytes a lane.
#pragma once

#include <cstdint>

#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda {

inline constexpr int kMaxRingSlots = 32;
inline constexpr uint32_t kRingBarrierBytes = 2 * kMaxRingSlots * kBarrierBytes;

// The ring's memory: `num_slots` slots and their barriers, as shared-memory addresses.
struct WeightRing {
  uint32_t slots;
  uint32_t slot_bytes;
  uint32_t row_pitch;  // bytes between a tile's rows in a slot
  uint32_t barriers;   // of kRingBarrierBytes
  int32_t num_slots;

  __device__ uint32_t slot(int32_t index) const { return slots + index * slot_bytes; }
  __device__ uint32_t full(int32_t index) const { return barriers + index * kBarrierBytes; }
  __device__ uint32_t empty(int32_t index) const { return full(kMaxRingSlots + index); }

  // By one thread, before a __syncthreads.
  __device__ void Init(uint32_t num_reading_warps) const {
#ifdef TIDAL_SM90
    constexpr uint32_t kFillArrivals = 1;
#else
    constexpr uint32_t kFillArrivals = kWarpSize;
#endif
    for (int32_t i = 0; i < num_slots; ++i) {
      InitBarrier(full(i), kFillArrivals);
      InitBarrier(empty(i), num_reading_warps);
    }
    FenceBarrierInit();
  }
};

// A place in the endless sequence of slots.
class RingCursor {
 public:
  __device__ explicit RingCursor(int32_t num_slots) : num_slots_(num_slots) {}

  __device__ void Advance() {
    if (++slot_ < num_slots_) return;
    slot_ = 0;
    ++lap_;
  }

  __device__ int32_t slot() const { return slot_; }
  __device__ uint32_t lap() const { return lap_; }

 private:
  int32_t num_slots_;
  int32_t slot_ = 0;
  uint32_t lap_ = 0;
};

// For data that is read once.
__device__ inline uint64_t EvictFirstPolicy() {
#ifdef TIDAL_SM90
  return MakeCachePolicy<CachePolicy::kEvictFirst>();
#else
  return 0;
#endif
}

// Until the slot holds this lap's tile; by each reading warp.
__device__ inline void WaitForFullSlot(const WeightRing& ring, const RingCursor& cursor) {
  WaitForBarrier(ring.full(cursor.slot()), cursor.lap() & 1);
}

// After all lanes of a reading warp have read the slot.
__device__ inline void ReleaseSlot(const WeightRing& ring, const RingCursor& cursor) {
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) ArriveBarrier(ring.empty(cursor.slot()));
}

// Until the slot may be filled for this lap; by the filling warp.
__device__ inline void WaitForEmptySlot(const WeightRing& ring, const RingCursor& cursor) {
  if (cursor.lap() > 0) WaitForBarrier(ring.empty(cursor.slot()), (cursor.lap() - 1) & 1);
}

// Starts to fill an empty slot with `num_rows` (1..kWarpSize) pieces of `row_bytes` (a multiple of
// 16, maybe 0) that lie `source_pitch` bytes apart. By a whole warp.
__device__ inline void FillSlot(const WeightRing& ring, int32_t index, const char* source,
                                int64_t source_pitch, int32_t num_rows, uint32_t row_bytes,
                                uint64_t policy) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const uint32_t slot = ring.slot(index);
  const uint32_t full = ring.full(index);
#ifdef TIDAL_SM90
  if (lane == 0) ArriveAndExpectBytes(full, num_rows * row_bytes);
  __syncwarp();
  if (lane < num_rows && row_bytes > 0) {
    CopyBulk(slot + lane * ring.row_pitch, source + lane * source_pitch, row_bytes, full, policy);
  }
#else
  constexpr uint32_t kCopyBytes = 16;
  for (int32_t row = 0; row < num_rows; ++row) {
    for (uint32_t offset = lane * kCopyBytes; offset < row_bytes;
         offset += kWarpSize * kCopyBytes) {
      CopyAsync16(slot + row * ring.row_pitch + offset, source + row * source_pitch + offset);
    }
  }
  ArriveAfterAsyncCopies(full);
#endif
}

}  // namespace tidal::cuda
