// What stands between the matrix products where they are cuBLASLt's (more rows than
// skinny_linear.h takes), and the first stage of every step. All are bound by the bytes that they
// read and write. Host code; every launch can be captured in a graph.
//
// Row counts of a launch are the graph's bucket. Rows from counts->num_rows on are computed like
// others, on finite values, and written to no cache.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/kernels/sampler.h"
#include "cuda/kernels/step_view.h"

namespace tidal::cuda {

struct ElementwiseLaunch {
  cudaStream_t stream = nullptr;
  int32_t num_rows = 0;
  // Programmatic dependent launch: the kernel may start before the one in front of it ends, and
  // waits for that one's end before it reads or writes anything.
  bool dependent = false;
};

// hidden_size, intermediate_size and head_dim are multiples of 8: a thread takes 16 bytes of T.
bool SupportsElementwise(const ModelDims& dims);

// In all of these T is __nv_bfloat16 or __half, and pointers are device pointers, aligned to 16
// bytes. The launches return cudaErrorInvalidValue where SupportsElementwise refuses, else the
// launch's error.

// hidden [num_rows][hidden_size] = rows of `embedding` [vocab_size][hidden_size]; the token
// kLastSampledToken is the one that the chunk's sampler slot drew last. Rows past the step's are 0.
template <typename T>
cudaError_t LaunchEmbed(const ElementwiseLaunch& launch, const ModelDims& dims,
                        const StepView& step, const SamplerSlot* slots, const T* embedding,
                        float* hidden);

// output [num_rows][hidden_size] = RMSNorm of hidden, times `weight` [hidden_size].
template <typename T>
cudaError_t LaunchRmsNorm(const ElementwiseLaunch& launch, const ModelDims& dims,
                          const float* hidden, const float* weight, T* output);

// The same for the last row of each chunk that samples; output row i is sampling_chunks[i]'s. Rows
// from counts->num_samples on are 0.
template <typename T>
cudaError_t LaunchSampledRmsNorm(const ElementwiseLaunch& launch, const ModelDims& dims,
                                 const StepView& step, const float* hidden, const float* weight,
                                 T* output);

// Bias, RoPE (engine/cpu/rotary.h gives the angle), K and V into the cache.
template <typename T>
struct RotateAndStore {
  // [num_rows][qkv_size], columns in the order of AttentionInput's weight rows (skinny_linear.h).
  const T* qkv;
  const float* bias;                 // [qkv_size] in the same order, or null
  const float* inverse_frequencies;  // [head_dim / 2], radians a position
  T* query;                          // out: [num_rows][query_size], Hugging Face's order
  KvCacheView<T> cache;              // out: the step's rows
  StepView step;
};
template <typename T>
cudaError_t LaunchRotateAndStore(const ElementwiseLaunch& launch, const ModelDims& dims,
                                 const RotateAndStore<T>& arguments);

// output [num_rows][intermediate_size] = SiLU(gate) * up, where column 2j of gate_up
// [num_rows][2 * intermediate_size] is gate j and column 2j + 1 is up j. `bias`
// [2 * intermediate_size] in the same order, or null.
template <typename T>
cudaError_t LaunchSiluMultiply(const ElementwiseLaunch& launch, const ModelDims& dims,
                               const T* gate_up, const float* bias, T* output);

// hidden [num_rows][hidden_size] += bias [hidden_size].
cudaError_t LaunchAddBias(const ElementwiseLaunch& launch, const ModelDims& dims, const float* bias,
                          float* hidden);

}  // namespace tidal::cuda
