// cuda/kernels/ptx.cuh for the emulation: the same names, carried out by device.h. With
// TIDAL_EMULATED_SM80 defined it is what code for sm_80 sees.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/cuda/emulation/device.h"

#ifndef TIDAL_EMULATED_SM80
#define TIDAL_SM90 1
#endif

namespace tidal::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

inline char* DynamicSharedMemory() { return emulation::SharedMemory(); }
inline uint32_t SharedAddress(const void* pointer) { return emulation::SharedOffset(pointer); }

inline void WaitForPreviousKernels() { emulation::NoteWaitForPreviousKernels(); }
inline void LetNextKernelStart() {}

inline constexpr int kBarrierBytes = 8;

inline void InitBarrier(uint32_t barrier, uint32_t num_arrivals) {
  emulation::InitBarrier(barrier, num_arrivals);
}
inline void FenceBarrierInit() {}
inline void FenceSharedForAsync() {}
inline void ArriveBarrier(uint32_t barrier) { emulation::ArriveBarrier(barrier, 0); }
inline void WaitForBarrier(uint32_t barrier, uint32_t parity) {
  emulation::WaitForBarrier(barrier, parity);
}

#ifdef TIDAL_SM90
inline void ArriveAndExpectBytes(uint32_t barrier, uint32_t num_bytes) {
  emulation::ArriveBarrier(barrier, num_bytes);
}

enum class CachePolicy { kEvictFirst, kEvictLast };
template <CachePolicy policy>
inline uint64_t MakeCachePolicy() {
  return static_cast<uint64_t>(policy);
}

inline void CopyBulk(uint32_t target, const void* source, uint32_t num_bytes, uint32_t barrier) {
  constexpr uint32_t kAlignment = 16;
  if (target % kAlignment != 0 || num_bytes % kAlignment != 0 || num_bytes == 0 ||
      reinterpret_cast<uintptr_t>(source) % kAlignment != 0) {
    emulation::Fail("bulk copy of %u bytes from %p to %u", num_bytes, source, target);
  }
  char* pointer = emulation::SharedPointer(target, num_bytes);
  emulation::StartBulkCopy(target, num_bytes, barrier, [pointer, source, num_bytes] {
    std::memcpy(pointer, source, num_bytes);
  });
}
inline void CopyBulk(uint32_t target, const void* source, uint32_t num_bytes, uint32_t barrier,
                     uint64_t /*cache_policy*/) {
  CopyBulk(target, source, num_bytes, barrier);
}
#endif

inline void CopyAsync16(uint32_t target, const void* source) {
  emulation::CopyAsync16(target, source, true);
}
inline void CopyAsync16OrZero(uint32_t target, const void* source, bool is_valid) {
  emulation::CopyAsync16(target, source, is_valid);
}
inline void CommitAsyncCopies() { emulation::CommitAsyncCopies(); }
template <int kNumGroups>
inline void WaitForAsyncCopies() {
  emulation::WaitForAsyncCopies(kNumGroups);
}
inline void ArriveAfterAsyncCopies(uint32_t barrier) { emulation::ArriveAfterAsyncCopies(barrier); }

inline uint32_t PackPair(__nv_bfloat16 /*type*/, float first, float second) {
  const __nv_bfloat162 packed = __floats2bfloat162_rn(first, second);
  uint32_t bits;
  std::memcpy(&bits, &packed, sizeof(bits));
  return bits;
}
inline uint32_t PackPair(__half /*type*/, float first, float second) {
  const __half2 packed = __floats2half2_rn(first, second);
  uint32_t bits;
  std::memcpy(&bits, &packed, sizeof(bits));
  return bits;
}
template <typename T>
inline float2 UnpackPair(T /*type*/, uint32_t pair) {
  T halves[2];
  std::memcpy(static_cast<void*>(halves), &pair, sizeof(pair));
  return {static_cast<float>(halves[0]), static_cast<float>(halves[1])};
}

