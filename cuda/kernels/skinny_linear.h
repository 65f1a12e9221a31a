// The matrix products of a decode step: y = W x for 1..kMaxSkinnyRows rows, each fused with what
// stands before and behind it in a layer. Host code; every launch can be captured in a graph and
// reads nothing of device memory on the host.
//
// Bound: every weight is read once, 2 bytes for 2 * num_rows operations, so the read rate of the
// device memory is the floor. How the work is cut:
//  - One block a multiprocessor. One of its warps streams W, in tiles of 4 rows (by up to 4096
//    inputs: a phase), through a ring of about 100 KB of shared memory (weight_ring.cuh). Blocks
//    draw their tiles from a queue, since the memory does not serve all multiprocessors alike.
//  - Eight warps multiply on the tensor cores, with the weights as A and the inputs as B of
//    m16n8k16. Warp w takes the w-th eighth of every row of the tile and holds that slice of the
//    inputs in registers. What of A and B the few rows leave empty is filled with more of the
//    slice (skinny_linear_kernel.cuh: Strips). The eight warps' sums meet in shared memory, once
//    for 8 tiles.
//  - Two blocks fit in a multiprocessor. With programmatic dependent launch the next product's
//    block fills its ring while this one's drains, and only then waits for this one's outputs.
// A row's result does not depend on the other rows' values; it may on their number.
//
// Inputs are rounded to T once (after the norm where there is one); sums are float32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/step_view.h"

namespace tidal::cuda {

inline constexpr int32_t kMaxSkinnyRows = 4;

// The widest input of a product that normalises its input.
inline constexpr int32_t kMaxNormalizedInputs = 4096;

// What the launches need to know of the device; filled by InitSkinnyLinear.
struct SkinnyLinearDevice {
  int32_t num_blocks = 0;  // multiprocessors
  int32_t block_shared_bytes = 0;
};

// Sets the kernels' attributes on the current device. Call once for each device, before any launch
// and not while a graph is captured.
cudaError_t InitSkinnyLinear(SkinnyLinearDevice* device);

// How to launch a product.
struct SkinnyLaunch {
  SkinnyLinearDevice device;
  cudaStream_t stream = nullptr;
  int32_t num_rows = 0;  // 1..kMaxSkinnyRows; the bucket of the graph, for the LM head of samples
  // Programmatic dependent launch: the kernel may start before the one in front of it in the stream
  // ends. It reads nothing but weights, biases and norms before it has waited for that one's end,
  // and writes nothing, so it may stand behind any kernel, and before any.
  bool dependent = false;
  // [2] in device memory, zero before and after each launch, of this product alone; null: each
  // block has a fixed share of the weight's rows.
  uint32_t* counters = nullptr;
};

// Whether a product of this model can be launched for `num_rows` rows. All refuse row counts out of
// 1..kMaxSkinnyRows and inputs that are not a multiple of 8 (rows must be 16-byte aligned); those
// with a norm refuse hidden sizes above kMaxNormalizedInputs; all but the LM head refuse an odd
// number of outputs.
bool SupportsAttentionInput(const ModelDims& dims, int32_t num_rows);
bool SupportsOutputProjection(const ModelDims& dims, int32_t num_rows);
bool SupportsGateUp(const ModelDims& dims, int32_t num_rows);
bool SupportsDown(const ModelDims& dims, int32_t num_rows);
bool SupportsLmHead(const ModelDims& dims, int32_t num_samples);

// In all of these: T is __nv_bfloat16 or __half; pointers are device pointers, aligned to 16 bytes;
// weights are row-major [outputs][inputs]; biases may be null. The launches return
// cudaErrorInvalidValue where Supports... refuses, else the launch's error.

// RMSNorm, QKV projection, RoPE (engine/cpu/rotary.h gives the angle), K and V into the cache.
template <typename T>
struct AttentionInput {
  const float* hidden;       // [num_rows][hidden_size]
  const float* norm_weight;  // [hidden_size]
  // [qkv_size][hidden_size]: query heads, key heads, value heads. Within a query or key head, row
  // 2i is Hugging Face's row i and row 2i + 1 its row i + head_dim / 2.
  const T* weight;
  const float* bias;                 // [qkv_size] in the order of weight's rows, or null
  const float* inverse_frequencies;  // [head_dim / 2], radians a position
  T* query;                          // out: [num_rows][query_size], Hugging Face's order
  // Out: K and V at step.cache_rows of the rows below step.counts->num_rows.
  KvCacheView<T> cache;
  StepView step;
};
template <typename T>
cudaError_t LaunchAttentionInput(const SkinnyLaunch& launch, const ModelDims& dims,
                                 const AttentionInput<T>& arguments);

// hidden += weight input + bias; the output projection and the down projection.
template <typename T>
struct ResidualProduct {
  const T* input;     // [num_rows][inputs]
  const T* weight;    // [hidden_size][inputs]
  const float* bias;  // [hidden_size], or null
  float* hidden;      // in and out: [num_rows][hidden_size]
};
// inputs = query_size: attention's output.
template <typename T>
cudaError_t LaunchOutputProjection(const SkinnyLaunch& launch, const ModelDims& dims,
                                   const ResidualProduct<T>& arguments);
// inputs = intermediate_size: gate-up's output.
template <typename T>
cudaError_t LaunchDown(const SkinnyLaunch& launch, const ModelDims& dims,
                       const ResidualProduct<T>& arguments);

// RMSNorm, gate and up projections, SiLU(gate) * up.
template <typename T>
struct GateUp {
  const float* hidden;       // [num_rows][hidden_size]
  const float* norm_weight;  // [hidden_size]
  const T* weight;           // [2 * intermediate_size][hidden_size]: gate j at 2j, up j at 2j + 1
  const float* bias;         // [2 * intermediate_size] in the same order, or null
  T* output;                 // [num_rows][intermediate_size]
};
template <typename T>
cudaError_t LaunchGateUp(const SkinnyLaunch& launch, const ModelDims& dims,
                         const GateUp<T>& arguments);

// The final RMSNorm of the last row of each chunk that samples, and the LM head. Rows of logits
// from counts->num_samples on are left as they are.
template <typename T>
struct LmHead {
  const float* hidden;       // [max_batch_tokens][hidden_size]
  const float* norm_weight;  // [hidden_size]
  const T* weight;           // [vocab_size][hidden_size]
  float* logits;             // out: [launch.num_rows][vocab_size]
  StepView step;
};
template <typename T>
cudaError_t LaunchLmHead(const SkinnyLaunch& launch, const ModelDims& dims,
                         const LmHead<T>& arguments);

}  // namespace tidal::cuda
