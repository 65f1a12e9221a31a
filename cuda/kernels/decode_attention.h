// Attention of a decode step over the paged KV cache: full attention, the selection of positions,
// and sparse attention over a selection. Host code; every launch can be captured in a graph, reads
// lengths and tables on the device, and stays valid while contexts grow.
//
// One layer's launches, in this order, each only where its kind can occur in the step:
//   LaunchContextAttention   kFull and kSelect: softmax(q k / sqrt(head_dim)) v over the context;
//                            for kSelect it also leaves the scores in the workspace
//   LaunchSelection          kSelect: scores -> positions and cache rows
//   LaunchSparseAttention    kSparse: the same softmax over the selected rows
// They serve the chunks of one token whose kind is theirs and pass over all others; kQuest has no
// kernel here. Each chunk has its own mode, scope, budget and context.
//
// Context attention is bound by reading K and V once, 2 * head_dim * 2 bytes a token and KV head.
//  - Work is a row of units: (chunk, KV head, block of 16 tokens). One block of 4 warps a
//    multiprocessor takes an equal, contiguous share of it, cut on the device from the chunk table.
//  - A warp streams every fourth unit of the share through a ring of its own (3 units of 8 KB for
//    head_dim 128, so 96 KB a multiprocessor; K and V are one bulk copy of 4 KB each), without a
//    barrier between warps. Two such blocks, or one and one of a product (skinny_linear.h), fit in
//    a multiprocessor, so that dependent launches overlap.
//  - The tensor cores (m16n8k16) do both products, with the group's 1..8 query heads as rows: 32
//    products among some 370 instructions a unit (head_dim 128, sm_90a). At 4.55 TB/s a
//    multiprocessor of an H200 gets a unit in 420 cycles, so a warp one in 1670. Rows of K and V
//    lie 256 bytes apart in a slot; reads are arranged to meet at most twofold bank conflicts.
//  - A (chunk, KV head) that several blocks share leaves partial results in the workspace; the last
//    block to arrive merges them in the order of the blocks.
// Selection: a cluster of 4 or 8 blocks (one before sm_90) reads a set's scores once into shared
// memory (26624 positions a block, before sm_90 16384; what does not fit is read again in each
// pass). The budget-th highest of the maxima of some 32 positions each is a lower bound of the
// set's last key, and few keys reach it: every block takes all of these into registers and finds
// the last key among them by histograms. Where they are too many (some 8000, as with a large budget
// or many equal scores), histograms of all keys find it, of 11, 11 and 10 bits. Then the positions
// are written in ascending order. 32 sets of 100K are 128 blocks and 12.8 MB out of the L2. Sparse
// attention gives 4 blocks to each (chunk, set): 16 warps gather units of 16 selected rows, three
// in flight each for head_dim 128 (all of a budget of 512 at once). With dependent launch they do
// so while the kernel in front still computes the query: only the step's own row has to wait for
// it. The last of the 4 blocks to end merges them.
//
// What holds: the same step gives the same bits. Selection given its scores, and sparse attention,
// do not depend on the other chunks of the batch. Context attention depends on them only by where
// the context is cut into shares (the order of float32 sums); scores do not depend on them at all.
// Probabilities are rounded to T before they meet V; sums are float32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/step_view.h"
#include "engine/backend/attention.h"

