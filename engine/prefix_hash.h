// Names for the contents of KV blocks: a block's hash stands for its tokens and everything before
// them, so equal hashes mean equal keys and values. The function is SipHash-2-4 with 128 bits of
// output (Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012) under a key
// that is drawn when the server starts: without it nobody can make two prompts collide. Immutable:
// thread-safe.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/types/span.h"

namespace tidal {

struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;

  friend bool operator==(const BlockHash& a, const BlockHash& b) = default;
  template <typename H>
  friend H AbslHashValue(H state, const BlockHash& hash) {
    return H::combine(std::move(state), hash.low, hash.high);
  }
};

struct SipHashKey {
  uint64_t low = 0;
  uint64_t high = 0;
};

// SipHash-2-4-128. The output's first eight bytes are `low`, little-endian.
BlockHash SipHash128(const SipHashKey& key, std::string_view bytes);

class PrefixHasher {
 public:
  // With a random key.
  PrefixHasher();
  explicit PrefixHasher(const SipHashKey& key) : key_(key) {}

  // What comes before the first block. Prompts of different salts share nothing.
  BlockHash Root(std::string_view salt) const;

  // The hash of a block that holds `token_ids`, [kBlockSize], after `parent`.
  BlockHash Next(const BlockHash& parent, absl::Span<const int32_t> token_ids) const;

 private:
  SipHashKey key_;
};

}  // namespace tidal
