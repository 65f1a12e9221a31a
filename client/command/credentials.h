// Encryption and identity of the client, from the command line's files.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/command/flag_set.h"
#include "client/inference_client.h"

namespace tidal::client {

struct CredentialFlags {
  bool tls = false;
  std::string ca_file;     // PEM
  std::string cert_file;   // PEM; with key_file
  std::string key_file;    // PEM
  std::string token_file;  // one bearer token
};

// `values` must outlive `flags`.
void AddCredentialFlags(FlagSet& flags, CredentialFlags* values);

// Reads the files. Nothing where neither --tls nor a file of it is given. INVALID_ARGUMENT where a
// file cannot be read, or only one of certificate and key is given.
absl::StatusOr<std::optional<TlsOptions>> ReadTlsOptions(const CredentialFlags& flags);

// The token of --token_file without the white space around it, empty without the flag.
// INVALID_ARGUMENT where the file cannot be read, is empty or holds more than one printable word.
absl::StatusOr<std::string> ReadBearerToken(const CredentialFlags& flags);

}  // namespace tidal::client
