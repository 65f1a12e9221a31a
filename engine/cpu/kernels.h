// The innermost loops of the CPU backend. They are compiled several times, for generic x86-64, for
// AVX2 with FMA and for AVX-512, and BestKernels picks a table once at start-up. All arithmetic is
// float32. Every output is computed by the same sequence of operations whatever else is in the
// call, so a row's result does not depend on the rows beside it. Stateless and thread-safe.
#pragma once

#include <cstdint>

namespace tidal::cpu {

// Outputs of a packed matrix are stored in panels of this many; see PackedMatrix.
inline constexpr int kPanelWidth = 32;

// Positions of a KV tile in prefill attention; tiles start at multiples of it.
inline constexpr int kKvTile = 128;

// The most rows that a kernel works on at once.
inline constexpr int kMaxTileRows = 12;

// y[r, o] = sum_i x[r, i] * w[o, i] (+ bias[o]) (+ y[r, o]).
struct MatmulArguments {
  const float* x;  // [num_rows, num_inputs], rows x_stride apart
  int64_t x_stride;
  int num_rows;
  int num_inputs;
  const float* panels;  // [ceil(num_outputs / kPanelWidth)][num_inputs][kPanelWidth]
  int num_outputs;
  const float* bias;  // [num_outputs] or null
  bool accumulate;    // add to what y holds
  float* y;           // [num_rows, num_outputs], rows y_stride apart
  int64_t y_stride;
};

// One tile of KV against the rows (queries times heads of a group) of one query tile: an update of
// the running softmax (Milakov and Gimelshein, arXiv 1805.02867) and of the unnormalised output.
struct PrefillTileArguments {
  const float* queries;  // [num_rows][head_dim], scaled by 1 / sqrt(head_dim)
  const int32_t* ends;   // [num_rows] how many of the tile's positions a row attends; may be <= 0
  int num_rows;
  int head_dim;
  int padded_head_dim;  // head_dim rounded up to kPanelWidth
  int num_positions;    // of the tile that any row attends, 1..kKvTile
  const float* keys;    // [head_dim][kKvTile], transposed
  const float* values;  // [num_positions][padded_head_dim]
  float* scores;        // [kMaxTileRows][kKvTile] scratch
  float* output;        // [num_rows][padded_head_dim]
  float* max;           // [num_rows], -infinity before the first tile
  float* sum;           // [num_rows]
};

// Where one KV head's rows of one layer lie.
struct KvHeadView {
  const float* keys;     // block 0's first key; a row is head_dim floats, rows are contiguous
  int64_t block_stride;  // floats from one block to the next
  int64_t value_offset;  // floats from a key to its value
};

// A run of a decode's attention: num_heads query heads over num_positions rows of one KV head.
struct DecodeRunArguments {
  const float* queries;  // [num_heads][head_dim], scaled by 1 / sqrt(head_dim)
  int num_heads;
  int head_dim;
  KvHeadView kv;
  const int32_t* block_table;
  // The positions are first_position + i where `positions` is null; first_position is then a
  // multiple of the block size. Otherwise they are positions[i].
  int32_t first_position;
  const int32_t* positions;
  int num_positions;
  float* scores;  // [num_heads][scores_stride] out, raw scores; may be `probabilities`
  int64_t scores_stride;
  float* probabilities;  // [num_heads][probabilities_stride] scratch; strides >= num_positions
  int64_t probabilities_stride;  // rounded up to 16
  float* output;                 // [num_heads][head_dim] unnormalised
  float* max;                    // [num_heads]
  float* sum;                    // [num_heads]
};

// Quest's upper bound of a query's scores against each block of keys: sum_d max(q_d * min_d,
// q_d * max_d).
struct BlockBoundArguments {
  const float* query;  // [head_dim]
  int head_dim;
  const float* bounds;   // block 0's [2][head_dim]: the keys' minima, then their maxima
  int64_t block_stride;  // floats from one block's to the next one's
  const int32_t* block_table;
  int num_blocks;
  float* scores;  // [num_blocks] out
};

struct Kernels {
  const char* instruction_set;

  void (*matmul)(const MatmulArguments&);

  // y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv 1910.07467).
  void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* y);

  // gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i].
  void (*silu_multiply)(float* gate, const float* up, int size);

  // sum_i exp(x[i] - max).
  float (*sum_exp)(const float* x, int64_t size, float max);

  // pooled[i] (+)= exp(x[i] - max) * factor.
  void (*pool_probabilities)(const float* x, int64_t size, float max, float factor, bool accumulate,
                             float* pooled);

  // A block's keys, [16][head_dim], become columns of a tile, [head_dim][kKvTile].
  void (*transpose_keys)(const float* block, int head_dim, float* tile);

  void (*prefill_tile)(const PrefillTileArguments&);
  void (*decode_run)(const DecodeRunArguments&);

  void (*score_blocks)(const BlockBoundArguments&);

  // The minima and maxima, [2][head_dim], of num_keys >= 1 keys, [num_keys][head_dim].
  void (*bound_keys)(const float* keys, int num_keys, int head_dim, float* bounds);

  // y[i] = max(x[i], y[i]).
  void (*max_into)(const float* x, int64_t size, float* y);

  // Scores, in place, become integers of the same order; -0 and +0 become equal.
  void (*to_ordered_keys)(float* scores, int64_t size);

  // How many keys are at least `threshold`.
  int64_t (*count_at_least)(const int32_t* keys, int64_t size, int32_t threshold);
};

// The best table for this processor.
const Kernels& BestKernels();

// Tables by name: "generic", "avx2", "avx512"; null where the processor cannot run it.
const Kernels* FindKernels(const char* instruction_set);

}  // namespace tidal::cpu
