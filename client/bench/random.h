// A small deterministic source of random numbers: unlike the standard distributions, whose results
// differ between libraries, the same seed gives the same load everywhere.
// Not thread-safe.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace tidal::client {

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15U;
    uint64_t z = state_;
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31U);
  }

  // Uniform in (0, 1].
  double NextUnit() { return (static_cast<double>(Next() >> 11U) + 1) * 0x1.0p-53; }

  // Uniform in [low, high]; low <= high. The bias of the remainder is below 2^-32 for 32-bit
  // ranges.
  int32_t NextInRange(int32_t low, int32_t high) {
    const auto count = static_cast<uint64_t>(int64_t{high} - low + 1);
    return static_cast<int32_t>(low + static_cast<int64_t>(Next() % count));
  }

  // Exponential of mean 1.
  double NextExponential() { return -std::log(NextUnit()); }

  // Normal of mean 0 and variance 1 (Box-Muller).
  double NextNormal() {
    const double radius = std::sqrt(2 * NextExponential());
    return radius * std::cos(2 * std::numbers::pi * NextUnit());
  }

 private:
  uint64_t state_;
};

// A seed for stream `index` of the streams that grow out of `seed`.
inline uint64_t DeriveSeed(uint64_t seed, uint64_t index) {
  Random random(seed ^ (index * 0xD1B54A32D192ED03U));
  random.Next();
  return random.Next();
}

}  // namespace tidal::client
