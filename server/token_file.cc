#include "server/token_file.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/backend/status_macros.h"
#include "server/logging.h"

namespace tidal::server {
namespace {

bool IsNameCharacter(unsigned char c) {
  return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
}

// What is wrong with a line's two parts; empty where nothing is.
std::string Complaint(absl::string_view name, absl::string_view token) {
  if (name.empty() || name.size() > kMaxTokenNameBytes ||
      !std::all_of(name.begin(), name.end(), IsNameCharacter)) {
    return absl::StrCat("the name has not 1 to ", kMaxTokenNameBytes,
                        " letters, digits, '.', '_' or '-'");
  }
  if (token.size() < kMinTokenBytes || token.size() > kMaxTokenBytes) {
    return absl::StrCat("the token has ", token.size(), " characters, which is not in [",
                        kMinTokenBytes, ", ", kMaxTokenBytes, "]");
  }
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isgraph)) {
    return "the token has characters that are not printable ASCII, or are spaces";
  }
  return "";
}

}  // namespace

TokenList::Digest TokenList::DigestOf(absl::string_view token) {
  Digest digest;
  static_assert(sizeof(Digest) == SHA256_DIGEST_LENGTH);
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

absl::StatusOr<TokenList> TokenList::Parse(absl::string_view text) {
  TokenList list;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    const auto refuse = [line_number](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("line ", line_number, ": ", why));
    };
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const size_t colon = line.find(':');
    if (colon == absl::string_view::npos) return refuse("is not name:token");
    const absl::string_view name = line.substr(0, colon);
    const absl::string_view token = line.substr(colon + 1);
    if (const std::string why = Complaint(name, token); !why.empty()) return refuse(why);
    if (list.NameOf(token).has_value()) return refuse("repeats a token of a line above");
    list.entries_.push_back({std::string(name), DigestOf(token)});
  }
  if (list.entries_.empty()) return absl::InvalidArgumentError("there is no name:token in it");
  return list;
}

std::optional<std::string> TokenList::NameOf(absl::string_view token) const {
  const Digest digest = DigestOf(token);
  const Entry* match = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0) match = &entry;
  }
  if (match == nullptr) return std::nullopt;
  return match->name;
}

namespace {

absl::StatusOr<TokenList> ReadList(absl::string_view flag, const std::string& path) {
  TIDAL_ASSIGN_OR_RETURN(const std::string text, ReadCredentialFile(flag, path));
  absl::StatusOr<TokenList> list = TokenList::Parse(text);
  if (list.ok()) return list;
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, ": '", path, "': ", list.status().message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenFile>> TokenFile::Open(std::string flag, std::string path,
                                                           absl::Duration reload_interval,
                                                           const Clock* clock) {
  TIDAL_ASSIGN_OR_RETURN(TokenList list, ReadList(flag, path));
  return absl::WrapUnique(
      new TokenFile(std::move(flag), std::move(path), reload_interval, clock, std::move(list)));
}

TokenFile::TokenFile(std::string flag, std::string path, absl::Duration reload_interval,
                     const Clock* clock, TokenList list)
    : flag_(std::move(flag)),
      path_(std::move(path)),
      clock_(clock),
      timer_(reload_interval, clock->Now()),
      list_(std::move(list)) {}

std::optional<std::string> TokenFile::NameOf(absl::string_view token) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (timer_.IsDue(clock_->Now())) Reload();
  return list_.NameOf(token);
}

void TokenFile::Reload() {
  absl::StatusOr<TokenList> list = ReadList(flag_, path_);
  const absl::Status former_error = std::exchange(last_error_, list.status());
  if (!list.ok()) {
    if (last_error_ == former_error) return;
    Log(LogLevel::err, "tokens cannot be reloaded, the former ones stay in force",
        {{"error", std::string(last_error_.message())}});
    return;
  }
  if (*list == list_) return;
  Log(LogLevel::info, "tokens reloaded", {{"path", path_}});
  list_ = *std::move(list);
}

}  // namespace tidal::server
