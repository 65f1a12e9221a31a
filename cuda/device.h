// The GPU: found, described, and its memory, streams and events with owners.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace tidal::cuda {

struct DeviceInfo {
  int32_t ordinal = 0;
  std::string name;   // "NVIDIA H200"
  int32_t major = 0;  // compute capability
  int32_t minor = 0;
  int64_t total_bytes = 0;  // of its memory
  int32_t num_multiprocessors = 0;
};

// Makes the device this thread's current one. UNAVAILABLE says whether the driver, or a device, or
// this one, is missing; FAILED_PRECONDITION where it is older than compute capability 8.0.
absl::StatusOr<DeviceInfo> OpenDevice(int32_t ordinal);

// One allocation of device memory from which parts are taken in turn. An arena without memory only
// counts: lay out twice, first to learn the size.
class DeviceArena {
 public:
  DeviceArena() = default;

  // RESOURCE_EXHAUSTED names the bytes needed for `purpose` and those available: at most
  // `limit_bytes`, and what is free on the device.
  static absl::StatusOr<DeviceArena> Allocate(int64_t size_bytes, int64_t limit_bytes,
                                              absl::string_view purpose);

  // The next `size` elements, aligned to 256 bytes; null while only counting.
  template <typename Element>
  Element* Take(int64_t size) {
    return static_cast<Element*>(TakeBytes(size * static_cast<int64_t>(sizeof(Element))));
  }

  int64_t used_bytes() const { return used_bytes_; }

 private:
  struct Free {
    void operator()(char* memory) const { cudaFree(memory); }
  };

  void* TakeBytes(int64_t size_bytes);

  std::unique_ptr<char, Free> memory_;
  int64_t size_bytes_ = 0;
  int64_t used_bytes_ = 0;
};

// Host memory that the device copies from and to without staging.
template <typename Element>
class PinnedArray {
 public:
  PinnedArray() = default;
  absl::Status Allocate(int64_t size);

  Element* data() const { return elements_.get(); }

 private:
  struct Free {
    void operator()(Element* elements) const { cudaFreeHost(elements); }
  };
  std::unique_ptr<Element, Free> elements_;
};

// A stream of its own (not ordered with the default one), and a moment in one.
class Stream {
 public:
  Stream() = default;
  ~Stream() {
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  absl::Status Create();
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() = default;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  absl::Status Create();
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// --- Definitions ---

absl::Status AllocatePinned(int64_t size_bytes, void** memory);

template <typename Element>
absl::Status PinnedArray<Element>::Allocate(int64_t size) {
  void* memory = nullptr;
  absl::Status status = AllocatePinned(size * static_cast<int64_t>(sizeof(Element)), &memory);
  elements_.reset(static_cast<Element*>(memory));
  return status;
}

}  // namespace tidal::cuda