namespace emulation {

// A lane's part of an mma.m16n8k16; afterwards its sums alone.
struct MmaFragments {
  uint32_t a[4];
  uint32_t b[2];
  float sum[4];
};

// 2-byte floats as floats, by their bits.
template <typename T>
const float* FloatTable() {
  static const std::vector<float> table = [] {
    std::vector<float> values(size_t{1} << 16);
    for (size_t bits = 0; bits < values.size(); ++bits) {
      values[bits] = UnpackPair(T(), static_cast<uint32_t>(bits)).x;
    }
    return values;
  }();
  return table.data();
}

template <typename T>
void MultiplyFragments(char* values) {
  const float* table = FloatTable<T>();
  float a[16][16];
  float b[16][8];
  const auto fragments = [values](int lane) {
    return reinterpret_cast<MmaFragments*>(values + static_cast<size_t>(lane) * kMaxExchangeBytes);
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaFragments& mine = *fragments(lane);
    const int group = lane / 4;
    const int first = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      float* row = &a[group + i % 2 * 8][first + i / 2 * 8];
      row[0] = table[mine.a[i] & 0xFFFF];
      row[1] = table[mine.a[i] >> 16];
    }
    for (int i = 0; i < 2; ++i) {
      b[first + i * 8][group] = table[mine.b[i] & 0xFFFF];
      b[first + i * 8 + 1][group] = table[mine.b[i] >> 16];
    }
  }
  float product[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) product[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      fragments(lane)->sum[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
}

}  // namespace emulation

template <typename T>
inline void Mma16816(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::MmaFragments mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  std::memcpy(mine.sum, sum, sizeof(mine.sum));
  const char* all =
      emulation::Exchange(kFullWarp, &mine, sizeof(mine), emulation::MultiplyFragments<T>);
  const auto result = emulation::OfLane<emulation::MmaFragments>(all, emulation::Lane());
  std::memcpy(sum, result.sum, sizeof(result.sum));
}

namespace emulation {

inline void LoadMatrices(uint32_t (&fragment)[4], uint32_t row_address, bool transposed) {
  constexpr uint32_t kRowBytes = 16;
  if (row_address % kRowBytes != 0) Fail("ldmatrix of a row at %u", row_address);
  uint16_t row[8];
  std::memcpy(row, SharedPointer(row_address, kRowBytes), kRowBytes);
  const char* all = Exchange(kFullWarp, row, sizeof(row));
  const int group = Lane() / 4;
  const int pair = Lane() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[2];
    for (int i = 0; i < 2; ++i) {
      const int source_row = transposed ? 2 * pair + i : group;
      const int source_column = transposed ? group : 2 * pair + i;
      std::memcpy(&elements[i],
                  all + static_cast<size_t>(matrix * 8 + source_row) * kMaxExchangeBytes +
                      static_cast<size_t>(source_column) * sizeof(uint16_t),
                  sizeof(uint16_t));
    }
    std::memcpy(&fragment[matrix], elements, sizeof(elements));
  }
}

}  // namespace emulation

inline void LoadMatrices(uint32_t (&fragment)[4], uint32_t row_address) {
  emulation::LoadMatrices(fragment, row_address, false);
}
inline void LoadMatricesTransposed(uint32_t (&fragment)[4], uint32_t row_address) {
  emulation::LoadMatrices(fragment, row_address, true);
}

inline void SyncNamedBarrier(int id, int num_threads) { emulation::SyncNamed(id, num_threads); }

inline int32_t ClusterRank() { return emulation::ClusterRank(); }
inline int32_t ClusterSize() { return emulation::ClusterSize(); }
inline void ClusterSync() { emulation::SyncCluster(); }
template <typename Value>
inline Value* InClusterBlock(int32_t rank, Value* pointer) {
  return static_cast<Value*>(
      emulation::InClusterBlock(rank, const_cast<void*>(static_cast<const void*>(pointer))));
}

inline float Exp2(float x) { return std::exp2(x); }

}  // namespace tidal::cuda
