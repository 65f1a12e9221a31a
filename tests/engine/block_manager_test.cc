#include "engine/block_manager.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace tidal {
namespace {

TEST(BlockManagerTest, CountsBlocksForTokens) {
  EXPECT_EQ(NumBlocksFor(0), 0);
  EXPECT_EQ(NumBlocksFor(1), 1);
  EXPECT_EQ(NumBlocksFor(16), 1);
  EXPECT_EQ(NumBlocksFor(17), 2);
}

TEST(BlockManagerTest, AllocatesAllOrNothing) {
  BlockManager blocks(4);
  std::vector<int32_t> table;
  EXPECT_TRUE(blocks.Allocate(3, &table));
  EXPECT_FALSE(blocks.Allocate(2, &table));
  EXPECT_EQ(table.size(), 3u);
  EXPECT_EQ(blocks.num_free_blocks(), 1);
}

TEST(BlockManagerTest, FreesASharedBlockWithItsLastReference) {
  BlockManager blocks(2);
  std::vector<int32_t> first;
  ASSERT_TRUE(blocks.Allocate(1, &first));
  std::vector<int32_t> second = first;
  blocks.AddReference(first[0]);
  blocks.Release(&first);
  EXPECT_EQ(blocks.num_used_blocks(), 1);
  blocks.Release(&second);
  EXPECT_EQ(blocks.num_used_blocks(), 0);
}

TEST(BlockManagerDeathTest, AbortsWhenABlockIsReleasedTwice) {
  BlockManager blocks(2);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(1, &table));
  std::vector<int32_t> copy = table;
  blocks.Release(&table);
  EXPECT_DEATH(blocks.Release(&copy), "released once for each reference");
}

TEST(BlockManagerTest, KeepsItsBooksThroughARandomWalk) {
  BlockManager blocks(64);
  std::mt19937 random(7);
  std::vector<std::vector<int32_t>> tables;
  for (int step = 0; step < 200'000; ++step) {
    const auto action = random() % 3;
    if (action == 0) {
      std::vector<int32_t> table;
      const auto count = static_cast<int32_t>(random() % 9);
      const int32_t num_free = blocks.num_free_blocks();
      ASSERT_EQ(blocks.Allocate(count, &table), count <= num_free);
      if (!table.empty()) tables.push_back(table);
    } else if (!tables.empty()) {
      const size_t index = random() % tables.size();
      if (action == 1 && tables.size() < 32) {
        for (const int32_t block : tables[index]) blocks.AddReference(block);
        tables.push_back(tables[index]);
      } else {
        blocks.Release(&tables[index]);
        tables.erase(tables.begin() + static_cast<std::ptrdiff_t>(index));
      }
    }
    std::set<int32_t> held;
    for (const auto& table : tables) held.insert(table.begin(), table.end());
    ASSERT_EQ(blocks.num_used_blocks(), static_cast<int32_t>(held.size()));
  }
  for (auto& table : tables) blocks.Release(&table);
  EXPECT_EQ(blocks.num_used_blocks(), 0);
}

}  // namespace
}  // namespace tidal
