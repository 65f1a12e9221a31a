// Any bytes as the JSON header of a safetensors file: refused, or consistent as declared.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "engine/checkpoint/safetensors_header.h"

namespace {

// As of a file with this many bytes after the header; the seeds are valid for it.
constexpr uint64_t kDataSize = 4096;

void Require(bool condition) {
  if (!condition) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto header = tidal::ParseSafetensorsHeader(
      absl::MakeConstSpan(reinterpret_cast<const char*>(bytes), size), kDataSize);
  if (!header.ok()) {
    Require(!header.status().message().empty());
    return 0;
  }
  for (const auto& [name, entry] : *header) {
    Require(entry.begin <= entry.end && entry.end <= kDataSize);
    const int bits = tidal::SafetensorsDTypeBits(entry.dtype);
    uint64_t num_elements = 1;  // cannot overflow where the size agrees, but for empty tensors
    for (const int64_t extent : entry.shape) {
      Require(extent >= 0);
      num_elements *= static_cast<uint64_t>(extent);
    }
    Require(bits == 0 ||
            num_elements * static_cast<uint64_t>(bits) == (entry.end - entry.begin) * 8);
  }
  return 0;
}
