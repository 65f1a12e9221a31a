#include "engine/cpu/memory.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "engine/cpu/arena.h"
#include "gtest/gtest.h"

namespace tidal::cpu {
namespace {

TEST(MemoryTest, ThisMachineHasSome) {
  EXPECT_GT(AvailableMemoryBytes(), int64_t{1} << 20);
  EXPECT_LT(AvailableMemoryBytes(), std::numeric_limits<int64_t>::max());
}

TEST(ArenaTest, CountsWhatItLaterHolds) {
  const auto lay_out = [](Arena* arena) {
    arena->Take<float>(3);
    return arena->Take<int32_t>(1000);
  };
  Arena count;
  EXPECT_TRUE(lay_out(&count).empty());
  auto arena = Arena::Allocate(count.used_bytes(), /*commit=*/true, "a test");
  ASSERT_TRUE(arena.ok());
  const absl::Span<int32_t> elements = lay_out(&*arena);
  EXPECT_EQ(elements.size(), 1000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(elements.data()) % 64, 0u);
  EXPECT_TRUE(std::all_of(elements.begin(), elements.end(), [](int32_t e) { return e == 0; }));
  EXPECT_EQ(arena->used_bytes(), count.used_bytes());
}

TEST(ArenaTest, NamesNeededAndAvailableBytes) {
  const auto arena = Arena::Allocate(int64_t{1} << 60, /*commit=*/false, "a test");
  EXPECT_EQ(arena.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(arena.status().message().find("a test needs 1152921504606846976 bytes"),
            absl::string_view::npos);
  EXPECT_NE(arena.status().message().find("are available"), absl::string_view::npos);
}

}  // namespace
}  // namespace tidal::cpu
