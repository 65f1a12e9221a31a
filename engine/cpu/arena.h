// One anonymous mapping that is carved into arrays, so that everything is allocated at start-up and
// its size is known before. Lay out twice with the same code: first on a counting arena, then on an
// allocated one. Not thread-safe; the arrays outlive nothing but the arena.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace tidal::cpu {

class Arena {
 public:
  // Counts only: Take returns spans without memory.
  Arena() = default;

  // Zeroed memory. `commit` makes the pages resident now; otherwise each comes when it is touched.
  // RESOURCE_EXHAUSTED names `purpose`, the needed and the available bytes.
  static absl::StatusOr<Arena> Allocate(int64_t size_bytes, bool commit, absl::string_view purpose);

  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  ~Arena();

  // `count` elements at the next multiple of 64 bytes.
  template <typename T>
  absl::Span<T> Take(int64_t count) {
    std::byte* start = TakeBytes(count * static_cast<int64_t>(sizeof(T)));
    return {reinterpret_cast<T*>(start), start == nullptr ? 0 : static_cast<size_t>(count)};
  }

  int64_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* TakeBytes(int64_t count);

  std::byte* start_ = nullptr;
  int64_t size_bytes_ = 0;
  int64_t used_bytes_ = 0;
};

}  // namespace tidal::cpu
