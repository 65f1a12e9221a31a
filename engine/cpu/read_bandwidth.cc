#include "engine/cpu/read_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

namespace tidal::cpu {
namespace {

constexpr size_t kNumWords = (size_t{512} << 20) / sizeof(uint64_t);
constexpr size_t kTaskWords = kNumWords / 256;
constexpr int kNumTasks = static_cast<int>(kNumWords / kTaskWords);
constexpr size_t kNumRuns = 7;

}  // namespace

double MeasureReadBandwidth(ThreadPool* pool) {
  std::vector<uint64_t> words(kNumWords);
  std::iota(words.begin(), words.end(), uint64_t{1});
  std::vector<uint64_t> sums(kNumTasks);
  std::vector<double> rates;
  for (size_t run = 0; run < kNumRuns; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    pool->ParallelFor(kNumTasks, [&](int task, int) {
      const uint64_t* const first = words.data() + static_cast<size_t>(task) * kTaskWords;
      sums[static_cast<size_t>(task)] = std::accumulate(first, first + kTaskWords, uint64_t{0});
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    // Changes the data by what was read, so that no read can be left out.
    words[run] += std::accumulate(sums.begin(), sums.end(), uint64_t{0});
    rates.push_back(static_cast<double>(kNumWords * sizeof(uint64_t)) / seconds.count());
  }
  std::sort(rates.begin(), rates.end());
  return rates[kNumRuns / 2];
}

}  // namespace tidal::cpu
