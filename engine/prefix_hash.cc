#include "engine/prefix_hash.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <random>

#include "engine/backend/attention.h"
#include "engine/check.h"

namespace tidal {
namespace {

static_assert(std::endian::native == std::endian::little, "words are read as they lie in memory");

struct SipState {
  uint64_t v0;
  uint64_t v1;
  uint64_t v2;
  uint64_t v3;

  void Round() {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }
  void Absorb(uint64_t word) {
    v3 ^= word;
    Round();
    Round();
    v0 ^= word;
  }
  uint64_t Squeeze() {
    for (int i = 0; i < 4; ++i) Round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

uint64_t RandomWord(std::random_device* device) {
  return (uint64_t{(*device)()} << 32) | (*device)();
}

}  // namespace

BlockHash SipHash128(const SipHashKey& key, std::string_view bytes) {
  SipState state{key.low ^ 0x736f6d6570736575u, key.high ^ 0x646f72616e646f6du ^ 0xeeu,
                 key.low ^ 0x6c7967656e657261u, key.high ^ 0x7465646279746573u};
  size_t offset = 0;
  for (; offset + 8 <= bytes.size(); offset += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + offset, 8);
    state.Absorb(word);
  }
  // The rest, and the length modulo 256 in the highest byte.
  uint64_t last = static_cast<uint64_t>(bytes.size()) << 56;
  for (size_t i = 0; offset + i < bytes.size(); ++i) {
    last |= uint64_t{static_cast<unsigned char>(bytes[offset + i])} << (8 * i);
  }
  state.Absorb(last);
  state.v2 ^= 0xeeu;
  const uint64_t low = state.Squeeze();
  state.v1 ^= 0xddu;
  const uint64_t high = state.Squeeze();
  return {.low = low, .high = high};
}

PrefixHasher::PrefixHasher() {
  std::random_device device;
  key_ = {.low = RandomWord(&device), .high = RandomWord(&device)};
}

BlockHash PrefixHasher::Root(std::string_view salt) const {
  // Under a key of its own, so that no salt can pass for a block.
  return SipHash128({.low = ~key_.low, .high = key_.high}, salt);
}

BlockHash PrefixHasher::Next(const BlockHash& parent, absl::Span<const int32_t> token_ids) const {
  TIDAL_CHECK(token_ids.size() == kBlockSize, "only full blocks have a hash");
  std::array<char, sizeof(BlockHash) + kBlockSize * sizeof(int32_t)> bytes;
  std::memcpy(bytes.data(), &parent, sizeof(BlockHash));
  std::memcpy(bytes.data() + sizeof(BlockHash), token_ids.data(), kBlockSize * sizeof(int32_t));
  return SipHash128(key_, {bytes.data(), bytes.size()});
}

}  // namespace tidal
