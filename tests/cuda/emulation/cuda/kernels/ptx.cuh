// cuda/kernels/ptx.cuh for the emulation: the same names, carried out by device.h. With
// TIDAL_EMULATED_SM80 defined it is what code for sm_80 sees.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/cuda/emulation/device.h"
#include "tests/cuda/emulation/runtime.h"

#ifndef TIDAL_EMULATED_SM80
#define TIDAL_SM90 1
#define TIDAL_WARPGROUP_MMA 1
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

// Blocks run one after the other.
inline uint32_t FetchAndIncrement(uint32_t* counter) { return (*counter)++; }

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

inline void PrefetchTensorMap(const CUtensorMap* /*map*/) {}

inline void CopyTensorBox(uint32_t target, const CUtensorMap* opaque_map, int32_t column,
                          int32_t row, uint32_t barrier) {
  emulation::TensorMap map;
  std::memcpy(&map, opaque_map, sizeof(map));
  if (map.magic != emulation::TensorMap::kMagic) emulation::Fail("that is no tensor map");
  constexpr uint32_t kAlignment = 128;
  if (target % kAlignment != 0) emulation::Fail("a tensor's box goes to %u", target);
  const uint32_t row_bytes = map.box_columns * map.element_bytes;
  const uint32_t num_bytes = row_bytes * map.box_rows;
  char* start = emulation::SharedPointer(target, num_bytes) - target;
  emulation::StartBulkCopy(target, num_bytes, barrier, [=] {
    for (uint32_t i = 0; i < map.box_rows; ++i) {
      for (uint32_t j = 0; j < map.box_columns; ++j) {
        const int64_t source_row = int64_t{row} + i;
        const int64_t source_column = int64_t{column} + j;
        char* element =
            start + emulation::Swizzle128(target + i * row_bytes + j * map.element_bytes);
        if (source_row < 0 || source_row >= static_cast<int64_t>(map.rows) || source_column < 0 ||
            source_column >= static_cast<int64_t>(map.columns)) {
          std::memset(element, 0, map.element_bytes);
        } else {
          std::memcpy(element,
                      map.base + source_row * static_cast<int64_t>(map.pitch) +
                          source_column * map.element_bytes,
                      map.element_bytes);
        }
      }
    }
  });
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

#ifdef TIDAL_WARPGROUP_MMA
inline uint64_t DescribeMatrix(uint32_t address, uint32_t column_bytes, uint32_t group_bytes) {
  constexpr uint64_t kSwizzle128Bytes = 1;
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{column_bytes >> 4} << 16 |
         uint64_t{group_bytes >> 4} << 32 | kSwizzle128Bytes << 62;
}

namespace emulation {

// A matrix that a descriptor of DescribeMatrix stands for.
struct DescribedMatrix {
  explicit DescribedMatrix(uint64_t descriptor)
      : address(static_cast<uint32_t>(descriptor & 0x3FFF) << 4),
        column_bytes(static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4),
        group_bytes(static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || address % 1024 >= 128) {
      Fail("a matrix descriptor that is not for a swizzle of 128 bytes: %016lx", descriptor);
    }
  }

  // Element `k` of row `row` where k goes along the rows.
  uint16_t AlongRow(int row, int k) const {
    if (address % 32 != 0) Fail("a matrix that begins at %u", address);
    return At(address + static_cast<uint32_t>(row) / 8 * group_bytes +
              static_cast<uint32_t>(row) % 8 * 128 + static_cast<uint32_t>(k) * 2);
  }
  // Element `k` of column `column` where k goes down the rows.
  uint16_t DownColumn(int column, int k) const {
    if (address % 1024 != 0) Fail("a matrix that begins at %u", address);
    return At(address + static_cast<uint32_t>(column) / 64 * column_bytes +
              static_cast<uint32_t>(k) / 8 * group_bytes + static_cast<uint32_t>(k) % 8 * 128 +
              static_cast<uint32_t>(column) % 64 * 2);
  }

  static uint16_t At(uint32_t offset) {
    uint16_t value;
    std::memcpy(&value, SharedPointer(Swizzle128(offset), sizeof(value)), sizeof(value));
    return value;
  }

  uint32_t address;
  uint32_t column_bytes;
  uint32_t group_bytes;
};

// One lane's part of a product: rows lane / 4 and 8 more of its warp, two columns of each eight.
// Operands are read when it is started and when it is waited for, and must be the same.
struct WarpgroupProduct {
  static constexpr int kInner = 16;

  float* sum;  // [num_columns][4]
  int num_columns;
  const float* table;
  bool a_in_registers;
  uint64_t a_descriptor;
  uint64_t b_descriptor;
  uint16_t a[2][kInner];
  std::vector<uint16_t> b;  // [kInner][num_columns][2]

  void ReadOperands() {
    const int lane = Lane();
    if (!a_in_registers) {
      const DescribedMatrix matrix(a_descriptor);
      for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < kInner; ++k) {
          a[half][k] = matrix.AlongRow(WarpOfGroup() * 16 + lane / 4 + half * 8, k);
        }
      }
    }
    const DescribedMatrix matrix(b_descriptor);
    b.clear();
    for (int k = 0; k < kInner; ++k) {
      for (int j = 0; j < num_columns; ++j) {
        for (int i = 0; i < 2; ++i) {
          const int column = j * 8 + lane % 4 * 2 + i;
          b.push_back(a_in_registers ? matrix.DownColumn(column, k) : matrix.AlongRow(column, k));
        }
      }
    }
  }

  void Finish() {
    const WarpgroupProduct before = *this;
    ReadOperands();
    if (b != before.b || std::memcmp(a, before.a, sizeof(a)) != 0) {
      Fail("the operands of a warpgroup's product changed while it was under way");
    }
    for (int k = 0; k < kInner; ++k) {
      for (int j = 0; j < num_columns; ++j) {
        for (int i = 0; i < 4; ++i) {
          sum[j * 4 + i] +=
              table[a[i / 2][k]] * table[b[static_cast<size_t>((k * num_columns + j) * 2 + i % 2)]];
        }
      }
    }
  }
};

