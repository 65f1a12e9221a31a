#include "engine/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace tidal {
namespace {

struct FileDescriptor {
  int fd;
  ~FileDescriptor() {
    if (fd >= 0) close(fd);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path,
                                                             uint64_t max_size_bytes) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const FileDescriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot open"));
  struct stat status = {};
  if (fstat(file.fd, &status) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot stat"));
  }
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  const size_t size_bytes = static_cast<size_t>(status.st_size);
  if (size_bytes > max_size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": size is ", size_bytes,
                                                   " bytes; supported: at most ", max_size_bytes));
  }
  absl::Span<const char> contents;
  if (size_bytes > 0) {  // mmap refuses empty mappings
    void* address = mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (address == MAP_FAILED) {
      return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot map ", size_bytes, " bytes"));
    }
    contents = absl::MakeConstSpan(static_cast<const char*>(address), size_bytes);
  }
  return std::unique_ptr<MappedFile>(new MappedFile(path, contents));
}

MappedFile::~MappedFile() {
  if (!contents_.empty()) munmap(const_cast<char*>(contents_.data()), contents_.size());
}

void MappedFile::AdviseSequential() const {
  // Only advice: a failure changes nothing but speed.
  if (!contents_.empty()) {
    madvise(const_cast<char*>(contents_.data()), contents_.size(), MADV_SEQUENTIAL);
  }
}

}  // namespace tidal
