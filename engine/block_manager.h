// Which blocks of the KV cache are free, how many sequences hold each that is not, and which of
// them can be found by their contents: the prefix cache. It knows ids only; the memory behind them
// is the backend's. Engine thread only.
//
// A block is in one of three states:
//   used    one or more block tables hold it
//   cached  no table holds it, but its contents can still be found, until the block is needed
//   free    it holds nothing
// A block is found by the hash of its contents (prefix_hash.h), from Offer until its contents are
// replaced or flushed, while used or cached. Only full blocks that will not be written any more may
// be offered.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "engine/backend/attention.h"
#include "engine/prefix_hash.h"

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
  int32_t num_used_blocks() const { return num_blocks() - num_available_blocks(); }
  int32_t num_cached_blocks() const { return num_cached_blocks_; }
  int32_t num_free_blocks() const { return static_cast<int32_t>(free_blocks_.size()); }
  // Cached and free ones: what Allocate can give.
  int32_t num_available_blocks() const { return num_cached_blocks_ + num_free_blocks(); }

  // Appends `count` blocks, each with one reference, to *block_table: free ones first, then the
  // cached ones that have been unused for longest, whose contents are lost. Where there are not so
  // many, changes nothing and returns false.
  [[nodiscard]] bool Allocate(int32_t count, std::vector<int32_t>* block_table);

  // How many leading blocks of a prefix can be found.
  int32_t CountFound(absl::Span<const BlockHash> prefix) const;

  // Fills the empty *block_table with `num_blocks` blocks: the longest beginning of `prefix`, at
  // most num_blocks hashes, that can be found, one more reference to each of its blocks, and then
  // new blocks. Returns the number found; or, where fewer than `num_spare` available blocks would
  // be left, changes nothing and returns nullopt.
  [[nodiscard]] std::optional<int32_t> AllocateAfterPrefix(absl::Span<const BlockHash> prefix,
                                                           int32_t num_blocks, int32_t num_spare,
                                                           std::vector<int32_t>* block_table);

  // Drops one reference to each; blocks without one are cached where they have been offered, the
  // table's last as the oldest, and free otherwise. Empties *block_table.
  void Release(std::vector<int32_t>* block_table);

  // Lets a used block be found by `hash`; where another one is found by it already, nothing
  // changes.
  void Offer(int32_t block, const BlockHash& hash);

  // Forgets all contents, so that cached blocks are free. Returns the number of blocks that could
  // be found until now.
  int32_t FlushCache();

  // References to a block; 0 = cached or free.
  int32_t num_references(int32_t block) const {
    return num_references_[static_cast<size_t>(block)];
  }

 private:
  // Neighbours in the ring of cached blocks; element num_blocks is its anchor.
  struct Link {
    int32_t previous;
    int32_t next;
  };

  void AppendCached(int32_t block);
  void RemoveCached(int32_t block);
  int32_t TakeAvailable();

  std::vector<int32_t> num_references_;               // [num_blocks]
  std::vector<int32_t> free_blocks_;                  // a stack: the block freed last is used first
  std::vector<Link> cached_;                          // [num_blocks + 1] unused for longest first
  int32_t num_cached_blocks_ = 0;                     // in the ring, without the anchor
  std::vector<std::optional<BlockHash>> hash_of_;     // [num_blocks] by which it is found, or none
  absl::flat_hash_map<BlockHash, int32_t> found_by_;  // the inverse of hash_of_
};

}  // namespace tidal
