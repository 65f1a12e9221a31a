#include "tests/cuda/emulation/device.h"

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define TIDAL_FIBERS_UNDER_ASAN 1
#endif

namespace tidal::cuda::emulation {
namespace {

namespace context = boost::context::detail;

constexpr size_t kStackBytes = 192 << 10;
constexpr int kMaxThreadsPerBlock = 1024;
constexpr int kNumNamedBarriers = 16;
constexpr size_t kMaxBlockSharedBytes = 227 << 10;
constexpr unsigned char kPoison = 0xFF;  // NaN in every float type

// What a thread waits for: that (*word & mask) is no longer `value`.
struct Condition {
  const uint64_t* word = nullptr;
  uint64_t mask = 0;
  uint64_t value = 0;

  bool holds() const { return word != nullptr && (*word & mask) == value; }
};

// Threads that meet.
struct Meeting {
  int num_arrived = 0;
  uint64_t generation = 0;
};

// Lanes of a warp that exchange values under one mask; results of two successive exchanges are
// kept, since a lane may be one ahead of another.
struct LaneMeeting {
  uint32_t mask = 0;
  Meeting meeting;
  char values[2][kLanes][kMaxExchangeBytes];
};

struct Warp {
  std::vector<std::unique_ptr<LaneMeeting>> meetings;
};

struct Block {
  uint3 index = {};
  uint32_t rank = 0;  // in its cluster
  std::unique_ptr<char, decltype(&std::free)> storage = {nullptr, &std::free};
  char* shared = nullptr;
  std::vector<Warp> warps;
  Meeting sync;
  Meeting named[kNumNamedBarriers];
  bool waited_for_previous = false;
};

// Sums that matrix products work on.
struct ProductSum {
  float* registers;
  std::vector<float> value;  // before the products under way
  size_t num_products;       // under way
};

struct Thread {
  context::fcontext_t context = nullptr;
  std::unique_ptr<char[]> stack;
  uint3 index = {};
  int linear_index = 0;
  Block* block = nullptr;
  Condition waits_for;
  int num_pauses = 0;
  bool done = false;
  std::vector<std::function<void()>> copies;              // since the last group
  std::deque<std::vector<std::function<void()>>> groups;  // committed, oldest first
  std::vector<std::function<void()>> products;            // the same of matrix products
  std::deque<std::vector<std::function<void()>>> product_groups;
  std::vector<ProductSum> product_sums;
  std::vector<const float*> begun_sums;
#ifdef TIDAL_FIBERS_UNDER_ASAN
  void* fake_stack = nullptr;
#endif
};

// An mbarrier's 64 bits: arrivals expected a phase, arrivals still missing, the phase, and the
// bytes still missing (signed, for bytes may land before they are expected).
struct BarrierWord {
  uint16_t num_arrivals;
  uint16_t num_missing;
  uint8_t phase;
  uint8_t missing_bytes[3];

  int32_t bytes() const {
    const int32_t value = missing_bytes[0] | missing_bytes[1] << 8 | missing_bytes[2] << 16;
    return value << 8 >> 8;
  }
  void set_bytes(int32_t value) {
    for (int i = 0; i < 3; ++i) missing_bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  }
};
static_assert(sizeof(BarrierWord) == sizeof(uint64_t));
constexpr int kPhaseBit = 32;

struct BulkCopy {
  std::function<void()> land;
};

// One group of blocks that run together: a cluster.
class Group {
 public:
  Group(const Launch& launch, const std::function<void()>& kernel, std::mt19937* random);
  void Run(uint32_t first_block);

  Launch launch;
  const std::function<void()>& kernel;
  std::mt19937* random;
  std::vector<Block> blocks;
  std::vector<Thread> threads;
  std::vector<BulkCopy> copies;
  Meeting cluster_sync;
  context::fcontext_t scheduler = nullptr;
#ifdef TIDAL_FIBERS_UNDER_ASAN
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
#endif

 private:
  void Reset(uint32_t first_block);
  bool RunRound();
  bool LandCopies(bool all);
  [[noreturn]] void ReportDeadlock() const;
  void CheckEnd() const;
  void Resume(Thread* thread);