inline void StartProduct(const std::shared_ptr<WarpgroupProduct>& product, bool accumulates) {
  product->ReadOperands();
  StartWarpgroupProduct(product->sum, static_cast<size_t>(product->num_columns) * 4, accumulates,
                        [product] { product->Finish(); });
}

}  // namespace emulation

template <typename T>
inline void WarpgroupMultiply(float (&sum)[16][4], uint64_t a, uint64_t b, bool accumulates) {
  auto product = std::make_shared<emulation::WarpgroupProduct>();
  product->sum = sum[0];
  product->num_columns = 16;
  product->table = emulation::FloatTable<T>();
  product->a_in_registers = false;
  product->a_descriptor = a;
  product->b_descriptor = b;
  emulation::Exchange(kFullWarp, nullptr, 0);
  emulation::StartProduct(product, accumulates);
}

template <typename T, int kNumColumns>
inline void WarpgroupAccumulate(float (&sum)[kNumColumns][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kNumColumns == 8 || kNumColumns == 16);
  auto product = std::make_shared<emulation::WarpgroupProduct>();
  product->sum = sum[0];
  product->num_columns = kNumColumns;
  product->table = emulation::FloatTable<T>();
  product->a_in_registers = true;
  product->b_descriptor = b;
  const char* all = emulation::Exchange(kFullWarp, a, sizeof(a));
  struct Fragment {
    uint32_t words[4];
  };
  const int lane = emulation::Lane();
  for (int pair = 0; pair < 4; ++pair) {
    const auto fragment = emulation::OfLane<Fragment>(all, lane / 4 * 4 + pair);
    for (int i = 0; i < 4; ++i) {
      std::memcpy(&product->a[i % 2][i / 2 * 8 + pair * 2], &fragment.words[i], sizeof(uint32_t));
    }
  }
  emulation::StartProduct(product, true);
}

template <int kNumColumns>
inline void BeginWarpgroupProducts(float (&sum)[kNumColumns][4]) {
  emulation::BeginWarpgroupProducts(sum[0]);
}
inline void CommitWarpgroupProducts() { emulation::CommitWarpgroupProducts(); }
template <int kNumGroups, int kNumColumns>
inline void WaitForWarpgroupProducts(float (&sum)[kNumColumns][4]) {
  emulation::Exchange(kFullWarp, nullptr, 0);
  emulation::WaitForWarpgroupProducts(kNumGroups, sum[0]);
}

template <int kNumRegisters>
inline void RaiseRegisters() {
  static_assert(kNumRegisters % 8 == 0 && kNumRegisters >= 24 && kNumRegisters <= 256);
}
template <int kNumRegisters>
inline void LowerRegisters() {
  static_assert(kNumRegisters % 8 == 0 && kNumRegisters >= 24 && kNumRegisters <= 256);
}
#endif

inline void SyncNamedBarrier(int id, int num_threads) { emulation::SyncNamed(id, num_threads); }
inline void ArriveAtNamedBarrier(int id, int num_threads) {
  emulation::ArriveNamed(id, num_threads);
}

inline int32_t ClusterRank() { return emulation::ClusterRank(); }
inline int32_t ClusterSize() { return emulation::ClusterSize(); }
inline void ClusterArrive() {}
inline void ClusterWait() { emulation::SyncCluster(); }
inline void ClusterSync() { ClusterWait(); }
template <typename Value>
inline Value* InClusterBlock(int32_t rank, Value* pointer) {
  return static_cast<Value*>(
      emulation::InClusterBlock(rank, const_cast<void*>(static_cast<const void*>(pointer))));
}

inline float Exp2(float x) { return std::exp2(x); }

}  // namespace tidal::cuda
