#include "engine/block_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "tests/engine/random_walk.h"

namespace tidal {
namespace {

using ::testing::ElementsAre;

BlockHash Hash(uint64_t number) { return {.low = number, .high = 0}; }

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

TEST(BlockManagerDeathTest, AbortsWhenABlockIsReleasedTwice) {
  BlockManager blocks(2);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(1, &table));
  std::vector<int32_t> copy = table;
  blocks.Release(&table);
  EXPECT_DEATH(blocks.Release(&copy), "released once for each reference");
}

// Allocates a table of blocks offered as the hashes first, first + 1, ...
std::vector<int32_t> Fill(BlockManager* blocks, uint64_t first, int32_t count) {
  std::vector<int32_t> table;
  EXPECT_TRUE(blocks->Allocate(count, &table));
  for (int32_t i = 0; i < count; ++i) {
    blocks->Offer(table[static_cast<size_t>(i)], Hash(first + static_cast<uint64_t>(i)));
  }
  return table;
}

TEST(BlockManagerTest, FindsOfferedBlocksWhileTheyAreUsedAndAfterwards) {
  BlockManager blocks(8);
  std::vector<int32_t> first = Fill(&blocks, 1, 3);
  const std::vector<int32_t> offered = first;
  std::vector<int32_t> second;
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(1), Hash(2), Hash(9)}, 4, 0, &second), 2);
  EXPECT_EQ(second[0], offered[0]);
  EXPECT_EQ(second[1], offered[1]);
  EXPECT_EQ(blocks.num_references(offered[0]), 2);
  EXPECT_EQ(blocks.num_used_blocks(), 5);
  blocks.Release(&first);
  blocks.Release(&second);
  EXPECT_EQ(blocks.num_used_blocks(), 0);
  EXPECT_EQ(blocks.num_cached_blocks(), 3);
  EXPECT_EQ(blocks.num_free_blocks(), 5);
  std::vector<int32_t> third;
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(1), Hash(2), Hash(3)}, 4, 0, &third), 3);
  EXPECT_EQ(third[2], offered[2]);
  EXPECT_EQ(blocks.num_cached_blocks(), 0);
}

TEST(BlockManagerTest, BlocksThatWereNotOfferedAreFreeAfterwards) {
  BlockManager blocks(4);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(3, &table));
  blocks.Release(&table);
  EXPECT_EQ(blocks.num_free_blocks(), 4);
}

TEST(BlockManagerTest, TakesFreeBlocksFirstThenThoseUnusedForLongest) {
  BlockManager blocks(6);
  std::vector<int32_t> older = Fill(&blocks, 1, 2);
  std::vector<int32_t> newer = Fill(&blocks, 11, 2);
  const std::vector<int32_t> ids = older;
  blocks.Release(&older);
  blocks.Release(&newer);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(2, &table));
  EXPECT_EQ(blocks.num_cached_blocks(), 4) << "two were free";
  table.clear();
  ASSERT_TRUE(blocks.Allocate(2, &table));
  EXPECT_THAT(table, ElementsAre(ids[1], ids[0]))
      << "the end of a prefix goes before its beginning";
  std::vector<int32_t> found;
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(11), Hash(12)}, 2, 0, &found), 2);
}

TEST(BlockManagerTest, TheFirstOfTwoEqualBlocksStaysTheOneThatIsFound) {
  BlockManager blocks(4);
  std::vector<int32_t> first = Fill(&blocks, 1, 1);
  std::vector<int32_t> second = Fill(&blocks, 1, 1);
  const int32_t id = first[0];
  blocks.Release(&second);
  EXPECT_EQ(blocks.num_free_blocks(), 3) << "the second is of no use";
  std::vector<int32_t> found;
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(1)}, 1, 0, &found), 1);
  EXPECT_EQ(found[0], id);
}

TEST(BlockManagerTest, CountsCachedBlocksOfThePrefixAsTaken) {
  BlockManager blocks(4);
  std::vector<int32_t> table = Fill(&blocks, 1, 3);
  blocks.Release(&table);
  std::vector<int32_t> found;
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(1), Hash(2), Hash(3)}, 4, 1, &found), std::nullopt);
  EXPECT_TRUE(found.empty());
  EXPECT_EQ(blocks.num_cached_blocks(), 3);
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(1), Hash(2), Hash(3)}, 3, 1, &found), 3);
}