  size_t num_done_ = 0;
  std::vector<size_t> warp_order_;
};

Group* group = nullptr;
Thread* current = nullptr;

int ThreadsOf(const dim3& shape) { return static_cast<int>(shape.x * shape.y * shape.z); }

// Gives the processor back; returns when the scheduler resumes this thread.
void Yield() {
#ifdef TIDAL_FIBERS_UNDER_ASAN
  Thread* self = current;
  __sanitizer_start_switch_fiber(self->done ? nullptr : &self->fake_stack, group->scheduler_stack,
                                 group->scheduler_stack_bytes);
#endif
  const context::transfer_t back = context::jump_fcontext(group->scheduler, nullptr);
#ifdef TIDAL_FIBERS_UNDER_ASAN
  __sanitizer_finish_switch_fiber(self->fake_stack, &group->scheduler_stack,
                                  &group->scheduler_stack_bytes);
#endif
  group->scheduler = back.fctx;
}

void WaitWhile(const Condition& condition) {
  current->waits_for = condition;
  while (condition.holds()) Yield();
  current->waits_for = {};
}

void FlushAsyncCopies(Thread* thread) {
  for (const auto& copies : thread->groups) {
    for (const auto& copy : copies) copy();
  }
  for (const auto& copy : thread->copies) copy();
  thread->groups.clear();
  thread->copies.clear();
}

void RunThread(context::transfer_t from) {
  group->scheduler = from.fctx;
#ifdef TIDAL_FIBERS_UNDER_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &group->scheduler_stack, &group->scheduler_stack_bytes);
#endif
  group->kernel();
  FlushAsyncCopies(current);
  if (!current->product_sums.empty()) Fail("the thread ended with matrix products under way");
  current->done = true;
  Yield();
  std::abort();  // a thread that has ended is not resumed
}

// Arrives; returns at once for the last of `num_threads`, else when that one has arrived.
template <typename BeforeLeaving>
void Meet(Meeting* meeting, int num_threads, const BeforeLeaving& before_leaving) {
  const uint64_t generation = meeting->generation;
  if (++meeting->num_arrived == num_threads) {
    meeting->num_arrived = 0;
    before_leaving();
    ++meeting->generation;
    return;
  }
  WaitWhile({&meeting->generation, ~uint64_t{0}, generation});
}

void Meet(Meeting* meeting, int num_threads) {
  Meet(meeting, num_threads, [] {});
}

Group::Group(const Launch& launch_in, const std::function<void()>& kernel_in,
             std::mt19937* random_in)
    : launch(launch_in), kernel(kernel_in), random(random_in) {
  const int block_threads = ThreadsOf(launch.block);
  blocks.resize(launch.cluster_size);
  threads.resize(blocks.size() * static_cast<size_t>(block_threads));
  for (Thread& thread : threads) thread.stack = std::make_unique<char[]>(kStackBytes);
  warp_order_.resize((threads.size() + kLanes - 1) / kLanes);
  std::iota(warp_order_.begin(), warp_order_.end(), size_t{0});
}

void Group::Reset(uint32_t first_block) {
  constexpr size_t kAlignment = 1024;
  const int block_threads = ThreadsOf(launch.block);
  num_done_ = 0;
  cluster_sync = {};
  for (uint32_t rank = 0; rank < blocks.size(); ++rank) {
    Block& block = blocks[rank];
    const uint32_t index = first_block + rank;
    block = {};
    block.rank = rank;
    block.index = {index % launch.grid.x, index / launch.grid.x % launch.grid.y,
                   index / launch.grid.x / launch.grid.y};
    void* storage = nullptr;
    if (posix_memalign(&storage, kAlignment, std::max<size_t>(launch.shared_bytes, 1)) != 0) {
      Fail("no memory");
    }
    block.storage.reset(static_cast<char*>(storage));
    block.shared = block.storage.get();
    std::memset(block.shared, kPoison, launch.shared_bytes);
    block.warps.resize(static_cast<size_t>((block_threads + kLanes - 1) / kLanes));
    for (int i = 0; i < block_threads; ++i) {
      Thread& thread = threads[rank * static_cast<size_t>(block_threads) + static_cast<size_t>(i)];
      const auto linear = static_cast<uint32_t>(i);
      thread.index = {linear % launch.block.x, linear / launch.block.x % launch.block.y,
                      linear / launch.block.x / launch.block.y};
      thread.linear_index = i;
      thread.block = &block;
      thread.waits_for = {};
      thread.num_pauses = 0;
      thread.done = false;
      thread.context =
          context::make_fcontext(thread.stack.get() + kStackBytes, kStackBytes, RunThread);
#ifdef TIDAL_FIBERS_UNDER_ASAN
      thread.fake_stack = nullptr;
      // The block that used it last left marks: its frames were never returned from.
      ASAN_UNPOISON_MEMORY_REGION(thread.stack.get(), kStackBytes);
#endif
    }
  }
}

void Group::Resume(Thread* thread) {
  current = thread;
#ifdef TIDAL_FIBERS_UNDER_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread->stack.get(), kStackBytes);
#endif
  const context::transfer_t back = context::jump_fcontext(thread->context, nullptr);
#ifdef TIDAL_FIBERS_UNDER_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  thread->context = back.fctx;
  current = nullptr;
  if (thread->done) ++num_done_;
}

// Lets every thread that can go on do so; false where none could.
bool Group::RunRound() {
  std::shuffle(warp_order_.begin(), warp_order_.end(), *random);
  bool any = false;
  for (const size_t warp : warp_order_) {
    const size_t first = warp * kLanes;
    const size_t size = std::min(size_t{kLanes}, threads.size() - first);
    const size_t offset = (*random)() % size;
    for (size_t i = 0; i < size; ++i) {
      Thread& thread = threads[first + (i + offset) % size];
      if (thread.done || thread.waits_for.holds()) continue;
      Resume(&thread);
      any = true;
    }
  }
  return any;
}

// Lets some copies land, or all.
bool Group::LandCopies(bool all) {
  bool any = false;
  for (size_t i = 0; i < copies.size();) {
    if (!all && (*random)() % 3 != 0) {
      ++i;
      continue;
    }
    const BulkCopy copy = std::move(copies[i]);
    copies[i] = std::move(copies.back());
    copies.pop_back();
    copy.land();
    any = true;
  }
  return any;
}

void Group::Run(uint32_t first_block) {
  group = this;
  Reset(first_block);
  while (num_done_ < threads.size()) {
    const bool any = RunRound();
    if (!LandCopies(!any) && !any) ReportDeadlock();
  }
  CheckEnd();
  group = nullptr;
}

void Group::ReportDeadlock() const {
  std::fprintf(stderr, "emulation: no thread can go on\n");
  for (const Thread& thread : threads) {
    if (thread.done || thread.linear_index % kLanes != 0) continue;
    std::fprintf(stderr, "  block (%u,%u,%u) thread %d waits\n", thread.block->index.x,
                 thread.block->index.y, thread.block->index.z, thread.linear_index);
  }
  std::abort();
}

void Group::CheckEnd() const {
  if (!copies.empty()) Fail("the block ended with %zu bulk copies in flight", copies.size());
  for (const Block& block : blocks) {
    if (launch.dependent && !block.waited_for_previous) {
      Fail("block %u of a dependent launch never waited for the previous kernels", block.index.x);
    }
  }
}

BarrierWord* BarrierAt(uint32_t barrier) {
  if (barrier % sizeof(uint64_t) != 0) Fail("mbarrier at %u is not aligned", barrier);
  return reinterpret_cast<BarrierWord*>(SharedPointer(barrier, sizeof(uint64_t)));
}

void CompletePhase(BarrierWord* word) {
  if (word->num_missing != 0 || word->bytes() != 0) return;
  word->num_missing = word->num_arrivals;
  ++word->phase;
}

}  // namespace

void Fail(const char* format, ...) {
  std::fprintf(stderr, "emulation: ");
  if (current != nullptr) {
    const uint3& block = current->block->index;
    std::fprintf(stderr, "block (%u,%u,%u) thread %d: ", block.x, block.y, block.z,
                 current->linear_index);
  }
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::abort();
}

void RunKernel(const Launch& launch, const std::function<void()>& kernel) {
  static std::mt19937 random(20240917);
  const uint32_t num_blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  if (ThreadsOf(launch.block) > kMaxThreadsPerBlock) Fail("%d threads", ThreadsOf(launch.block));
  if (launch.shared_bytes > kMaxBlockSharedBytes) Fail("%zu shared bytes", launch.shared_bytes);
  if (launch.grid.x % launch.cluster_size != 0) Fail("the grid is no multiple of the cluster");
  Group blocks(launch, kernel, &random);
  std::vector<uint32_t> order(num_blocks / launch.cluster_size);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  for (const uint32_t cluster : order) blocks.Run(cluster * launch.cluster_size);
}

uint3 ThreadIndex() { return current->index; }
uint3 BlockIndex() { return current->block->index; }
dim3 BlockShape() { return group->launch.block; }
dim3 GridShape() { return group->launch.grid; }
int Lane() { return current->linear_index % kLanes; }

char* SharedMemory() { return current->block->shared; }

uint32_t SharedOffset(const void* pointer) {
  const std::ptrdiff_t offset = static_cast<const char*>(pointer) - current->block->shared;
  if (offset < 0 || static_cast<size_t>(offset) > group->launch.shared_bytes) {
    Fail("a pointer that is not into this block's shared memory");
  }
  return static_cast<uint32_t>(offset);
}

char* SharedPointer(uint32_t offset, size_t num_bytes) {
  if (offset + num_bytes > group->launch.shared_bytes) {
    Fail("%zu bytes at %u of %zu shared bytes", num_bytes, offset, group->launch.shared_bytes);
  }
  return current->block->shared + offset;
}

void SyncBlock() { Meet(&current->block->sync, ThreadsOf(group->launch.block)); }

void SyncNamed(int id, int num_threads) {
  if (id < 1 || id >= kNumNamedBarriers) Fail("named barrier %d", id);
  Meet(&current->block->named[id], num_threads);
}

void ArriveNamed(int id, int num_threads) {
  if (id < 1 || id >= kNumNamedBarriers) Fail("named barrier %d", id);
  Meeting& meeting = current->block->named[id];
  if (++meeting.num_arrived < num_threads) return;
  meeting.num_arrived = 0;
  ++meeting.generation;
}

void SyncCluster() { Meet(&group->cluster_sync, static_cast<int>(group->threads.size())); }

int32_t ClusterRank() { return static_cast<int32_t>(current->block->rank); }
int32_t ClusterSize() { return static_cast<int32_t>(group->launch.cluster_size); }

void* InClusterBlock(int32_t rank, void* pointer) {
  if (rank < 0 || rank >= ClusterSize()) Fail("block %d of a cluster of %d", rank, ClusterSize());
  return group->blocks[static_cast<size_t>(rank)].shared + SharedOffset(pointer);
}

const char* Exchange(uint32_t mask, const void* value, size_t num_bytes, Combine combine) {
  const int lane = Lane();
  if ((mask >> lane & 1) == 0) Fail("lane %d is not in its own mask %08x", lane, mask);
  Warp& warp = current->block->warps[static_cast<size_t>(current->linear_index / kLanes)];
  auto it = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                         [mask](const auto& meeting) { return meeting->mask == mask; });
  if (it == warp.meetings.end()) {
    warp.meetings.push_back(std::make_unique<LaneMeeting>());
    warp.meetings.back()->mask = mask;
    it = warp.meetings.end() - 1;
  }
  LaneMeeting* meeting = it->get();
  auto& values = meeting->values[meeting->meeting.generation % 2];
  if (num_bytes > 0) std::memcpy(values[lane], value, num_bytes);
  Meet(&meeting->meeting, __builtin_popcount(mask), [&values, combine] {
    if (combine != nullptr) combine(values[0]);
  });
  return values[0];
}

