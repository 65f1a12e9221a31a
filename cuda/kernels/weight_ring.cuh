// A ring of weight tiles in shared memory, filled far ahead of its use. Each slot has an mbarrier
// that completes when the slot is full. Every tile is read by one warp, which fills the slot anew
// as soon as it has read it, so that no warp must wait for a slot to become empty.
//
// The next tile of a slot may be another warp's, and that warp may be several laps ahead of what
// the slot's barrier has seen, whose parity tells neighbouring laps apart only. So each slot also
// counts its fills: a warp waits until the fill of its own lap has begun, then for its barrier.
//
// On sm_90 a tile's rows come by bulk copies, which need no registers and no threads while they
// fly, and are marked to leave the L2 first, since a weight is read once a step. Before sm_90 the
// filling warp copies by cp.async, 16 bytes a lane.
#pragma once

#include <cstdint>

#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda {

// Rows of a weight tile: one mma's m.
inline constexpr int kTileRows = 16;

inline constexpr int kMaxRingSlots = 32;
inline constexpr int kFillCountBytes = 4;

// The ring's memory: `num_slots` slots and their barriers, as shared-memory addresses.
struct WeightRing {
  uint32_t slots;
  uint32_t slot_bytes;
  uint32_t row_pitch;  // bytes between a tile's rows in a slot
  uint32_t barriers;
  uint32_t fill_counts;  // of kFillCountBytes each
  int32_t num_slots;

  __device__ uint32_t slot(int32_t index) const { return slots + index * slot_bytes; }
  __device__ uint32_t barrier(int32_t index) const { return barriers + index * kBarrierBytes; }
  __device__ uint32_t fill_count(int32_t index) const {
    return fill_counts + index * kFillCountBytes;
  }

  // By one thread, before a __syncthreads.
  __device__ void Init() const {
#ifdef TIDAL_SM90
    constexpr uint32_t kFillArrivals = 1;
#else
    constexpr uint32_t kFillArrivals = kWarpSize;
#endif
    for (int32_t i = 0; i < num_slots; ++i) {
      InitBarrier(barrier(i), kFillArrivals);
      ReleaseCounter(fill_count(i), 0);
    }
    FenceBarrierInit();
  }
};

// A place in the endless sequence of slots.
class RingCursor {
 public:
  __device__ explicit RingCursor(int32_t num_slots) : num_slots_(num_slots) {}

  __device__ void Advance(int32_t num_tiles) {
    slot_ += num_tiles;
    while (slot_ >= num_slots_) {
      slot_ -= num_slots_;
      ++lap_;
    }
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

// Until the slot holds the tile of this lap.
__device__ inline void WaitForSlot(const WeightRing& ring, const RingCursor& cursor) {
  WaitForCounterAbove(ring.fill_count(cursor.slot()), cursor.lap());
  WaitForBarrier(ring.barrier(cursor.slot()), cursor.lap() & 1);
}

// Starts to fill a slot, for lap `lap`, with `num_rows` (1..kTileRows) pieces of `row_bytes` (a
// multiple of 16, maybe 0) that lie `source_pitch` bytes apart. By a whole warp, all of whose lanes
// have read what the slot held.
__device__ inline void FillSlot(const WeightRing& ring, int32_t index, uint32_t lap,
                                const char* source, int64_t source_pitch, int32_t num_rows,
                                uint32_t row_bytes, uint64_t policy) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const uint32_t slot = ring.slot(index);
  const uint32_t full = ring.barrier(index);
  __syncwarp();
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
  if (lane == 0) ReleaseCounter(ring.fill_count(index), lap + 1);
}

}  // namespace tidal::cuda