TEST(BlockManagerTest, FlushForgetsWhatIsCachedAndWhatIsUsed) {
  BlockManager blocks(8);
  std::vector<int32_t> used = Fill(&blocks, 1, 2);
  std::vector<int32_t> cached = Fill(&blocks, 11, 3);
  blocks.Release(&cached);
  EXPECT_EQ(blocks.FlushCache(), 5);
  EXPECT_EQ(blocks.num_used_blocks(), 2);
  EXPECT_EQ(blocks.num_free_blocks(), 6);
  std::vector<int32_t> found;
  EXPECT_EQ(blocks.AllocateAfterPrefix({Hash(1)}, 1, 0, &found), 0);
  blocks.Release(&used);
  blocks.Release(&found);
  EXPECT_EQ(blocks.num_free_blocks(), 8);
  EXPECT_EQ(blocks.FlushCache(), 0);
}

// The same operations on a block manager and on a plain model of what it promises.
class BlockManagerWalk {
 public:
  explicit BlockManagerWalk(uint32_t seed) : random_(seed) {}

  void Step() {
    const auto action = random_() % 100;
    if (action < 30) {
      Admit();
    } else if (action < 60) {
      Grow();
    } else if (action < 80) {
      OfferNext();
    } else if (action < 99 || random_() % 20 > 0) {
      ReleaseOne();
    } else {
      Flush();
    }
  }

  void CheckBooks() const {
    std::map<int32_t, int32_t> references;
    for (const Table& table : tables_) {
      for (const int32_t block : table.blocks) ++references[block];
    }
    int32_t num_cached = 0;
    for (int32_t block = 0; block < kNumBlocks; ++block) {
      const auto it = references.find(block);
      ASSERT_EQ(blocks_.num_references(block), it == references.end() ? 0 : it->second);
      const bool is_findable = hash_of_.contains(block);
      if (it == references.end() && is_findable) ++num_cached;
    }
    ASSERT_EQ(blocks_.num_used_blocks(), static_cast<int32_t>(references.size()));
    ASSERT_EQ(blocks_.num_cached_blocks(), num_cached);
    ASSERT_EQ(blocks_.num_free_blocks(), kNumBlocks - num_cached - blocks_.num_used_blocks());
    ASSERT_EQ(unused_.size(), static_cast<size_t>(num_cached));
  }

  void ReleaseAll() {
    while (!tables_.empty()) ReleaseOne();
    EXPECT_EQ(blocks_.num_used_blocks(), 0);
    EXPECT_EQ(blocks_.FlushCache(), static_cast<int32_t>(unused_.size()));
    EXPECT_EQ(blocks_.num_free_blocks(), kNumBlocks);
  }

  int64_t num_found() const { return num_found_; }
  int64_t num_evicted() const { return num_evicted_; }

 private:
  static constexpr int32_t kNumBlocks = 24;

  // A holder, and the contents its blocks have or will have: hashes of a small tree of prompts.
  struct Table {
    std::vector<int32_t> blocks;
    std::vector<uint64_t> contents;
    size_t num_offered = 0;
  };

  // Hashes of a path down a tree in which every node has two children.
  std::vector<uint64_t> RandomPath(size_t length) {
    std::vector<uint64_t> path;
    uint64_t node = 1;
    for (size_t i = 0; i < length; ++i) path.push_back(node = node * 2 + random_() % 2);
    return path;
  }

