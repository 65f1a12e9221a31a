// The instructions that CUDA C++ has no words for, each under its own name: asynchronous copies,
// mbarriers, matrix fragments, clusters, programmatic dependent launch. Kernels write no assembly
// of their own, and take all shared memory from DynamicSharedMemory, so that tests can run them
// without a device (tests/cuda/emulation has this header's other version).
//
// "sm_90": only in code compiled for it; what has no older form is absent before.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace tidal::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define TIDAL_SM90 1
#endif
// Only in code for sm_90a: no later device has these instructions either.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TIDAL_WARPGROUP_MMA 1
#endif

// --- Shared memory ---

// The block's dynamic shared memory, aligned to 1024 bytes: all the shared memory that a kernel
// has.
__device__ inline char* DynamicSharedMemory() {
  extern __shared__ __align__(1024) char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// The address by which the instructions below know shared memory.
__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- Programmatic dependent launch (nothing before sm_90) ---

// Until the kernels in front of this one in the stream have ended and what they wrote can be read.
// Every kernel that is ever launched dependent calls it, in every block.
__device__ inline void WaitForPreviousKernels() {
#ifdef TIDAL_SM90
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets a dependent kernel behind this one start once all blocks have called it or ended.
__device__ inline void LetNextKernelStart() {
#ifdef TIDAL_SM90
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- mbarriers: 8 bytes of shared memory, named by their shared address ---

inline constexpr int kBarrierBytes = 8;

// By one thread, for `num_arrivals` arrivals a phase; then FenceBarrierInit and a __syncthreads (or
// ClusterSync).
__device__ inline void InitBarrier(uint32_t barrier, uint32_t num_arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(num_arrivals) : "memory");
}

// Shows initialised barriers to the copy engine and to the cluster's other blocks.
__device__ inline void FenceBarrierInit() {
#ifdef TIDAL_SM90
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Shows this thread's ordinary writes to shared memory to the copy engine and to WGMMA.
__device__ inline void FenceSharedForAsync() {
#ifdef TIDAL_SM90
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ inline void ArriveBarrier(uint32_t barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.shared.b64 state, [%0];\n"
      "}\n" ::"r"(barrier)
      : "memory");
}

// Returns once the barrier's phase of this parity is over; its phases have parities 0, 1, 0, ...
__device__ inline void WaitForBarrier(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
#ifdef TIDAL_SM90
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 over, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, over;\n"
        "}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// --- Counters in device memory ---

// Like atomicAdd(counter, 1), but the answer is waited for only where it is used: the compiler
// makes of atomicAdd one operation for the warp, and passes the answer around at once.
__device__ inline uint32_t FetchAndIncrement(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

#ifdef TIDAL_SM90
// Arrives, and makes the phase wait for `num_bytes` of bulk copies besides.
__device__ inline void ArriveAndExpectBytes(uint32_t barrier, uint32_t num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(num_bytes)
               : "memory");
}

// --- Bulk copies (sm_90): by one thread, completing on a barrier ---

// How the L2 cache treats what is copied.
enum class CachePolicy { kEvictFirst, kEvictLast };

template <CachePolicy policy>
__device__ inline uint64_t MakeCachePolicy() {
  uint64_t value;
  if constexpr (policy == CachePolicy::kEvictFirst) {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(value));
  } else {
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(value));
  }
  return value;
}

// Starts to copy `num_bytes` from device memory to this block's shared memory. All three are
// multiples of 16, and num_bytes is not 0.
__device__ inline void CopyBulk(uint32_t target, const void* source, uint32_t num_bytes,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(target),
      "l"(source), "r"(num_bytes), "r"(barrier)
      : "memory");
}
__device__ inline void CopyBulk(uint32_t target, const void* source, uint32_t num_bytes,
                                uint32_t barrier, uint64_t cache_policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(target),
      "l"(source), "r"(num_bytes), "r"(barrier), "l"(cache_policy)
      : "memory");
}
#endif

#ifdef TIDAL_SM90
// --- Copies of a tensor's boxes (sm_90): by one thread, completing on a barrier ---

// `map` lies in the kernel's parameters (__grid_constant__).
__device__ inline void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Starts to copy the box of a two-dimensional tensor that begins at element `column` of row `row`;
// what lies outside of the tensor becomes zeros, and counts as bytes all the same. `target` is
// aligned to 128 bytes. With a swizzle of 128 bytes, boxes of 128-byte rows: the 16-byte piece p of
// the 128 bytes at address a (a multiple of 128) lies at piece p ^ (a / 128 % 8).
__device__ inline void CopyTensorBox(uint32_t target, const CUtensorMap* map, int32_t column,
                                     int32_t row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
#endif

// --- Asynchronous copies of 16 bytes a thread ---

// Starts to copy 16 aligned bytes from device memory, past the L1.
__device__ inline void CopyAsync16(uint32_t target, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}
// The same where `is_valid`; else writes zeros and reads nothing.
__device__ inline void CopyAsync16OrZero(uint32_t target, const void* source, bool is_valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(is_valid ? 16 : 0)
               : "memory");
}
// Makes a group of this thread's copies since the last group.
__device__ inline void CommitAsyncCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the newest `kNumGroups` groups of this thread are done.
template <int kNumGroups>
__device__ inline void WaitForAsyncCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNumGroups) : "memory");
}
// Arrives at the barrier once this thread's copies so far are done; counts as one of its arrivals.
__device__ inline void ArriveAfterAsyncCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// --- Matrix fragments of a warp ---

