// Counter-based random numbers: a draw is a pure function of (seed, index, token id), so it needs
// no state, and does not depend on what else is in a batch. Usable in host and device code.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define TIDAL_HOST_DEVICE __host__ __device__
#else
#define TIDAL_HOST_DEVICE
#endif

namespace tidal {

struct PhiloxBlock {
  uint32_t word[4];
};

// Philox4x32-10: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
TIDAL_HOST_DEVICE inline PhiloxBlock Philox4x32(uint64_t key, PhiloxBlock counter) {
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Standard Gumbel noise for `token_id` at the `index`-th generated token: -log(-log(u)), u in (0,
// 1).
TIDAL_HOST_DEVICE inline float GumbelNoise(uint64_t seed, uint64_t index, uint32_t token_id) {
  const PhiloxBlock random = Philox4x32(seed, {{token_id >> 2, 0u, static_cast<uint32_t>(index),
                                                static_cast<uint32_t>(index >> 32)}});
  // 23 random bits and a half keep u strictly inside (0, 1) in float32.
  const float u = (static_cast<float>(random.word[token_id & 3u] >> 9) + 0.5f) * 0x1p-23f;
  return -logf(-logf(u));
}

}  // namespace tidal
