#include "server/credential_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace tidal::server {

absl::StatusOr<std::string> ReadCredentialFile(absl::string_view flag, const std::string& path) {
  const auto refuse = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": '", path, "' ", why));
  };
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) return refuse("does not exist");
  if (error) return refuse(absl::StrCat("cannot be read: ", error.message()));
  if (!std::filesystem::is_regular_file(status)) return refuse("is not a regular file");
  std::ifstream file(path, std::ios::binary);
  if (!file) return refuse(absl::StrCat("cannot be read: ", std::strerror(errno)));
  std::string contents;
  contents.resize(kMaxCredentialFileBytes + 1);
  file.read(contents.data(), static_cast<std::streamsize>(contents.size()));
  if (file.bad()) return refuse("cannot be read");
  contents.resize(static_cast<size_t>(file.gcount()));
  if (contents.empty()) return refuse("is empty");
  if (contents.size() > kMaxCredentialFileBytes) {
    return refuse(absl::StrCat("has more than ", kMaxCredentialFileBytes, " bytes"));
  }
  return contents;
}

}  // namespace tidal::server
