#include "engine/cpu/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>

namespace tidal::cpu {
namespace {

// About 50 microseconds: longer than the gaps within a step.
constexpr int kSpins = 2000;

template <typename Condition>
bool SpinUntil(const Condition& condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    _mm_pause();
  }
  return condition();
}

int NumUsableProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(CPU_COUNT(&set), 1);
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 0) num_threads = NumUsableProcessors();
  for (int thread = 1; thread < num_threads; ++thread) {
    threads_.emplace_back([this, thread] { Work(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_available_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool ThreadPool::HasWork() const { return stopping_ || !Ticket{ticket_.load()}.exhausted(); }

bool ThreadPool::Finished() const {
  return num_finished_.load() == Ticket{ticket_.load()}.num_tasks();
}

void ThreadPool::ParallelFor(int num_tasks, Task run) {
  if (num_tasks <= 1 || threads_.empty()) {
    for (int task = 0; task < num_tasks; ++task) run(task, 0);
    return;
  }
  run_ = &run;
  num_finished_ = 0;
  const uint64_t loop = Ticket{ticket_.load()}.loop() + 1;
  // Sequentially consistent, as is a sleeper's count: either it sees this ticket, or we see it.
  ticket_ = loop << 48 | static_cast<uint64_t>(num_tasks) << 24;
  if (num_sleeping_ > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_available_.notify_all();
  }
  RunTasks(0);
  if (SpinUntil([this] { return Finished(); })) return;
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeps_ = true;
  loop_finished_.wait(lock, [this] { return Finished(); });
  caller_sleeps_ = false;
}

void ThreadPool::RunTasks(int thread) {
  Ticket ticket{ticket_.load()};
  while (!ticket.exhausted()) {
    if (!ticket_.compare_exchange_weak(ticket.word, ticket.word + 1)) continue;
    // The claimed task is unfinished, so its loop is still the current one.
    (*run_)(ticket.next_task(), thread);
    const int num_tasks = ticket.num_tasks();
    if (num_finished_.fetch_add(1) + 1 == num_tasks && caller_sleeps_) {
      std::lock_guard<std::mutex> lock(mutex_);
      loop_finished_.notify_one();
    }
    ticket.word = ticket_.load();
  }
}

void ThreadPool::Work(int thread) {
  while (!stopping_) {
    if (!SpinUntil([this] { return HasWork(); })) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++num_sleeping_;
      work_available_.wait(lock, [this] { return HasWork(); });
      --num_sleeping_;
    }
    RunTasks(thread);
  }
}

}  // namespace tidal::cpu
