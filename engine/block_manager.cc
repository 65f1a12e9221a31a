#include "engine/block_manager.h"

#include <algorithm>

#include "engine/check.h"

namespace tidal {

BlockManager::BlockManager(int32_t num_blocks) {
  TIDAL_CHECK(num_blocks > 0, "a KV cache has at least one block");
  const auto size = static_cast<size_t>(num_blocks);
  num_references_.assign(size, 0);
  free_blocks_.reserve(size);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_blocks_.push_back(block);
  cached_.assign(size + 1, {.previous = num_blocks, .next = num_blocks});
  hash_of_.resize(size);
  found_by_.reserve(size);
}

bool BlockManager::Allocate(int32_t count, std::vector<int32_t>* block_table) {
  if (count > num_available_blocks()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t block = TakeAvailable();
    num_references_[static_cast<size_t>(block)] = 1;
    block_table->push_back(block);
  }
  return true;
}

int32_t BlockManager::CountFound(absl::Span<const BlockHash> prefix) const {
  const auto missing = std::find_if(prefix.begin(), prefix.end(), [this](const BlockHash& hash) {
    return !found_by_.contains(hash);
  });
  return static_cast<int32_t>(missing - prefix.begin());
}

std::optional<int32_t> BlockManager::AllocateAfterPrefix(absl::Span<const BlockHash> prefix,
                                                         int32_t num_blocks, int32_t num_spare,
                                                         std::vector<int32_t>* block_table) {
  TIDAL_CHECK(block_table->empty(), "a prefix begins its block table");
  TIDAL_CHECK(static_cast<int64_t>(prefix.size()) <= num_blocks, "a prefix is part of the whole");
  int32_t num_taken = num_blocks;  // of the available blocks; those found in use cost none
  for (const BlockHash& hash : prefix) {
    const auto it = found_by_.find(hash);
    if (it == found_by_.end()) break;
    block_table->push_back(it->second);
    if (num_references(it->second) > 0) --num_taken;
  }
  if (num_available_blocks() < num_taken + num_spare) {
    block_table->clear();
    return std::nullopt;
  }
  const auto num_found = static_cast<int32_t>(block_table->size());
  for (const int32_t block : *block_table) {
    if (num_references_[static_cast<size_t>(block)]++ == 0) RemoveCached(block);
  }
  const bool has_allocated = Allocate(num_blocks - num_found, block_table);
  TIDAL_CHECK(has_allocated, "what is available has been counted");
  return num_found;
}

void BlockManager::Release(std::vector<int32_t>* block_table) {
  // A block is of no use without those before it, so the last are the first to go.
  for (auto it = block_table->rbegin(); it != block_table->rend(); ++it) {
    int32_t& references = num_references_[static_cast<size_t>(*it)];
    TIDAL_CHECK(references > 0, "a block is released once for each reference");
    if (--references > 0) continue;
    if (hash_of_[static_cast<size_t>(*it)].has_value()) {
      AppendCached(*it);
    } else {
      free_blocks_.push_back(*it);
    }
  }
  block_table->clear();
}

void BlockManager::Offer(int32_t block, const BlockHash& hash) {
  TIDAL_CHECK(num_references(block) > 0, "only a block in use can be offered");
  std::optional<BlockHash>& hash_of_block = hash_of_[static_cast<size_t>(block)];
  TIDAL_CHECK(!hash_of_block.has_value() || *hash_of_block == hash, "full blocks do not change");
  if (found_by_.try_emplace(hash, block).second) hash_of_block = hash;
}

int32_t BlockManager::FlushCache() {
  const auto num_found_blocks = static_cast<int32_t>(found_by_.size());
  const int32_t anchor = num_blocks();
  while (num_cached_blocks_ > 0) {
    const int32_t block = cached_[static_cast<size_t>(anchor)].next;
    RemoveCached(block);
    free_blocks_.push_back(block);
  }
  found_by_.clear();
  found_by_.reserve(hash_of_.size());
  std::fill(hash_of_.begin(), hash_of_.end(), std::nullopt);
  return num_found_blocks;
}

void BlockManager::AppendCached(int32_t block) {
  const int32_t anchor = num_blocks();
  const int32_t last = cached_[static_cast<size_t>(anchor)].previous;
  cached_[static_cast<size_t>(block)] = {.previous = last, .next = anchor};
  cached_[static_cast<size_t>(last)].next = block;
  cached_[static_cast<size_t>(anchor)].previous = block;
  ++num_cached_blocks_;
}

void BlockManager::RemoveCached(int32_t block) {
  const Link link = cached_[static_cast<size_t>(block)];
  cached_[static_cast<size_t>(link.previous)].next = link.next;
  cached_[static_cast<size_t>(link.next)].previous = link.previous;
  --num_cached_blocks_;
}

int32_t BlockManager::TakeAvailable() {
  if (!free_blocks_.empty()) {
    const int32_t block = free_blocks_.back();
    free_blocks_.pop_back();
    return block;
  }
  const int32_t block = cached_[static_cast<size_t>(num_blocks())].next;
  RemoveCached(block);
  found_by_.erase(*hash_of_[static_cast<size_t>(block)]);
  hash_of_[static_cast<size_t>(block)].reset();
  return block;
}

}  // namespace tidal
