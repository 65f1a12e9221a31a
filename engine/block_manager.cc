#include "engine/block_manager.h"

#include "engine/check.h"

namespace tidal {

BlockManager::BlockManager(int32_t num_blocks) {
  TIDAL_CHECK(num_blocks > 0, "a KV cache has at least one block");
  num_references_.assign(static_cast<size_t>(num_blocks), 0);
  free_blocks_.reserve(static_cast<size_t>(num_blocks));
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_blocks_.push_back(block);
}

bool BlockManager::Allocate(int32_t count, std::vector<int32_t>* block_table) {
  if (count > num_free_blocks()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t block = free_blocks_.back();
    free_blocks_.pop_back();
    num_references_[static_cast<size_t>(block)] = 1;
    block_table->push_back(block);
  }
  return true;
}

void BlockManager::AddReference(int32_t block) {
  TIDAL_CHECK(num_references(block) > 0, "only a block in use can be shared");
  ++num_references_[static_cast<size_t>(block)];
}

void BlockManager::Release(std::vector<int32_t>* block_table) {
  for (const int32_t block : *block_table) {
    int32_t& references = num_references_[static_cast<size_t>(block)];
    TIDAL_CHECK(references > 0, "a block is released once for each reference");
    if (--references == 0) free_blocks_.push_back(block);
  }
  block_table->clear();
}

}  // namespace tidal