void Pause() {
  constexpr int kMaxPauses = 1'000'000;  // of one thread, in a launch
  if (++current->num_pauses > kMaxPauses) Fail("waits in vain");
  Yield();
}

void InitBarrier(uint32_t barrier, uint32_t num_arrivals) {
  BarrierWord* word = BarrierAt(barrier);
  *word = {};
  word->num_arrivals = static_cast<uint16_t>(num_arrivals);
  word->num_missing = word->num_arrivals;
}

void ArriveBarrier(uint32_t barrier, uint32_t expected_bytes) {
  BarrierWord* word = BarrierAt(barrier);
  if (word->num_missing == 0 || word->num_missing > word->num_arrivals) {
    Fail(
        "mbarrier at %u has more arrivals than it was made for, or was not made: %u of %u arrivals "
        "missing, phase %u, %d bytes missing",
        barrier, word->num_missing, word->num_arrivals, word->phase, word->bytes());
  }
  word->set_bytes(word->bytes() + static_cast<int32_t>(expected_bytes));
  --word->num_missing;
  CompletePhase(word);
}

void WaitForBarrier(uint32_t barrier, uint32_t parity) {
  const auto* word = reinterpret_cast<const uint64_t*>(BarrierAt(barrier));
  WaitWhile({word, uint64_t{1} << kPhaseBit, uint64_t{parity} << kPhaseBit});
}

