#include "engine/cpu/selection.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

namespace tidal::cpu {
namespace {

// The best `count` keys are those above `key`, and the first `num_ties` equal to it.
struct Threshold {
  int32_t key;
  int64_t num_ties;
};

// Bisection over the 32-bit keys; each probe is one vectorised scan, so it costs a fixed 32 scans
// at most, whatever the scores are.
Threshold FindThreshold(const Kernels& kernels, const int32_t* keys, int64_t size, int64_t count) {
  // At least `count` keys reach `low`, fewer reach `high`.
  int64_t low = std::numeric_limits<int32_t>::min();
  int64_t high = int64_t{std::numeric_limits<int32_t>::max()} + 1;
  int64_t num_above = 0;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t reached = kernels.count_at_least(keys, size, static_cast<int32_t>(middle));
    if (reached == count) return {static_cast<int32_t>(middle), count};
    if (reached > count) {
      low = middle;
    } else {
      high = middle;
      num_above = reached;
    }
  }
  return {static_cast<int32_t>(low), count - num_above};
}

// Appends first_position + i for the chosen keys i, ascending.
void CollectPositions(const Kernels& kernels, const int32_t* keys, int64_t size,
                      Threshold threshold, int32_t first_position, int32_t* positions) {
  constexpr int64_t kScan = 64;
  for (int64_t start = 0; start < size; start += kScan) {
    const int64_t end = std::min(start + kScan, size);
    if (kernels.count_at_least(keys + start, end - start, threshold.key) == 0) continue;
    for (int64_t i = start; i < end; ++i) {
      int32_t key;
      std::memcpy(&key, keys + i, sizeof(key));
      if (key < threshold.key) continue;
      if (key == threshold.key && threshold.num_ties-- <= 0) continue;
      *positions++ = first_position + static_cast<int32_t>(i);
    }
  }
}

}  // namespace

void SelectPositions(const Kernels& kernels, const Selection& selection, absl::Span<float> scores,
                     int32_t* positions) {
  const int32_t num_context_tokens = static_cast<int32_t>(scores.size());
  const int32_t num_sinks = selection.num_sink_tokens;
  const int32_t num_recents = std::max(selection.num_recent_tokens, 1);
  const int64_t num_candidates = num_context_tokens - num_sinks - num_recents;
  const int64_t num_best = selection.token_budget - num_sinks - num_recents;

  std::iota(positions, positions + num_sinks, 0);
  positions += num_sinks;
  if (num_best > 0) {
    float* candidates = scores.data() + num_sinks;
    kernels.to_ordered_keys(candidates, num_candidates);
    const int32_t* keys = reinterpret_cast<const int32_t*>(candidates);
    const Threshold threshold = FindThreshold(kernels, keys, num_candidates, num_best);
    CollectPositions(kernels, keys, num_candidates, threshold, num_sinks, positions);
    positions += num_best;
  }
  std::iota(positions, positions + num_recents, num_context_tokens - num_recents);
}

}  // namespace tidal::cpu
