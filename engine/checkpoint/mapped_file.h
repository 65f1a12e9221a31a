// A regular file mapped read-only into memory, for weights and for small text files alike.
// Immutable after Open, so any thread may read it. A file that is truncated while it is mapped
// raises SIGBUS on access, as with every mapping: checkpoints are replaced by renaming, not in
// place.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace tidal {

class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or another error of the system, or INVALID_ARGUMENT where `path`
  // is not a regular file or longer than `max_size_bytes`; all name the path. Empty files are fine.
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path,
                                                          uint64_t max_size_bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  absl::Span<const char> contents() const { return contents_; }

  // Tells the system that the contents will be read once, front to back.
  void AdviseSequential() const;

 private:
  MappedFile(std::string path, absl::Span<const char> contents)
      : path_(std::move(path)), contents_(contents) {}

  std::string path_;
  absl::Span<const char> contents_;
};

}  // namespace tidal
