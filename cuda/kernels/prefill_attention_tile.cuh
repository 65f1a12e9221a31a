// What both kernels of prefill attention share: which rows and keys a block works on, the softmax
// that runs along the keys, and the way out.
//
// Scores and outputs lie in a warp's registers as the sums of m16n8 products do: with
// group = lane / 4 and pair = lane % 4, element [j][0..1] is row `group`, columns 8 j + 2 pair and
// one more, [j][2..3] the same of row group + 8. So a thread has two rows, and four lanes share
// them.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/kernels/prefill_attention.h"
#include "cuda/kernels/ptx.cuh"

namespace tidal::cuda::prefill {

template <typename T>
struct Parameters {
  const T* query;
  T* output;
  KvCacheView<T> cache;
  StepView step;
  const PrefillTile* tiles;
  int32_t num_tiles;
  int32_t group_size;
  float scale_log2;  // 1 / sqrt(head_dim), times log2(e)
};

// A block's rows, all of one chunk and one KV head. Rows past the chunk's last one stand for it,
// and are not stored.
struct QueryTile {
  int32_t kv_head;
  int32_t num_query_heads;
  int32_t group_size;
  int32_t first_row;       // of the chunk's rows
  int32_t num_chunk_rows;  // tokens * group_size
  int32_t first_token;     // the chunk's first row in the step's activations
  int32_t first_position;  // of the chunk's first token
  const int32_t* block_table;

  // Reads the step's tables.
  template <typename T>
  __device__ explicit QueryTile(const Parameters<T>& parameters) {
    const auto index = static_cast<int32_t>(blockIdx.x);
    const PrefillTile tile = parameters.tiles[index % parameters.num_tiles];
    const DeviceChunk& chunk = parameters.step.chunks[tile.chunk];
    kv_head = index / parameters.num_tiles;
    group_size = parameters.group_size;
    num_query_heads = parameters.cache.num_kv_heads * group_size;
    first_row = tile.first_row;
    num_chunk_rows = chunk.num_tokens * group_size;
    first_token = chunk.first_row;
    first_position = chunk.num_context_tokens - chunk.num_tokens;
    block_table = parameters.step.block_tables +
                  int64_t{chunk.sampler_slot} * parameters.step.block_table_stride;
  }

  __device__ bool HasRow(int32_t row) const { return first_row + row < num_chunk_rows; }
  __device__ int32_t ChunkRow(int32_t row) const {
    return min(first_row + row, num_chunk_rows - 1);
  }

  // The last position that the tile's row `row` attends.
  __device__ int32_t Position(int32_t row) const {
    return first_position + ChunkRow(row) / group_size;
  }
  // Keys that any row attends, or all rows.
  __device__ int32_t num_keys() const { return Position(kPrefillTileRows - 1) + 1; }
  __device__ int32_t num_common_keys() const { return Position(0) + 1; }

  // The first element of a row's query, and of its output.
  __device__ int64_t Offset(int32_t row, int32_t head_dim) const {
    const int32_t chunk_row = ChunkRow(row);
    const int32_t token = first_token + chunk_row / group_size;
    const int32_t head = kv_head * group_size + chunk_row % group_size;
    return (int64_t{token} * num_query_heads + head) * head_dim;
  }
};

// Scores of keys that a row does not attend become -infinity. `last_position`: of the thread's two
// rows.
template <int kNumColumns>
__device__ void MaskScores(float (&scores)[kNumColumns][4], int32_t first_key,
                           const int32_t (&last_position)[2]) {
  const int32_t lane_key = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int column = 0; column < kNumColumns; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (lane_key + column * 8 + i % 2 > last_position[i / 2]) scores[column][i] = -INFINITY;
    }
  }
}

// The softmax of a thread's two rows over the keys so far.
class RunningSoftmax {
 public:
  // Turns scores into probabilities relative to the greatest score so far. `correction` is what the
  // earlier outputs are to be multiplied with. Without kMasked every row has a key.
  template <bool kMasked, int kNumColumns>
  __device__ void Add(float (&scores)[kNumColumns][4], float scale_log2, float (&correction)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float greatest = max_[half];
#pragma unroll
      for (int column = 0; column < kNumColumns; ++column) {
        greatest = fmaxf(greatest, fmaxf(scores[column][2 * half], scores[column][2 * half + 1]));
      }
      greatest = fmaxf(greatest, __shfl_xor_sync(kFullWarp, greatest, 1));
      greatest = fmaxf(greatest, __shfl_xor_sync(kFullWarp, greatest, 2));
      float base = greatest * scale_log2;
      if (kMasked && greatest == -INFINITY) base = 0.0f;
      correction[half] = Exp2(max_[half] * scale_log2 - base);
      max_[half] = greatest;
      float sum = 0.0f;
#pragma unroll
      for (int column = 0; column < kNumColumns; ++column) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[column][i] = Exp2(scores[column][i] * scale_log2 - base);
          sum += scores[column][i];
        }
      }
      sum_[half] = sum_[half] * correction[half] + sum;
    }
  }

  // 1 / the sum of a row's probabilities.
  __device__ float InverseSum(int half) const {
    float sum = sum_[half];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    return 1.0f / sum;
  }

 private:
  float max_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {0.0f, 0.0f};  // of this lane's columns
};

template <int kNumColumns>
__device__ void Scale(float (&output)[kNumColumns][4], const float (&factors)[2]) {
#pragma unroll
  for (int column = 0; column < kNumColumns; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) output[column][i] *= factors[i / 2];
  }
}

// Probabilities as the A operands of the products with 16 keys each.
template <typename T, int kNumColumns>
__device__ void PackProbabilities(const float (&scores)[kNumColumns][4],
                                  uint32_t (&packed)[kNumColumns / 2][4]) {
#pragma unroll
  for (int column = 0; column < kNumColumns; ++column) {
    uint32_t* target = packed[column / 2] + column % 2 * 2;
    target[0] = PackPair(T(), scores[column][0], scores[column][1]);
    target[1] = PackPair(T(), scores[column][2], scores[column][3]);
  }
}

// Word i of lane l becomes word l of lane i, among four neighbouring lanes.
__device__ inline void TransposeQuad(uint32_t (&words)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2) {
    const bool is_upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      const uint32_t sent = is_upper ? words[i] : words[i + distance];
      const uint32_t received = __shfl_xor_sync(kFullWarp, sent, distance);
      if (is_upper) {
        words[i] = received;
      } else {
        words[i + distance] = received;
      }
    }
  }
}

// Writes a warp's 16 rows of outputs, the first of which is the tile's row `warp_row`, divided by
// the sums of their probabilities. A lane writes 16 bytes at a time, four lanes 64.
template <typename T, int kNumColumns>
__device__ void StoreOutput(const QueryTile& tile, int32_t warp_row, T* output,
                            const RunningSoftmax& softmax, const float (&sums)[kNumColumns][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = warp_row + lane / 4 + half * 8;
    const float factor = softmax.InverseSum(half);
    T* target = output + tile.Offset(row, kNumColumns * 8) + lane % 4 * 8;
#pragma unroll
    for (int first = 0; first < kNumColumns; first += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = sums[first + i] + 2 * half;
        words[i] = PackPair(T(), pair[0] * factor, pair[1] * factor);
      }
      TransposeQuad(words);
      if (tile.HasRow(row)) {
        *reinterpret_cast<uint4*>(target + first * 8) = {words[0], words[1], words[2], words[3]};
      }
    }
  }
}

}  // namespace tidal::cuda::prefill
