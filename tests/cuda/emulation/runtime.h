// The part of the CUDA runtime that the emulation's launches need; runtime.cc has the rest behind
// the runtime's own declarations.
//
// A stream keeps what is enqueued and carries it out late, at the moments when a real one would be
// waited for, or early, at random: code that overwrites a buffer too soon, or reads one, is
// noticed.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <utility>

#include "tests/cuda/emulation/device.h"

namespace tidal::cuda::emulation {

// The launch that a configuration describes; an error where a device would refuse it.
cudaError_t ReadConfig(const cudaLaunchConfig_t& config, const void* kernel, Launch* launch);

// Enqueues work, or adds it to the graph that the stream is recording.
cudaError_t Enqueue(cudaStream_t stream, std::function<void()> work);

// The largest dynamic shared memory that launches of `kernel` may ask for.
void AllowSharedBytes(const void* kernel, int num_bytes);

// What a CUtensorMap holds here.
struct TensorMap {
  static constexpr uint64_t kMagic = 0x70616d726f736e65;

  uint64_t magic;
  const char* base;
  uint64_t rows;
  uint64_t columns;
  uint64_t pitch;  // bytes from row to row
  uint32_t element_bytes;
  uint32_t box_rows;
  uint32_t box_columns;
};

// cudaLaunchKernelEx and cudaFuncSetAttribute, which prelude.h renames to these.

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                           Arguments&&... arguments) {
  Launch launch;
  const cudaError_t error = ReadConfig(*config, reinterpret_cast<const void*>(kernel), &launch);
  if (error != cudaSuccess) return error;
  std::function<void()> body = [kernel, ... values = Parameters(arguments)] { kernel(values...); };
  return Enqueue(config->stream, [launch, body = std::move(body)] { RunKernel(launch, body); });
}

template <typename... Parameters>
cudaError_t FuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                             int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    AllowSharedBytes(reinterpret_cast<const void*>(kernel), value);
  }
  return cudaSuccess;
}

}  // namespace tidal::cuda::emulation

template <typename... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* num_blocks,
                                                          void (* /*kernel*/)(Parameters...),
                                                          int /*block_size*/,
                                                          size_t dynamic_shared_bytes) {
  *num_blocks = dynamic_shared_bytes > (113 << 10) ? 1 : 2;
  return cudaSuccess;
}
