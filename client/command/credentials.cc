#include "client/command/credentials.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace tidal::client {
namespace {

// The file's whole text; empty where `path` is.
absl::StatusOr<std::string> ReadFile(absl::string_view flag, const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("flag --", flag, ": cannot read ", path, ": ",
                     file.is_open() ? "it is empty or no file" : strerror(errno)));
  }
  return text.str();
}

}  // namespace

void AddCredentialFlags(FlagSet& flags, CredentialFlags* values) {
  flags.Add("tls", &values->tls, "", "encrypt, and check the server's certificate");
  flags.Add("ca_file", &values->ca_file, "PATH",
            "certificates to trust instead of the system's (PEM); implies --tls");
  flags.Add("cert_file", &values->cert_file, "PATH",
            "the client's own certificate chain (PEM), with --key_file; implies --tls");
  flags.Add("key_file", &values->key_file, "PATH", "its private key (PEM)");
  flags.Add("token_file", &values->token_file, "PATH",
            "bearer token that goes with each call as `authorization`");
}

absl::StatusOr<std::optional<TlsOptions>> ReadTlsOptions(const CredentialFlags& flags) {
  const bool has_file =
      !flags.ca_file.empty() || !flags.cert_file.empty() || !flags.key_file.empty();
  if (!flags.tls && !has_file) return std::optional<TlsOptions>();
  if (flags.cert_file.empty() != flags.key_file.empty()) {
    return absl::InvalidArgumentError("--cert_file and --key_file need each other");
  }
  TlsOptions options;
  for (const auto& [flag, path, contents] :
       {std::tuple("ca_file", &flags.ca_file, &options.ca_certificates),
        std::tuple("cert_file", &flags.cert_file, &options.certificate_chain),
        std::tuple("key_file", &flags.key_file, &options.private_key)}) {
    absl::StatusOr<std::string> text = ReadFile(flag, *path);
    if (!text.ok()) return text.status();
    *contents = *std::move(text);
  }
  return std::optional<TlsOptions>(std::move(options));
}

absl::StatusOr<std::string> ReadBearerToken(const CredentialFlags& flags) {
  absl::StatusOr<std::string> text = ReadFile("token_file", flags.token_file);
  if (!text.ok() || text->empty()) return text;
  const absl::string_view token = absl::StripAsciiWhitespace(*text);
  // What the token is stays out of the message.
  if (token.empty() || !std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError(absl::StrCat("flag --token_file: ", flags.token_file,
                                                   " does not hold one word of printable ASCII"));
  }
  return std::string(token);
}

}  // namespace tidal::client