void StartBulkCopy(uint32_t target, uint32_t num_bytes, uint32_t barrier,
                   std::function<void()> land) {
  std::memset(SharedPointer(target, num_bytes), kPoison, num_bytes);
  BarrierWord* word = BarrierAt(barrier);
  group->copies.push_back({[word, num_bytes, land = std::move(land)] {
    land();
    word->set_bytes(word->bytes() - static_cast<int32_t>(num_bytes));
    CompletePhase(word);
  }});
}

void CopyAsync16(uint32_t target, const void* source, bool is_valid) {
  constexpr size_t kBytes = 16;
  char* pointer = SharedPointer(target, kBytes);
  if (target % kBytes != 0 || (is_valid && reinterpret_cast<uintptr_t>(source) % kBytes != 0)) {
    Fail("a copy of 16 bytes that is not aligned");
  }
  std::memset(pointer, kPoison, kBytes);
  current->copies.push_back([pointer, source, is_valid] {
    if (is_valid) {
      std::memcpy(pointer, source, kBytes);
    } else {
      std::memset(pointer, 0, kBytes);
    }
  });
}

void CommitAsyncCopies() { current->groups.push_back(std::exchange(current->copies, {})); }

void WaitForAsyncCopies(size_t num_groups) {
  while (current->groups.size() > num_groups) {
    for (const auto& copy : current->groups.front()) copy();
    current->groups.pop_front();
  }
}

