// Bearer tokens, as a file lists them: one `name:token` a line; empty lines and lines that begin
// with '#' are skipped. The name stands for the client in logs and limits; a name may have several
// tokens, as it has while one replaces another. What is kept of a token is its SHA-256.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "server/credential_file.h"

namespace tidal::server {

inline constexpr size_t kMaxTokenNameBytes = 64;
// Shorter ones can be guessed.
inline constexpr size_t kMinTokenBytes = 16;
inline constexpr size_t kMaxTokenBytes = 1024;

// Immutable.
class TokenList {
 public:
  // Names consist of letters, digits, '.', '_' and '-', tokens of printable ASCII without spaces.
  // INVALID_ARGUMENT names the line, and never says what is in it.
  static absl::StatusOr<TokenList> Parse(absl::string_view text);

  // The name of who holds `token`, or nothing. Takes the same time whichever token it is, and
  // wherever it differs from one.
  std::optional<std::string> NameOf(absl::string_view token) const;

  bool operator==(const TokenList& other) const = default;

 private:
  using Digest = std::array<uint8_t, 32>;  // SHA-256
  struct Entry {
    std::string name;
    Digest digest;
    bool operator==(const Entry& other) const = default;
  };

  static Digest DigestOf(absl::string_view token);

  std::vector<Entry> entries_;
};

// The list in a file, read again where it is asked after at least `reload_interval`. A file that
// has become unreadable or wrong leaves the list as it was, and the log says so. Thread-safe.
class TokenFile {
 public:
  // `flag` is what the file is called in messages. `clock` must outlive this object.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(std::string flag, std::string path,
                                                         absl::Duration reload_interval,
                                                         const Clock* clock);

  std::optional<std::string> NameOf(absl::string_view token);

 private:
  TokenFile(std::string flag, std::string path, absl::Duration reload_interval, const Clock* clock,
            TokenList list);

  void Reload() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string flag_;
  const std::string path_;
  const Clock* const clock_;
  std::mutex mutex_;
  ReloadTimer timer_ ABSL_GUARDED_BY(mutex_);
  TokenList list_ ABSL_GUARDED_BY(mutex_);
  absl::Status last_error_ ABSL_GUARDED_BY(mutex_);  // of the last reload
};

}  // namespace tidal::server
