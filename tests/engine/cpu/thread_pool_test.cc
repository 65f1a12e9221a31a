#include "engine/cpu/thread_pool.h"

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace tidal::cpu {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnce) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int num_tasks : {0, 1, 2, 3, 17, 1000}) {
      std::vector<int> runs(static_cast<size_t>(num_tasks));
      pool.ParallelFor(num_tasks, [&](int task, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, num_threads);
        ++runs[static_cast<size_t>(task)];
      });
      EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(num_tasks), 1));
    }
  }
}

// Each loop reads, without synchronisation of its own, what the one before wrote: a race detector
// finds a loop that returns early or starts late.
TEST(ThreadPoolTest, LoopsFollowEachOther) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 1);
  std::vector<int64_t> sums(64);
  for (int round = 0; round < 3000; ++round) {
    pool.ParallelFor(64, [&](int task, int) { ++values[static_cast<size_t>(task)]; });
    pool.ParallelFor(64, [&](int task, int) {
      sums[static_cast<size_t>(task)] = values[static_cast<size_t>(63 - task)];
    });
  }
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), 64 * 3001);
}

TEST(ThreadPoolTest, WakesSleepingThreadsForLaterLoops) {
  ThreadPool pool(3);
  std::atomic<int> total = 0;
  for (int round = 0; round < 20; ++round) {
    pool.ParallelFor(100, [&](int, int) { ++total; });
    // Long enough, without a clock, for the others to stop spinning and sleep.
    for (int i = 0; i < 2000; ++i) std::this_thread::yield();
  }
  EXPECT_EQ(total, 2000);
}

// The caller runs out of tasks first and must wait for the others, asleep if it takes long.
TEST(ThreadPoolTest, ReturnsOnlyWhenTheLastTaskIsDone) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> started = 0;
    std::atomic<int64_t> work = 0;
    pool.ParallelFor(2, [&](int task, int) {
      ++started;
      while (started < 2) std::this_thread::yield();  // one task on each thread
      if (task == 0) {
        for (int i = 0; i < 200'000; ++i) work.fetch_add(1, std::memory_order_relaxed);
      }
    });
    EXPECT_EQ(work, 200'000);
  }
}

TEST(ThreadPoolTest, TellsThreadsApart) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> in_use(4);
  pool.ParallelFor(2000, [&](int, int thread) {
    EXPECT_EQ(in_use[static_cast<size_t>(thread)].fetch_add(1), 0);
    in_use[static_cast<size_t>(thread)].fetch_sub(1);
  });
}

TEST(ThreadPoolTest, StopsWithoutHavingWorked) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST(ThreadPoolTest, TakesAllProcessorsByDefault) {
  ThreadPool pool(0);
  EXPECT_GE(pool.num_threads(), 1);
  EXPECT_LE(pool.num_threads(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace tidal::cpu
