// A safetensors file, mapped read-only: 8 bytes of header length (little-endian), a JSON header,
// and the tensors' bytes. Immutable after Open, so any thread may read it.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/checkpoint/mapped_file.h"
#include "engine/checkpoint/safetensors_header.h"

namespace tidal {

class SafetensorsFile {
 public:
  // Maps the file and checks its whole header. Errors name the path; see MappedFile::Open and
  // ParseSafetensorsHeader.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::string& path() const { return file_->path(); }

  // Null where the file has no tensor of that name.
  const SafetensorsEntry* Find(absl::string_view name) const;

  // The bytes of one of this file's entries, valid as long as this object; of any alignment.
  absl::Span<const char> Bytes(const SafetensorsEntry& entry) const;

 private:
  SafetensorsFile(std::unique_ptr<MappedFile> file, SafetensorsHeader header,
                  absl::Span<const char> tensor_bytes)
      : file_(std::move(file)), header_(std::move(header)), tensor_bytes_(tensor_bytes) {}

  std::unique_ptr<MappedFile> file_;
  SafetensorsHeader header_;
  absl::Span<const char> tensor_bytes_;  // what follows the header
};

}  // namespace tidal
