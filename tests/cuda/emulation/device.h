// The device of the emulation: runs a kernel's threads as fibers on one host thread, and is strict
// where a real device is merely undefined. Warps and lanes run in random order between barriers,
// bulk copies land late and leave NaNs until then, shared memory is allocated to the byte (so that
// AddressSanitizer sees what leaves it), and a block that can go no further aborts with the place
// of each waiting thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include <vector_types.h>

namespace tidal::cuda::emulation {

inline constexpr int kLanes = 32;

struct Launch {
  dim3 grid = {1, 1, 1};
  dim3 block = {1, 1, 1};
  uint32_t cluster_size = 1;  // along x
  size_t shared_bytes = 0;
  bool dependent = false;  // programmatic dependent launch
};

// Runs `kernel` in every thread of the launch, and returns when all have ended.
void RunKernel(const Launch& launch, const std::function<void()>& kernel);

// Prints the current thread's place with a message, and aborts.
[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- Called by a kernel's threads ---

uint3 ThreadIndex();
uint3 BlockIndex();
dim3 BlockShape();
dim3 GridShape();
int Lane();

char* SharedMemory();
uint32_t SharedOffset(const void* pointer);
char* SharedPointer(uint32_t offset, size_t num_bytes);

void SyncBlock();
void SyncNamed(int id, int num_threads);
void ArriveNamed(int id, int num_threads);
void SyncCluster();
int32_t ClusterRank();
int32_t ClusterSize();
void* InClusterBlock(int32_t rank, void* pointer);

// Meets the other lanes of `mask`, which all call it. Each brings `num_bytes` (at most
// kMaxExchangeBytes); returns the lanes' contributions, kMaxExchangeBytes apart, valid until the
// warp's next exchange but one.
inline constexpr size_t kMaxExchangeBytes = 128;
// The last lane to come calls `combine` on all contributions, where there is one, and the lanes see
// what it makes of them.
using Combine = void (*)(char* values);
const char* Exchange(uint32_t mask, const void* value, size_t num_bytes, Combine combine = nullptr);

template <typename Value>
Value OfLane(const char* exchanged, int lane) {
  static_assert(sizeof(Value) <= kMaxExchangeBytes);
  Value value;
  __builtin_memcpy(&value, exchanged + static_cast<size_t>(lane) * kMaxExchangeBytes,
                   sizeof(Value));
  return value;
}

// Lets the others go on; for loops that wait for what another thread writes. Endless ones abort.
void Pause();

void InitBarrier(uint32_t barrier, uint32_t num_arrivals);
void ArriveBarrier(uint32_t barrier, uint32_t expected_bytes);
void WaitForBarrier(uint32_t barrier, uint32_t parity);

// A copy into shared memory [target, target + num_bytes) by the copy engine, which completes
// `num_bytes` of the barrier's phase when it lands. `land` does the copy; until then the target
// holds NaNs.
void StartBulkCopy(uint32_t target, uint32_t num_bytes, uint32_t barrier,
                   std::function<void()> land);

void CopyAsync16(uint32_t target, const void* source, bool is_valid);
void CommitAsyncCopies();
void WaitForAsyncCopies(size_t num_groups);
void ArriveAfterAsyncCopies(uint32_t barrier);

// Matrix products of a warpgroup, as this thread sees them. StartWarpgroupProduct makes `sum`
// [size] NaN until `finish` has added the product to it, within WaitForWarpgroupProducts, and
// notices where it was touched before that. A new `sum` must have been named to
// BeginWarpgroupProducts unless it is overwritten.
void BeginWarpgroupProducts(float* sum);
void StartWarpgroupProduct(float* sum, size_t size, bool accumulates, std::function<void()> finish);
void CommitWarpgroupProducts();
void WaitForWarpgroupProducts(size_t num_groups, const float* sum);
int WarpOfGroup();  // 0..3

// Where the byte at `offset` lies with a swizzle of 128 bytes.
inline uint32_t Swizzle128(uint32_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

void NoteWaitForPreviousKernels();

}  // namespace tidal::cuda::emulation
