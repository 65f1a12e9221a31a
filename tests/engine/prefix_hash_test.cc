#include "engine/prefix_hash.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "engine/backend/attention.h"

namespace tidal {
namespace {

constexpr SipHashKey kReferenceKey{.low = 0x0706050403020100u, .high = 0x0f0e0d0c0b0a0908u};

std::string HexOf(const BlockHash& hash) {
  std::string bytes;
  for (const uint64_t word : {hash.low, hash.high}) {
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(word >> (8 * i)));
  }
  return absl::BytesToHexString(bytes);
}

// Bytes 0, 1, .. length - 1, as in the vectors of the function's authors.
std::string CountingBytes(size_t length) {
  std::string bytes(length, '\0');
  std::iota(bytes.begin(), bytes.end(), '\0');
  return bytes;
}

// As OpenSSL computes them: openssl mac -macopt size:16 -macopt hexkey:0001..0f SIPHASH.
TEST(SipHash128Test, AgreesWithAnotherImplementation) {
  const auto hash = [](size_t length) {
    return HexOf(SipHash128(kReferenceKey, CountingBytes(length)));
  };
  EXPECT_EQ(hash(0), "a3817f04ba25a8e66df67214c7550293");
  EXPECT_EQ(hash(1), "da87c1d86b99af44347659119b22fc45");
  EXPECT_EQ(hash(8), "3b62a9ba6258f5610f83e264f31497b4");
  EXPECT_EQ(hash(63), "5150d1772f50834a503e069a973fbd7c");
}

TEST(PrefixHasherTest, AHashStandsForTokensAndAllBeforeThem) {
  const PrefixHasher hasher(kReferenceKey);
  const std::vector<int32_t> tokens(kBlockSize, 7);
  std::vector<int32_t> other = tokens;
  other.back() = 8;
  const BlockHash root = hasher.Root("");
  const BlockHash first = hasher.Next(root, tokens);
  EXPECT_EQ(hasher.Next(root, tokens), first);
  EXPECT_FALSE(hasher.Next(root, other) == first);
  EXPECT_FALSE(hasher.Next(first, tokens) == first);
  EXPECT_FALSE(hasher.Next(hasher.Next(root, other), tokens) == hasher.Next(first, tokens));
}

TEST(PrefixHasherTest, SaltsHaveRootsOfTheirOwn) {
  const PrefixHasher hasher(kReferenceKey);
  EXPECT_EQ(hasher.Root("a"), hasher.Root("a"));
  EXPECT_FALSE(hasher.Root("a") == hasher.Root("b"));
  EXPECT_FALSE(hasher.Root("") == hasher.Root(std::string(1, '\0')));
}

TEST(PrefixHasherTest, EachServerHasAKeyOfItsOwn) {
  EXPECT_FALSE(PrefixHasher().Root("") == PrefixHasher().Root(""));
}

}  // namespace
}  // namespace tidal
