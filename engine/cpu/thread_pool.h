// A fixed set of threads that share out the tasks of one loop at a time. Made for loops of some
// microseconds: idle threads spin briefly, then sleep until the next loop. The caller works too.
// ParallelFor may be called by one thread at a time; tasks must not call it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace tidal::cpu {

class ThreadPool {
 public:
  // `num_threads` counts the caller; 0 takes every processor that this process may run on.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls run(task, thread) for every task in 0..num_tasks - 1, each once, in ascending order of
  // start; `thread` in 0..num_threads() - 1 tells apart what runs at once. Returns when all have
  // run. num_tasks is at most kMaxTasks.
  using Task = absl::FunctionRef<void(int task, int thread)>;
  void ParallelFor(int num_tasks, Task run);

  static constexpr int kMaxTasks = (1 << 24) - 1;

 private:
  // A loop's state in one word, so that a task is claimed only from the loop it belongs to:
  // number of the loop (it may wrap: a claim is good for whatever loop the whole word describes),
  // its number of tasks, the next task.
  struct Ticket {
    uint64_t word;
    uint64_t loop() const { return word >> 48; }
    int num_tasks() const { return static_cast<int>(word >> 24 & kMaxTasks); }
    int next_task() const { return static_cast<int>(word & kMaxTasks); }
    bool exhausted() const { return next_task() >= num_tasks(); }
  };

  // Runs tasks until none is left to claim.
  void RunTasks(int thread);
  void Work(int thread);
  bool HasWork() const;
  bool Finished() const;

  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> num_finished_{0};  // tasks of the current loop
  const Task* run_ = nullptr;         // written before ticket_ is, read after a claim

  std::mutex mutex_;
  std::condition_variable work_available_;
  std::condition_variable loop_finished_;
  std::atomic<int> num_sleeping_{0};
  std::atomic<bool> caller_sleeps_{false};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace tidal::cpu
