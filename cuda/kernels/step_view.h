// What every kernel sees of a step, of the model's sizes and of the KV cache: plain values with
// device pointers whose addresses never change, so that a recorded graph stays valid while their
// contents do. Host and device code.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/backend/attention.h"

namespace tidal::cuda {

// The sizes of the model that the kernels need.
struct ModelDims {
  int32_t num_layers;
  int32_t hidden_size;
  int32_t intermediate_size;
  int32_t num_query_heads;
  int32_t num_kv_heads;
  int32_t head_dim;  // 64 or 128
  int32_t vocab_size;
  float rms_norm_eps;

  int32_t query_size() const { return num_query_heads * head_dim; }
  int32_t kv_size() const { return num_kv_heads * head_dim; }
  int32_t qkv_size() const { return query_size() + 2 * kv_size(); }
  int32_t group_size() const { return num_query_heads / num_kv_heads; }
};

// One chunk of the step (SequenceChunk).
struct DeviceChunk {
  int32_t first_row;           // of its tokens in the step's activations
  int32_t num_tokens;          // 1 = a decode
  int32_t num_context_tokens;  // in the cache once the chunk is written
  int32_t sampler_slot;        // also the row of block_tables
  int32_t token_budget;
  int32_t num_sink_tokens;
  int32_t num_recent_tokens;  // as asked for; at least 1 is kept
  AttentionMode mode;
  SelectionScope scope;
  bool samples;
  uint8_t unused;
};

// The step's tables in device memory. Kernels of a recorded graph are launched for a fixed number
// of rows and chunks (a bucket) and find the real numbers in `counts`; rows past them hold values
// that are finite and of no use.
struct StepView {
  struct Counts {
    int32_t num_rows;
    int32_t num_chunks;
    int32_t num_samples;  // chunks that sample
    int32_t num_prefill_tiles;
  };
  const Counts* counts;
  // Of each row, [max_batch_tokens]:
  const int32_t* token_ids;   // or kLastSampledToken
  const int32_t* positions;   // in its sequence
  const int32_t* cache_rows;  // block * kBlockSize + token of the block
  const int32_t* chunk_of_row;
  // Of each chunk, [max_batch_sequences], in the batch's order:
  const DeviceChunk* chunks;
  // Indices of the chunks that sample, [max_batch_sequences], in the batch's order.
  const int32_t* sampling_chunks;
  // [max_batch_sequences][block_table_stride] block ids, a row for each sampler slot.
  const int32_t* block_tables;
  int32_t block_table_stride;
};

// The KV cache of one layer: [block][K, V][kv_head][kBlockSize][head_dim] of T (bf16 or fp16).
// Keys are stored after RoPE in the order of Hugging Face checkpoints.
template <typename T>
struct KvCacheView {
  T* base;
  int32_t num_kv_heads;
  int32_t head_dim;

  __host__ __device__ int64_t block_stride() const {
    return int64_t{2} * num_kv_heads * kBlockSize * head_dim;
  }
  // Elements from a token's key to its value.
  __host__ __device__ int64_t value_offset() const {
    return int64_t{num_kv_heads} * kBlockSize * head_dim;
  }
  // The first element of a token's key; `cache_row` = block * kBlockSize + token of the block.
  __host__ __device__ int64_t key_offset(int32_t cache_row, int32_t kv_head) const {
    return (cache_row / kBlockSize) * block_stride() +
           (int64_t{kv_head} * kBlockSize + cache_row % kBlockSize) * head_dim;
  }
};

}  // namespace tidal::cuda
