// Which blocks of the KV cache are free, and how many sequences hold each that is not. It knows ids
// only; the memory behind them is the backend's. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/attention.h"

namespace tidal {

// Blocks that hold `num_tokens` tokens.
constexpr int32_t NumBlocksFor(int64_t num_tokens) {
  return static_cast<int32_t>((num_tokens + kBlockSize - 1) / kBlockSize);
}

class BlockManager {
 public:
  // Blocks 0..num_blocks - 1, all free.
  explicit BlockManager(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(num_references_.size()); }
  int32_t num_free_blocks() const { return static_cast<int32_t>(free_blocks_.size()); }
  int32_t num_used_blocks() const { return num_blocks() - num_free_blocks(); }

  // Appends `count` free blocks, each with one reference, to *block_table; or, where there are not
  // so many, changes nothing and returns false.
  [[nodiscard]] bool Allocate(int32_t count, std::vector<int32_t>* block_table);

  // One more holder of a block that is in use.
  void AddReference(int32_t block);

  // Drops one reference to each; blocks without one are free. Empties *block_table.
  void Release(std::vector<int32_t>* block_table);

  // References to a block; 0 = free.
  int32_t num_references(int32_t block) const {
    return num_references_[static_cast<size_t>(block)];
  }

 private:
  std::vector<int32_t> num_references_;  // [num_blocks]
  std::vector<int32_t> free_blocks_;     // a stack: the block freed last is used first
};

}  // namespace tidal
