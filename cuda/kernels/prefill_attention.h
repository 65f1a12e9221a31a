// Attention of prefill chunks: causal attention of runs of query rows over the paged KV cache, on
// tensor cores. Query i of a chunk stands at position num_context_tokens - num_tokens + i and
// attends that position and all before it; the chunk's own keys and values are in the cache
// already. Host code; a launch reads nothing of device memory on the host.
//
// How the work is cut: the query heads that share a KV head are packed, so that keys and values are
// read once for all of them. The rows of a chunk, for one KV head, are its num_tokens * group_size
// (token, query head) pairs, tokens first; a tile is kPrefillTileRows of them that follow each
// other, whatever the group size. One block computes one tile for one KV head. The blocks of a KV
// head stand next to each other in the grid, so that those that run together read the same keys and
// values, out of the L2; a head's longest tiles come first, so that the last ones are short.
//
// Scores and sums are float32, probabilities are rounded to T before they meet the values, as in
// every fused attention. A row's result depends on its chunk alone and on where in the chunk the
// tiles begin, never on the other chunks of the step; the same inputs give the same bits.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels/step_view.h"

namespace tidal::cuda {

inline constexpr int32_t kPrefillTileRows = 128;
inline constexpr int32_t kMaxPrefillGroupSize = 8;

// One query tile of a chunk.
struct PrefillTile {
  int32_t chunk;      // index in StepView::chunks
  int32_t first_row;  // of the chunk's num_tokens * group_size rows; a multiple of kPrefillTileRows
};

// The most tiles that steps of at most `max_batch_tokens` rows and `max_batch_sequences` chunks
// have: the size of a table for them.
int32_t MaxPrefillTiles(int32_t max_batch_tokens, int32_t max_batch_sequences, int32_t group_size);

// Writes the tiles of all chunks with more than one token, longest first, and returns their number
// (0: nothing to launch). For the host to put into the step's tables.
int32_t BuildPrefillTiles(const DeviceChunk* chunks, int32_t num_chunks, int32_t group_size,
                          PrefillTile* tiles);

// What the launches need to know of the device; filled by InitPrefillAttention.
struct PrefillAttentionDevice {
  bool has_warpgroup_mma = false;  // sm_90; cleared, launches take the path of sm_80
};

// Sets the kernels' attributes on the current device. Call once for each device, before any launch
// and not while a graph is captured.
cudaError_t InitPrefillAttention(PrefillAttentionDevice* device);

// Describes one layer's KV cache ([num_blocks][K, V][num_kv_heads][kBlockSize][head_dim]) to the
// copy engine: rows of head_dim elements, copied by 16 rows and 64 elements. Call once for a
// layer at start-up and keep it beside the cache's address; its bytes are copied by the launch.
// `layer_cache` is aligned to 16 bytes. cudaErrorNotSupported where the driver or the device has no
// such maps (before sm_90: launches need none), cudaErrorInvalidValue for sizes that no map can
// hold (2^31 rows or more).
template <typename T>
cudaError_t MakePrefillCacheMap(const KvCacheView<T>& layer_cache, int32_t num_blocks,
                                CUtensorMap* map);

template <typename T>
struct PrefillAttention {
  const T* query;  // [num_rows][query_size], after RoPE
  T* output;       // out: [num_rows][query_size]; rows of chunks of one token are left as they are
  KvCacheView<T> cache;          // of the layer
  const CUtensorMap* cache_map;  // of the same layer, on the host; may be null before sm_90
  StepView step;                 // counts, chunks and block_tables are read
  const PrefillTile* tiles;      // [num_tiles], device memory; written by BuildPrefillTiles
  int32_t num_tiles;
};

struct PrefillLaunch {
  PrefillAttentionDevice device;
  cudaStream_t stream = nullptr;
  // Programmatic dependent launch: the kernel may start before the one in front of it in the stream
  // ends, and waits for it before it reads or writes anything.
  bool dependent = false;
};

// Whether the launch can serve this model: head_dim 64 or 128, group_size 1..kMaxPrefillGroupSize.
bool SupportsPrefillAttention(const ModelDims& dims);

// T is __nv_bfloat16 or __half; device pointers are aligned to 16 bytes. Needs no workspace.
// cudaErrorInvalidValue where SupportsPrefillAttention refuses, num_tiles is below 1, or cache_map
// is missing on sm_90; else the launch's error.
template <typename T>
cudaError_t LaunchPrefillAttention(const PrefillLaunch& launch, const ModelDims& dims,
                                   const PrefillAttention<T>& arguments);

}  // namespace tidal::cuda