namespace tidal::cuda {

// Query heads that share one KV head, at most.
inline constexpr int32_t kMaxAttentionGroup = 8;

// Chunks of one launch, at most.
inline constexpr int32_t kMaxAttentionChunks = 1024;

// What the launches need to know of the device; filled by InitDecodeAttention.
struct DecodeAttentionDevice {
  int32_t num_multiprocessors = 0;
  int32_t max_cluster_size = 1;  // 8 from sm_90 on, before 1
};

// Sets the kernels' attributes on the current device. Call once for each device, before any launch
// and not while a graph is captured.
cudaError_t InitDecodeAttention(DecodeAttentionDevice* device);

// Head dimensions 64 and 128, and 1..kMaxAttentionGroup query heads a KV head.
bool SupportsDecodeAttention(const ModelDims& dims);

struct DecodeAttentionLimits {
  int32_t max_batch_sequences = 0;  // chunks of a step
  int32_t max_token_budget = 0;     // of any chunk, 1..kMaxTokenBudget
  // Tokens whose scores the workspace holds, of all kSelect chunks of one launch together, each
  // chunk's context rounded up to whole KV blocks. 4 bytes a token and query head: 16 MiB for a
  // context of 128K with 32 heads. As many tokens as the KV cache has are enough for every step
  // whose sequences share no blocks, and cost 128 bytes a token with 32 heads, beside 128 KiB of
  // KV for Llama-3-8B. A step that needs more is launched in parts (first_chunk, num_chunks).
  int64_t max_score_tokens = 0;
};

// Device memory that the launches use between them. It belongs to one stream: launches that use it
// are ordered.
struct DecodeAttentionWorkspace {
  // [tokens of the kSelect chunks before][query head][context of the chunk, in whole blocks]
  float* scores;
  int64_t max_score_tokens;
  // Of each query head of each kSelect chunk: {some reference, sum of 2^(score * log2(e) -
  // reference)}, [chunk][query head].
  float2* softmax;
  float* partials;     // of shares of a (chunk, KV head)
  uint32_t* counters;  // [chunk][KV head], arrivals; zero between launches
  // The selections, [chunk][num_query_heads][max_token_budget]: of each chunk the first sets are in
  // use (as many as query heads, KV heads or 1, by its scope), of each set the first token_budget
  // entries. They stay until the chunk index's next kSelect.
  int32_t* positions;   // ascending
  int32_t* cache_rows;  // the same as rows of the cache: block * kBlockSize + token of the block
  int32_t max_token_budget;
  // Of sparse attention, what each block of a task leaves of a query head: see SparseParts.
  float* sparse_outputs;      // [chunk][query head][part][head_dim]
  float2* sparse_softmax;     // [chunk][query head][part]
  uint32_t* sparse_counters;  // [chunk][query head], arrivals; zero between launches
};

// Bytes of device memory for a workspace.
int64_t DecodeAttentionWorkspaceBytes(const DecodeAttentionDevice& device, const ModelDims& dims,
                                      const DecodeAttentionLimits& limits);

// Divides `memory`: DecodeAttentionWorkspaceBytes of device memory, aligned to 256 bytes, which the
// caller has set to zero once.
DecodeAttentionWorkspace MakeDecodeAttentionWorkspace(void* memory,
                                                      const DecodeAttentionDevice& device,
                                                      const ModelDims& dims,
                                                      const DecodeAttentionLimits& limits);

// How to launch.
struct DecodeAttentionLaunch {
  DecodeAttentionDevice device;
  cudaStream_t stream = nullptr;
  // The chunks served: first_chunk .. first_chunk + num_chunks - 1, where the step has them; all
  // are within the chunk table's memory. A graph takes its bucket of
  // chunks; 1..kMaxAttentionChunks.
  int32_t first_chunk = 0;
  int32_t num_chunks = 0;
  // LaunchSelection and LaunchSparseAttention: the sets that a chunk can have at most in the step.
  // num_query_heads where scope query_head can occur, else num_kv_heads where kv_head can, else 1.
  int32_t max_sets = 0;
  // Programmatic dependent launch: the kernel may start before the one in front of it in the stream
  // ends. It writes nothing before that one has ended, and nor does it read, but for
  // LaunchSparseAttention, which reads all but the query and the rows of the step's own tokens (the
  // last ones of their sets): those it is given by a kernel that holds back the one behind it
  // (skinny_linear_kernel.cuh), or that has ended.
  bool dependent = false;
};

// Pointers are device pointers, aligned to 16 bytes; T is __nv_bfloat16 or __half.
template <typename T>
struct DecodeAttention {
  const T* query;        // [rows][query_size], with RoPE
  KvCacheView<T> cache;  // the layer's; holds the step's own K and V already
  T* output;             // out: [rows][query_size], the rows of the chunks served
  StepView step;
  AttentionPass pass;  // the layer's
  DecodeAttentionWorkspace workspace;
};

// All three return cudaErrorInvalidValue where SupportsDecodeAttention refuses or a count above is
// out of range, else the launch's error. A step that exceeds max_score_tokens or a budget above
// max_token_budget is a fault of the device (a trap), never a wrong result.
template <typename T>
cudaError_t LaunchContextAttention(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                                   const DecodeAttention<T>& arguments);

// Reads the scores and softmax that LaunchContextAttention of the same chunks has left, before any
// other launch of it.
template <typename T>
cudaError_t LaunchSelection(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                            const DecodeAttention<T>& arguments);

template <typename T>
cudaError_t LaunchSparseAttention(const DecodeAttentionLaunch& launch, const ModelDims& dims,
                                  const DecodeAttention<T>& arguments);

}  // namespace tidal::cuda
