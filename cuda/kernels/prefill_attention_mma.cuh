// Prefill attention by the matrix products of a warp (m16n8k16): every device from sm_80 on.
//
// A block has 8 warps of 16 rows. Keys and values of 64 tokens at a time come by cp.async into one
// of two buffers while the other is worked on: 64 KB of shared memory for head_dim 128. Queries
// stay in registers (32 of them), beside the outputs (64) and a tile's scores (32). A warp's 16
// rows read each tile whole through ldmatrix, which takes as long as its products do, so the
// tensor cores are at best half busy: the way of sm_90 is in prefill_attention_warpgroup.cuh.
#pragma once

#include <cstdint>

#include "cuda/kernels/prefill_attention_tile.cuh"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::prefill {

inline constexpr int kMmaWarps = kPrefillTileRows / 16;
inline constexpr int kMmaThreads = kMmaWarps * kWarpSize;
inline constexpr int kMmaKeys = 64;  // of a tile
inline constexpr int kMmaBuffers = 2;

inline constexpr int kPieceBytes = 16;
inline constexpr int kPieceElements = 8;

template <int kHeadDim>
inline constexpr int kMmaTileBytes = kMmaKeys* kHeadDim * 2;

template <int kHeadDim>
inline constexpr int kMmaSharedBytes = kMmaBuffers * 2 * kMmaTileBytes<kHeadDim>;

// Where a piece of a key's row lies in a tile: eight rows' pieces of one column are in different
// banks.
template <int kHeadDim>
__device__ uint32_t PieceOffset(int key, int piece) {
  return key * kHeadDim * 2 + (piece ^ key % 8) * kPieceBytes;
}

// Starts to copy the keys and values from `first_key` on into `buffer`; zeros from `num_keys` on.
template <typename T, int kHeadDim>
__device__ void CopyKeysAndValues(const Parameters<T>& parameters, const QueryTile& tile,
                                  int32_t first_key, int32_t num_keys, uint32_t buffer) {
  constexpr int kRowPieces = kHeadDim / kPieceElements;
  constexpr int kRowsAtOnce = kMmaThreads / kRowPieces;
  const int piece = static_cast<int>(threadIdx.x) % kRowPieces;
#pragma unroll
  for (int i = 0; i < kMmaKeys / kRowsAtOnce; ++i) {
    const int key = i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kRowPieces;
    const int32_t position = first_key + key;
    const bool is_valid = position < num_keys;
    const T* source = parameters.cache.base;
    if (is_valid) {
      const int32_t block = __ldcg(tile.block_table + position / kBlockSize);
      source += block * parameters.cache.block_stride() +
                (tile.kv_head * kBlockSize + position % kBlockSize) * kHeadDim +
                piece * kPieceElements;
    }
    const uint32_t target = buffer + PieceOffset<kHeadDim>(key, piece);
    CopyAsync16OrZero(target, source, is_valid);
    CopyAsync16OrZero(target + kMmaTileBytes<kHeadDim>,
                      is_valid ? source + parameters.cache.value_offset() : source, is_valid);
  }
}

// A warp's 16 queries as A operands.
template <typename T, int kHeadDim>
__device__ void LoadQueries(const T* query, const QueryTile& tile, int32_t warp_row,
                            uint32_t (&fragments)[kHeadDim / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const T* source = query + tile.Offset(warp_row + lane / 4 + half * 8, kHeadDim) + lane % 4 * 2;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        fragments[step][half + 2 * i] =
            __ldcg(reinterpret_cast<const uint32_t*>(source + step * 16 + i * 8));
      }
    }
  }
}

template <typename T, int kHeadDim>
__device__ void MultiplyKeys(const uint32_t (&queries)[kHeadDim / 16][4], uint32_t keys,
                             float (&scores)[kMmaKeys / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
    for (int column = 0; column < kMmaKeys / 8; column += 2) {
      const int key = column * 8 + lane / 16 * 8 + lane % 8;
      uint32_t fragment[4];
      LoadMatrices(fragment, keys + PieceOffset<kHeadDim>(key, step * 2 + lane / 8 % 2));
      Mma16816<T>(scores[column], queries[step], {fragment[0], fragment[1]});
      Mma16816<T>(scores[column + 1], queries[step], {fragment[2], fragment[3]});
    }
  }
}

template <typename T, int kHeadDim>
__device__ void MultiplyValues(const uint32_t (&probabilities)[kMmaKeys / 16][4], uint32_t values,
                               float (&output)[kHeadDim / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int step = 0; step < kMmaKeys / 16; ++step) {
#pragma unroll
    for (int column = 0; column < kHeadDim / 8; column += 2) {
      const int key = step * 16 + lane / 8 % 2 * 8 + lane % 8;
      uint32_t fragment[4];
      LoadMatricesTransposed(fragment, values + PieceOffset<kHeadDim>(key, column + lane / 16));
      Mma16816<T>(output[column], probabilities[step], {fragment[0], fragment[1]});
      Mma16816<T>(output[column + 1], probabilities[step], {fragment[2], fragment[3]});
    }
  }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kMmaThreads)
    PrefillMmaKernel(const __grid_constant__ Parameters<T> parameters) {
  const uint32_t shared = SharedAddress(DynamicSharedMemory());
  LetNextKernelStart();
  WaitForPreviousKernels();
  const QueryTile tile(parameters);
  const int32_t num_keys = tile.num_keys();
  const int32_t num_common_keys = tile.num_common_keys();
  const auto buffer_of = [shared](int32_t key_tile) {
    return shared + key_tile % kMmaBuffers * (2 * kMmaTileBytes<kHeadDim>);
  };
  const auto copy = [&](int32_t key_tile) {
    if (key_tile >= 0) {
      CopyKeysAndValues<T, kHeadDim>(parameters, tile, key_tile * kMmaKeys, num_keys,
                                     buffer_of(key_tile));
    }
    CommitAsyncCopies();
  };
  int32_t key_tile = (num_keys - 1) / kMmaKeys;  // the last one first: it has keys to mask
  copy(key_tile);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t warp_row = static_cast<int>(threadIdx.x) / kWarpSize * 16;
  const int32_t last_position[2] = {tile.Position(warp_row + lane / 4),
                                    tile.Position(warp_row + lane / 4 + 8)};
  uint32_t queries[kHeadDim / 16][4];
  LoadQueries<T, kHeadDim>(parameters.query, tile, warp_row, queries);
  float output[kHeadDim / 8][4] = {};
  RunningSoftmax softmax;
  for (; key_tile >= 0; --key_tile) {
    copy(key_tile - 1);
    WaitForAsyncCopies<1>();
    __syncthreads();
    const uint32_t keys = buffer_of(key_tile);
    float scores[kMmaKeys / 8][4] = {};
    float correction[2];
    MultiplyKeys<T, kHeadDim>(queries, keys, scores);
    if ((key_tile + 1) * kMmaKeys > num_common_keys) {
      MaskScores(scores, key_tile * kMmaKeys, last_position);
    }
    softmax.Add<true>(scores, parameters.scale_log2, correction);
    Scale(output, correction);
    uint32_t probabilities[kMmaKeys / 16][4];
    PackProbabilities<T>(scores, probabilities);
    MultiplyValues<T, kHeadDim>(probabilities, keys + kMmaTileBytes<kHeadDim>, output);
    __syncthreads();  // the buffer is free
  }
  StoreOutput(tile, warp_row, parameters.output, softmax, output);
}

}  // namespace tidal::cuda::prefill
