// What CUDA C++ knows without an include, for a host compiler; included before every file that the
// emulation compiles. Words of the device are carried out by device.h, launches by runtime.h.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "tests/cuda/emulation/device.h"
#include "tests/cuda/emulation/runtime.h"

#undef __device__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#undef __shared__
#define __device__
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static_assert(false, "shared memory comes from DynamicSharedMemory");

#define cudaLaunchKernelEx ::tidal::cuda::emulation::LaunchKernelEx
#define cudaFuncSetAttribute ::tidal::cuda::emulation::FuncSetAttribute

namespace tidal::cuda::emulation {

// The built-in indices and sizes: read anew at each use, since threads share the variables.
template <auto read, int kAxis>
struct Component {
  operator unsigned() const {  // NOLINT: as the built-in's member is
    const auto value = read();
    return kAxis == 0 ? value.x : kAxis == 1 ? value.y : value.z;
  }
};
template <auto read>
struct BuiltIn {
  Component<read, 0> x;
  Component<read, 1> y;
  Component<read, 2> z;
};

}  // namespace tidal::cuda::emulation

inline constexpr ::tidal::cuda::emulation::BuiltIn<::tidal::cuda::emulation::ThreadIndex> threadIdx;
inline constexpr ::tidal::cuda::emulation::BuiltIn<::tidal::cuda::emulation::BlockIndex> blockIdx;
inline constexpr ::tidal::cuda::emulation::BuiltIn<::tidal::cuda::emulation::BlockShape> blockDim;
inline constexpr ::tidal::cuda::emulation::BuiltIn<::tidal::cuda::emulation::GridShape> gridDim;

// --- Barriers and votes ---

inline void __syncthreads() { ::tidal::cuda::emulation::SyncBlock(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  ::tidal::cuda::emulation::Exchange(mask, nullptr, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace tidal::cuda::emulation {

template <typename Value>
Value Shuffle(unsigned mask, Value value, int source) {
  const char* all = Exchange(mask, &value, sizeof(value));
  return (mask >> source & 1) != 0 ? OfLane<Value>(all, source) : value;
}

template <typename Value, typename Combine>
Value Reduce(unsigned mask, Value value, const Combine& combine) {
  const char* all = Exchange(mask, &value, sizeof(value));
  bool is_first = true;
  Value result = value;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const Value other = OfLane<Value>(all, lane);
    result = is_first ? other : combine(result, other);
    is_first = false;
  }
  return result;
}

}  // namespace tidal::cuda::emulation

template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = 32) {
  const int lane = ::tidal::cuda::emulation::Lane();
  return ::tidal::cuda::emulation::Shuffle(mask, value, lane / width * width + source % width);
}
template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance, int width = 32) {
  const int lane = ::tidal::cuda::emulation::Lane();
  const int source = lane ^ distance;
  return ::tidal::cuda::emulation::Shuffle(mask, value,
                                           source / width == lane / width ? source : lane);
}
template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned distance, int width = 32) {
  const int lane = ::tidal::cuda::emulation::Lane();
  const int offset = static_cast<int>(distance);
  return ::tidal::cuda::emulation::Shuffle(mask, value,
                                           lane % width >= offset ? lane - offset : lane);
}
template <typename Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned distance, int width = 32) {
  const int lane = ::tidal::cuda::emulation::Lane();
  const int offset = static_cast<int>(distance);
  return ::tidal::cuda::emulation::Shuffle(mask, value,
                                           lane % width + offset < width ? lane + offset : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned bit = predicate != 0 ? 1u << ::tidal::cuda::emulation::Lane() : 0u;
  return ::tidal::cuda::emulation::Reduce(mask, bit, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return ::tidal::cuda::emulation::Reduce(mask, value,
                                          [](unsigned a, unsigned b) { return a + b; });
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return ::tidal::cuda::emulation::Reduce(mask, value,
                                          [](unsigned a, unsigned b) { return std::max(a, b); });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return ::tidal::cuda::emulation::Reduce(mask, value,
                                          [](unsigned a, unsigned b) { return std::min(a, b); });
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return ::tidal::cuda::emulation::Reduce(mask, value, [](int a, int b) { return a + b; });
}
inline unsigned __match_any_sync(unsigned mask, unsigned value) {
  const char* all = ::tidal::cuda::emulation::Exchange(mask, &value, sizeof(value));
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    if (::tidal::cuda::emulation::OfLane<unsigned>(all, lane) == value) result |= 1u << lane;
  }
  return result;
}
inline unsigned __activemask() { return 0xFFFFFFFFu; }
[[noreturn]] inline void __trap() { ::tidal::cuda::emulation::Fail("trap"); }

// --- Atomics: fibers do not interrupt each other ---

template <typename Value>
Value atomicAdd(Value* target, Value value) {
  const Value old = *target;
  *target = old + value;
  return old;
}
template <typename Value>
Value atomicMax(Value* target, Value value) {
  const Value old = *target;
  *target = std::max(old, value);
  return old;
}
template <typename Value>
Value atomicMin(Value* target, Value value) {
  const Value old = *target;
  *target = std::min(old, value);
  return old;
}
template <typename Value>
Value atomicOr(Value* target, Value value) {
  const Value old = *target;
  *target = old | value;
  return old;
}
template <typename Value>
Value atomicExch(Value* target, Value value) {
  const Value old = *target;
  *target = value;
  return old;
}
template <typename Value>
Value atomicCAS(Value* target, Value expected, Value value) {
  const Value old = *target;
  if (old == expected) *target = value;
  return old;
}
inline unsigned atomicInc(unsigned* target, unsigned limit) {
  const unsigned old = *target;
  *target = old >= limit ? 0 : old + 1;
  return old;
}

// --- Loads and stores with a cache hint ---

template <typename Value>
Value __ldg(const Value* source) {
  return *source;
}
template <typename Value>
Value __ldcg(const Value* source) {
  return *source;
}
template <typename Value>
Value __ldcs(const Value* source) {
  return *source;
}
template <typename Value>
void __stcg(Value* target, Value value) {
  *target = value;
}
template <typename Value>
void __stcs(Value* target, Value value) {
  *target = value;
}

// --- Arithmetic ---

using std::max;
using std::min;
inline unsigned min(unsigned a, int b) { return std::min(a, static_cast<unsigned>(b)); }
inline unsigned min(int a, unsigned b) { return std::min(static_cast<unsigned>(a), b); }
inline unsigned max(unsigned a, int b) { return std::max(a, static_cast<unsigned>(b)); }
inline unsigned max(int a, unsigned b) { return std::max(static_cast<unsigned>(a), b); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result |= (value >> bit & 1u) << (31 - bit);
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline unsigned long long __float2ull_rn(float x) {
  return static_cast<unsigned long long>(std::nearbyint(x));
}
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