// sum += A B for A 16 x 16 (rows), B 16 x 8 (columns), float32 sums. The fragments' layout is PTX's
// (mma.m16n8k16): with group = lane / 4 and pair = lane % 4, a[0] is row `group`, columns 2 pair
// and 2 pair + 1, a[1] row group + 8, a[2] columns 8 higher, a[3] both; b[0] is rows 2 pair and
// 2 pair + 1 of column `group`, b[1] rows 8 higher; sum[0..1] is row `group`, columns 2 pair and
// 2 pair + 1, sum[2..3] row group + 8. T is __nv_bfloat16 or __half.
template <typename T>
__device__ inline void Mma16816(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void Mma16816<__nv_bfloat16>(float (&sum)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void Mma16816<__half>(float (&sum)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 2-byte elements from shared memory: lane i gives the address of row i % 8
// of matrix i / 8; fragment[m] is row lane / 4, columns 2 (lane % 4) and one more, of matrix m.
__device__ inline void LoadMatrices(uint32_t (&fragment)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row_address)
               : "memory");
}
// The same, each matrix transposed.
__device__ inline void LoadMatricesTransposed(uint32_t (&fragment)[4], uint32_t row_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(row_address)
               : "memory");
}

// --- Matrix products of a warpgroup (sm_90a): four warps, the first a multiple of four ---
//
// They run by themselves, in the order of their start, and work on registers (sums, and A where it
// comes from registers) and on shared memory that nobody may touch until WaitForWarpgroupProducts.
// Warp w of the group has rows 16 w to 16 w + 15 of A and the sums, laid out as by Mma16816:
// sum[j] is its columns 8 j to 8 j + 7.

#ifdef TIDAL_WARPGROUP_MMA
// Describes a matrix of 2-byte elements in shared memory, in groups of 8 rows of 128 bytes (1024
// bytes, aligned to as much) with a swizzle of 128 bytes: `group_bytes` is from one group of 8 rows
// to the next, `column_bytes` from 64 columns to the next 64, where columns are not the products'
// k. `address` may stand up to 96 bytes inside of a row, in steps of 32.
__device__ inline uint64_t DescribeMatrix(uint32_t address, uint32_t column_bytes,
                                          uint32_t group_bytes) {
  constexpr uint64_t kSwizzle128Bytes = 1;
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{column_bytes >> 4} << 16 |
         uint64_t{group_bytes >> 4} << 32 | kSwizzle128Bytes << 62;
}

// Before products that follow ordinary use of their registers: the `sum` is theirs from now on.
template <int kNumColumns>
__device__ inline void BeginWarpgroupProducts(float (&sum)[kNumColumns][4]) {
#pragma unroll
  for (int column = 0; column < kNumColumns; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sum[column][i])::"memory");
  }
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Makes a group of the products since the last group.
__device__ inline void CommitWarpgroupProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until all but the newest `kNumGroups` groups are done, `sum`'s among them.
template <int kNumGroups, int kNumColumns>
__device__ inline void WaitForWarpgroupProducts(float (&sum)[kNumColumns][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNumGroups) : "memory");
#pragma unroll
  for (int column = 0; column < kNumColumns; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sum[column][i])::"memory");
  }
}

// Sums as an instruction's operands: of two columns, and of eight.
#define TIDAL_SUMS_OF_2(j)                                                                 \
  "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3]), "+f"(sum[j + 1][0]), \
      "+f"(sum[j + 1][1]), "+f"(sum[j + 1][2]), "+f"(sum[j + 1][3])
#define TIDAL_SUMS_OF_8(j) \
  TIDAL_SUMS_OF_2(j), TIDAL_SUMS_OF_2(j + 2), TIDAL_SUMS_OF_2(j + 4), TIDAL_SUMS_OF_2(j + 6)
#define TIDAL_SUMS_TEXT_32                                   \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15, " \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
#define TIDAL_SUMS_TEXT_64                                            \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15, "          \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31, " \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47, " \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "

// sum = A B, or sum += A B with `accumulates`, for A 64 x 16 and B 16 x 128, both of which lie in
// shared memory with k along the rows of 128 bytes.
template <typename T>
__device__ inline void WarpgroupMultiply(float (&sum)[16][4], uint64_t a, uint64_t b,
                                         bool accumulates);