void ArriveAfterAsyncCopies(uint32_t barrier) {
  // Later than the thread's copies so far, at some time or other.
  auto copies = std::make_shared<std::vector<std::function<void()>>>();
  for (auto& earlier : current->groups) {
    for (auto& copy : earlier) copies->push_back(std::move(copy));
  }
  for (auto& copy : current->copies) copies->push_back(std::move(copy));
  current->groups.clear();
  current->copies.clear();
  BarrierWord* word = BarrierAt(barrier);
  group->copies.push_back({[copies, word] {
    for (const auto& copy : *copies) copy();
    --word->num_missing;
    CompletePhase(word);
  }});
}

namespace {

bool IsPoisoned(const ProductSum& sum) {
  const std::vector<unsigned char> poison(sum.value.size() * sizeof(float), kPoison);
  return std::memcmp(sum.registers, poison.data(), poison.size()) == 0;
}

}  // namespace

int WarpOfGroup() { return current->linear_index / kLanes % 4; }

void BeginWarpgroupProducts(float* sum) { current->begun_sums.push_back(sum); }

void StartWarpgroupProduct(float* sum, size_t size, bool accumulates,
                           std::function<void()> finish) {
  auto& sums = current->product_sums;
  auto it = std::find_if(sums.begin(), sums.end(),
                         [sum](const ProductSum& other) { return other.registers == sum; });
  if (it == sums.end()) {
    const auto& begun = current->begun_sums;
    if (accumulates && std::find(begun.begin(), begun.end(), sum) == begun.end()) {
      Fail("a matrix product on sums that were not given to BeginWarpgroupProducts");
    }
    sums.push_back({sum, std::vector<float>(size, 0.0f), 0});
    it = sums.end() - 1;
    if (accumulates) std::memcpy(it->value.data(), sum, size * sizeof(float));
    std::memset(static_cast<void*>(sum), kPoison, size * sizeof(float));
  } else if (!accumulates) {
    Fail("a matrix product that drops the sums of one under way");
  }
  ++it->num_products;
  current->products.push_back([sum, size, finish = std::move(finish)] {
    auto& pending = current->product_sums;
    const auto mine = std::find_if(pending.begin(), pending.end(), [sum](const ProductSum& other) {
      return other.registers == sum;
    });
    if (!IsPoisoned(*mine))
      Fail("the sums of a matrix product were touched while it was under way");
    std::memcpy(sum, mine->value.data(), size * sizeof(float));
    finish();
    if (--mine->num_products == 0) {
      pending.erase(mine);
    } else {
      std::memcpy(mine->value.data(), sum, size * sizeof(float));
      std::memset(static_cast<void*>(sum), kPoison, size * sizeof(float));
    }
  });
}

void CommitWarpgroupProducts() {
  current->product_groups.push_back(std::exchange(current->products, {}));
  current->begun_sums.clear();
}

void WaitForWarpgroupProducts(size_t num_groups, const float* sum) {
  while (current->product_groups.size() > num_groups) {
    for (const auto& product : current->product_groups.front()) product();
    current->product_groups.pop_front();
  }
  for (const ProductSum& pending : current->product_sums) {
    if (pending.registers == sum) Fail("the wait leaves products of its sums under way");
  }
}

void NoteWaitForPreviousKernels() { current->block->waited_for_previous = true; }

}  // namespace tidal::cuda::emulation
