#include "engine/checkpoint/safetensors_file.h"

#include <cstdint>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"

namespace tidal {
namespace {

constexpr uint64_t kLengthBytes = 8;

uint64_t ReadLittleEndian64(absl::Span<const char> bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    value |= uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  }
  return value;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  TIDAL_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path, std::numeric_limits<int64_t>::max()));
  const absl::Span<const char> contents = file->contents();
  if (contents.size() < kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": size is ", contents.size(),
                                                   " bytes; a safetensors file has at least ",
                                                   kLengthBytes));
  }
  const uint64_t header_length = ReadLittleEndian64(contents);
  if (header_length > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header length is ", header_length,
                                                   " bytes; supported: at most ",
                                                   kMaxSafetensorsHeaderBytes));
  }
  if (header_length > contents.size() - kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": header length is ", header_length, " bytes, but only ",
                     contents.size() - kLengthBytes, " follow; is the file truncated?"));
  }
  const auto tensor_bytes = contents.subspan(kLengthBytes + header_length);
  absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(contents.subspan(kLengthBytes, header_length), tensor_bytes.size());
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat(path, ": ", header.status().message()));
  }
  file->AdviseSequential();
  return std::unique_ptr<SafetensorsFile>(
      new SafetensorsFile(std::move(file), *std::move(header), tensor_bytes));
}

const SafetensorsEntry* SafetensorsFile::Find(absl::string_view name) const {
  const auto found = header_.find(name);
  return found == header_.end() ? nullptr : &found->second;
}

absl::Span<const char> SafetensorsFile::Bytes(const SafetensorsEntry& entry) const {
  return tensor_bytes_.subspan(entry.begin, entry.end - entry.begin);
}

}  // namespace tidal