  void Admit() {
    Table table;
    table.contents = RandomPath(1 + random_() % 12);
    const auto num_blocks = static_cast<int32_t>(table.contents.size());
    const auto num_spare = static_cast<int32_t>(random_() % 4);
    std::vector<BlockHash> prefix;
    for (const uint64_t hash : table.contents) prefix.push_back(Hash(hash));
    size_t num_expected = 0;
    int32_t num_taken = num_blocks;
    for (; num_expected < prefix.size(); ++num_expected) {
      const auto it = block_of_.find(table.contents[num_expected]);
      if (it == block_of_.end()) break;
      if (blocks_.num_references(it->second) > 0) --num_taken;
    }
    const bool fits = blocks_.num_available_blocks() >= num_taken + num_spare;
    const std::optional<int32_t> num_found =
        blocks_.AllocateAfterPrefix(prefix, num_blocks, num_spare, &table.blocks);
    ASSERT_EQ(num_found.has_value(), fits);
    if (!fits) return;
    ASSERT_EQ(static_cast<size_t>(*num_found), num_expected) << "the longest that is there";
    num_found_ += *num_found;
    for (size_t i = 0; i < num_expected; ++i) {
      ASSERT_EQ(table.blocks[i], block_of_.at(table.contents[i]));
      std::erase(unused_, table.blocks[i]);
    }
    for (size_t i = num_expected; i < table.blocks.size(); ++i) NoteTaken(table.blocks[i]);
    table.num_offered = num_expected;
    tables_.push_back(std::move(table));
  }

  void Grow() {
    if (tables_.empty()) return;
    Table& table = tables_[random_() % tables_.size()];
    const bool has_room = blocks_.num_available_blocks() > 0;
    ASSERT_EQ(blocks_.Allocate(1, &table.blocks), has_room);
    if (!has_room) return;
    NoteTaken(table.blocks.back());
    table.contents.push_back(table.contents.back() * 2 + random_() % 2);
  }

  // A block has been taken for new contents: a free one, or that which is unused for longest.
  void NoteTaken(int32_t block) {
    const auto it = hash_of_.find(block);
    if (it == hash_of_.end()) return;
    ASSERT_EQ(unused_.front(), block);
    unused_.pop_front();
    block_of_.erase(it->second);
    hash_of_.erase(it);
    ++num_evicted_;
  }

  void OfferNext() {
    if (tables_.empty()) return;
    Table& table = tables_[random_() % tables_.size()];
    if (table.num_offered == table.blocks.size()) return;
    const int32_t block = table.blocks[table.num_offered];
    const uint64_t contents = table.contents[table.num_offered++];
    blocks_.Offer(block, Hash(contents));
    if (block_of_.try_emplace(contents, block).second) hash_of_[block] = contents;
  }

  void ReleaseOne() {
    if (tables_.empty()) return;
    const size_t index = random_() % tables_.size();
    std::vector<int32_t> released = tables_[index].blocks;
    blocks_.Release(&tables_[index].blocks);
    tables_.erase(tables_.begin() + static_cast<std::ptrdiff_t>(index));
    std::reverse(released.begin(), released.end());
    for (const int32_t block : released) {
      if (blocks_.num_references(block) == 0 && hash_of_.contains(block)) unused_.push_back(block);
    }
  }

  void Flush() {
    ASSERT_EQ(blocks_.FlushCache(), static_cast<int32_t>(hash_of_.size()));
    hash_of_.clear();
    block_of_.clear();
    unused_.clear();
  }

  std::mt19937 random_;
  BlockManager blocks_{kNumBlocks};
  std::vector<Table> tables_;
  std::map<int32_t, uint64_t> hash_of_;   // of findable blocks
  std::map<uint64_t, int32_t> block_of_;  // the inverse
  std::deque<int32_t> unused_;            // findable blocks that nobody holds, oldest first
  int64_t num_found_ = 0;
  int64_t num_evicted_ = 0;
};

TEST(BlockManagerTest, KeepsItsBooksThroughARandomWalk) {
  BlockManagerWalk walk(7);
  const int64_t num_steps = NumRandomWalkSteps(100'000);
  for (int64_t step = 0; step < num_steps; ++step) {
    walk.Step();
    walk.CheckBooks();
    ASSERT_FALSE(HasFatalFailure()) << "step " << step;
  }
  walk.ReleaseAll();
  EXPECT_GT(walk.num_found(), num_steps / 100);
  EXPECT_GT(walk.num_evicted(), num_steps / 100);
}

}  // namespace
}  // namespace tidal
