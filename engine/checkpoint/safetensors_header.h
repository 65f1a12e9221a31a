// The JSON header of a safetensors file (https://github.com/huggingface/safetensors#format):
// tensors by name, with dtype, shape and place. Parsing is a pure function of the bytes, so that it
// can be tested and fuzzed without files.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace tidal {

// The format's own limit on the header's length.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string dtype;           // as written, such as "BF16"; need not be one we know
  std::vector<int64_t> shape;  // every extent >= 0; empty for a scalar
  uint64_t begin = 0;          // [begin, end) in bytes, counted from the end of the header
  uint64_t end = 0;
};

using SafetensorsHeader = std::map<std::string, SafetensorsEntry, std::less<>>;

// Parses the header and checks every entry against `data_size`, the bytes that follow the header:
// offsets in range and in order, no two tensors overlapping, and size = shape * dtype wherever the
// dtype is one of the format's. `__metadata__` is ignored; gaps between tensors are allowed.
// INVALID_ARGUMENT names the tensor and the values.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::Span<const char> header_json,
                                                         uint64_t data_size);

// Bits of one element of a dtype of the format ("F32" -> 32, "F4" -> 4); 0 for an unknown name.
int SafetensorsDTypeBits(absl::string_view dtype);

// "[32000, 4096]".
std::string DescribeShape(absl::Span<const int64_t> shape);

}  // namespace tidal
