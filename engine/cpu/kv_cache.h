// The KV cache: one float32 array [layer][block][K|V][kv_head][16 tokens][head_dim], and the bounds
// of each block's keys, [layer][block][kv_head][minima|maxima][head_dim], a sixteenth of its size.
// A slot is a token's place, block * kBlockSize + offset. Written by AttentionInput, read by
// attention; the stages' order keeps them apart.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/backend/attention.h"
#include "engine/backend/model_shape.h"
#include "engine/cpu/arena.h"
#include "engine/cpu/kernels.h"

namespace tidal::cpu {

class KvCache {
 public:
  explicit KvCache(const ModelShape& shape);

  // Bytes of one block in all layers.
  int64_t block_size_bytes() const;

  // INVALID_ARGUMENT for a count below 1 or a second call, RESOURCE_EXHAUSTED where it does not
  // fit.
  absl::Status Allocate(int32_t num_blocks);

  int32_t num_blocks() const { return num_blocks_; }
  int64_t size_bytes() const { return num_blocks_ * block_size_bytes(); }

  // Writes a token's keys and values, [num_kv_heads][head_dim] each.
  void Write(int32_t layer, int32_t slot, const float* keys, const float* values);

  // Makes a block's bounds those of its first `num_tokens` tokens, for all heads.
  void UpdateBounds(const Kernels& kernels, int32_t layer, int32_t block, int32_t num_tokens);

  KvHeadView Head(int32_t layer, int32_t kv_head) const;

  // Block 0's bounds of a head, and the floats from one block's to the next one's.
  const float* Bounds(int32_t layer, int32_t kv_head) const;
  int64_t bounds_block_floats() const { return num_kv_heads_ * bounds_head_floats(); }

 private:
  void LayOut(Arena* arena);
  int64_t head_floats() const { return int64_t{kBlockSize} * head_dim_; }
  int64_t value_offset() const { return num_kv_heads_ * head_floats(); }
  int64_t block_floats() const { return 2 * value_offset(); }
  int64_t layer_floats() const { return num_blocks_ * block_floats(); }
  int64_t bounds_head_floats() const { return 2 * int64_t{head_dim_}; }
  int64_t bounds_layer_floats() const { return num_blocks_ * bounds_block_floats(); }

  int32_t num_layers_;
  int32_t num_kv_heads_;
  int32_t head_dim_;
  int32_t num_blocks_ = 0;
  Arena arena_;
  absl::Span<float> floats_;
  absl::Span<float> bounds_;
};

}  // namespace tidal::cpu
