#include "engine/cpu/arena.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/cpu/memory.h"

namespace tidal::cpu {

absl::StatusOr<Arena> Arena::Allocate(int64_t size_bytes, bool commit, absl::string_view purpose) {
  const int64_t available_bytes = AvailableMemoryBytes();
  if (size_bytes > available_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(purpose, " needs ", size_bytes, " bytes, ",
                                                     available_bytes, " are available"));
  }
  Arena arena;
  if (size_bytes == 0) return arena;
  void* start = mmap(nullptr, static_cast<size_t>(size_bytes), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat(purpose, " needs ", size_bytes, " bytes, and the system refuses to map them"));
  }
  arena.start_ = static_cast<std::byte*>(start);
  arena.size_bytes_ = size_bytes;
  // Advice only: without huge pages everything works, with more TLB misses.
  madvise(start, static_cast<size_t>(size_bytes), MADV_HUGEPAGE);
  if (commit) {
    constexpr int64_t kPageBytes = 4096;
    for (int64_t i = 0; i < size_bytes; i += kPageBytes) arena.start_[i] = std::byte{0};
  }
  return arena;
}

Arena::Arena(Arena&& other) noexcept { *this = std::move(other); }

Arena& Arena::operator=(Arena&& other) noexcept {
  std::swap(start_, other.start_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(used_bytes_, other.used_bytes_);
  return *this;
}

Arena::~Arena() {
  if (start_ != nullptr) munmap(start_, static_cast<size_t>(size_bytes_));
}

std::byte* Arena::TakeBytes(int64_t count) {
  constexpr int64_t kAlignmentBytes = 64;
  const int64_t offset = used_bytes_;
  used_bytes_ += (count + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
  if (start_ == nullptr) return nullptr;
  if (used_bytes_ > size_bytes_) {
    std::fputs("tidal: an arena was laid out larger than it was counted\n", stderr);
    std::abort();
  }
  return start_ + offset;
}

}  // namespace tidal::cpu
