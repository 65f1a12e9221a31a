// Files with certificates, keys and tokens: small, and replaced while the server runs. Contents
// never get into a message. Stateless, but for ReloadTimer.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace tidal::server {

inline constexpr size_t kMaxCredentialFileBytes = size_t{1} << 20;

// The whole file; symbolic links are followed, as Kubernetes' secrets need it. INVALID_ARGUMENT
// names `flag` and the path: no regular file, empty, too large, or not readable.
absl::StatusOr<std::string> ReadCredentialFile(absl::string_view flag, const std::string& path);

// Says when files shall be read again. Not thread-safe.
class ReloadTimer {
 public:
  ReloadTimer(absl::Duration interval, absl::Time now)
      : interval_(interval), next_reload_(now + interval) {}

  // True once in each interval, for who asks first.
  bool IsDue(absl::Time now) {
    if (now < next_reload_) return false;
    next_reload_ = now + interval_;
    return true;
  }

 private:
  const absl::Duration interval_;
  absl::Time next_reload_;
};

}  // namespace tidal::server