// sum += A B for A 64 x 16 in registers, laid out as by Mma16816, and B 16 x 8 kNumColumns in
// shared memory with k down the rows of 128 bytes. kNumColumns is 8 or 16.
template <typename T, int kNumColumns>
__device__ inline void WarpgroupAccumulate(float (&sum)[kNumColumns][4], const uint32_t (&a)[4],
                                           uint64_t b);

#define TIDAL_WARPGROUP_PRODUCTS(T, type)                                                      \
  template <>                                                                                  \
  __device__ inline void WarpgroupMultiply<T>(float(&sum)[16][4], uint64_t a, uint64_t b,      \
                                              bool accumulates) {                              \
    asm volatile(                                                                              \
        "{\n"                                                                                  \
        ".reg .pred accumulates;\n"                                                            \
        "setp.ne.b32 accumulates, %66, 0;\n"                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " TIDAL_SUMS_TEXT_64    \
        "%64, %65, accumulates, 1, 1, 0, 0;\n"                                                 \
        "}\n"                                                                                  \
        : TIDAL_SUMS_OF_8(0), TIDAL_SUMS_OF_8(8)                                               \
        : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulates))                              \
        : "memory");                                                                           \
  }                                                                                            \
  template <>                                                                                  \
  __device__ inline void WarpgroupAccumulate<T, 16>(float(&sum)[16][4], const uint32_t(&a)[4], \
                                                    uint64_t b) {                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                  \
                 " " TIDAL_SUMS_TEXT_64 "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"                \
                 : TIDAL_SUMS_OF_8(0), TIDAL_SUMS_OF_8(8)                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                          \
                 : "memory");                                                                  \
  }                                                                                            \
  template <>                                                                                  \
  __device__ inline void WarpgroupAccumulate<T, 8>(float(&sum)[8][4], const uint32_t(&a)[4],   \
                                                   uint64_t b) {                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                   \
                 " " TIDAL_SUMS_TEXT_32 "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;\n"                \
                 : TIDAL_SUMS_OF_8(0)                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                          \
                 : "memory");                                                                  \
  }
TIDAL_WARPGROUP_PRODUCTS(__nv_bfloat16, "bf16")
TIDAL_WARPGROUP_PRODUCTS(__half, "f16")
#undef TIDAL_WARPGROUP_PRODUCTS
#undef TIDAL_SUMS_TEXT_64
#undef TIDAL_SUMS_TEXT_32
#undef TIDAL_SUMS_OF_8
#undef TIDAL_SUMS_OF_2

// How many registers each thread of the calling warpgroup has from now on; a multiple of 8. All
// warpgroups together may not have more than the block was launched with.
template <int kNumRegisters>
__device__ inline void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kNumRegisters));
}
template <int kNumRegisters>
__device__ inline void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kNumRegisters));
}
#endif

// --- Barriers of some of a block's warps ---

// A barrier of `num_threads` threads (whole warps); `id` is 1..15.
__device__ inline void SyncNamedBarrier(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// Arrives at the same barrier without waiting for the others.
__device__ inline void ArriveAtNamedBarrier(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// --- Clusters: blocks that can reach each other's shared memory. One block before sm_90 ---

__device__ inline int32_t ClusterRank() {
#ifdef TIDAL_SM90
  uint32_t value;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
  return static_cast<int32_t>(value);
#else
  return 0;
#endif
}

__device__ inline int32_t ClusterSize() {
#ifdef TIDAL_SM90
  uint32_t value;
  asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(value));
  return static_cast<int32_t>(value);
#else
  return 1;
#endif
}

// Barrier of all threads of the cluster, ordering their accesses to memory, in two halves: what a
// thread does between them need not wait for the others.
__device__ inline void ClusterArrive() {
#ifdef TIDAL_SM90
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void ClusterWait() {
#ifdef TIDAL_SM90
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ inline void ClusterSync() {
  ClusterArrive();
  ClusterWait();
}

// Block `rank`'s copy of what `pointer` is in this block's shared memory. A block must not end
// while others read from it.
template <typename Value>
__device__ inline Value* InClusterBlock(int32_t rank, Value* pointer) {
#ifdef TIDAL_SM90
  Value* other;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(other) : "l"(pointer), "r"(rank));
  return other;
#else
  return pointer;
#endif
}

// --- Small things ---

// Two floats rounded to T, the first in the lower half.
__device__ inline uint32_t PackPair(__nv_bfloat16 /*type*/, float first, float second) {
  const __nv_bfloat162 packed = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&packed);
}
__device__ inline uint32_t PackPair(__half /*type*/, float first, float second) {
  const __half2 packed = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&packed);
}

// Both halves of a packed pair as floats.
__device__ inline float2 UnpackPair(__nv_bfloat16 /*type*/, uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}
__device__ inline float2 UnpackPair(__half /*type*/, uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// 2^x, to the last but one place or so.
__device__ inline float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace tidal::cuda
