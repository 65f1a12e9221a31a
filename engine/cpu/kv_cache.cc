#include "engine/cpu/kv_cache.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal::cpu {

KvCache::KvCache(const ModelShape& shape)
    : num_layers_(shape.num_layers), num_kv_heads_(shape.num_kv_heads), head_dim_(shape.head_dim) {}

int64_t KvCache::block_size_bytes() const {
  return num_layers_ * (block_floats() + bounds_block_floats()) *
         static_cast<int64_t>(sizeof(float));
}

absl::Status KvCache::Allocate(int32_t num_blocks) {
  constexpr int32_t kMaxBlocks = std::numeric_limits<int32_t>::max() / kBlockSize;
  if (num_blocks < 1 || num_blocks > kMaxBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_blocks is ", num_blocks, ", must be in 1..", kMaxBlocks));
  }
  if (num_blocks_ != 0) return absl::InvalidArgumentError("the KV cache is allocated already");
  Arena count;
  num_blocks_ = num_blocks;
  LayOut(&count);
  absl::StatusOr<Arena> arena =
      Arena::Allocate(count.used_bytes(), /*commit=*/false, "the KV cache");
  if (!arena.ok()) {
    num_blocks_ = 0;
    return arena.status();
  }
  arena_ = *std::move(arena);
  LayOut(&arena_);
  return absl::OkStatus();
}

void KvCache::LayOut(Arena* arena) {
  floats_ = arena->Take<float>(num_layers_ * layer_floats());
  bounds_ = arena->Take<float>(num_layers_ * bounds_layer_floats());
}

void KvCache::Write(int32_t layer, int32_t slot, const float* keys, const float* values) {
  const int64_t block = slot / kBlockSize;
  const int64_t offset = slot % kBlockSize * head_dim_;
  float* key = floats_.data() + layer * layer_floats() + block * block_floats() + offset;
  for (int32_t head = 0; head < num_kv_heads_; ++head) {
    std::copy_n(keys + head * head_dim_, head_dim_, key);
    std::copy_n(values + head * head_dim_, head_dim_, key + value_offset());
    key += head_floats();
  }
}

void KvCache::UpdateBounds(const Kernels& kernels, int32_t layer, int32_t block,
                           int32_t num_tokens) {
  const float* keys = floats_.data() + layer * layer_floats() + block * block_floats();
  float* bounds = bounds_.data() + layer * bounds_layer_floats() + block * bounds_block_floats();
  for (int32_t head = 0; head < num_kv_heads_; ++head) {
    kernels.bound_keys(keys + head * head_floats(), num_tokens, head_dim_,
                       bounds + head * bounds_head_floats());
  }
}

const float* KvCache::Bounds(int32_t layer, int32_t kv_head) const {
  return bounds_.data() + layer * bounds_layer_floats() + kv_head * bounds_head_floats();
}

KvHeadView KvCache::Head(int32_t layer, int32_t kv_head) const {
  return {floats_.data() + layer * layer_floats() + kv_head * head_floats(), block_floats(),
          value_offset()};
}

}  // namespace tidal::cpu
