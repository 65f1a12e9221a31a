#include "server/access_control.h"

#include <grpcpp/security/auth_context.h>

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace tidal::server {
namespace {

constexpr absl::string_view kBearer = "bearer ";  // of any case, as RFC 9110 has it

std::optional<absl::string_view> BearerToken(const grpc::ServerContextBase& context) {
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  if (begin == end || std::next(begin) != end) return std::nullopt;
  const absl::string_view value(begin->second.data(), begin->second.size());
  if (!absl::StartsWithIgnoreCase(value, kBearer)) return std::nullopt;
  return value.substr(kBearer.size());
}

}  // namespace

absl::StatusOr<std::string> AccessControl::Identify(const grpc::ServerContextBase& context) const {
  if (tokens_ != nullptr) {
    const std::optional<absl::string_view> token = BearerToken(context);
    std::optional<std::string> name;
    if (token.has_value()) name = tokens_->NameOf(*token);
    if (!name.has_value()) return absl::UnauthenticatedError("a valid bearer token is needed");
    return *std::move(name);
  }
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer != nullptr && peer->IsPeerAuthenticated()) {
    const std::vector<grpc::string_ref> identities = peer->GetPeerIdentity();
    if (!identities.empty()) return std::string(identities[0].data(), identities[0].size());
  }
  return HostOfPeer(context.peer());
}

std::string HostOfPeer(absl::string_view peer) {
  const size_t scheme_end = peer.find(':');
  if (scheme_end == absl::string_view::npos) return std::string(peer);
  const absl::string_view scheme = peer.substr(0, scheme_end);
  if (scheme == "unix" || scheme == "unix-abstract") return "unix";
  absl::string_view host = peer.substr(scheme_end + 1);
  host = host.substr(0, host.rfind(':'));
  if (scheme == "ipv4") return std::string(host);
  if (scheme == "ipv6" && absl::ConsumePrefix(&host, "%5B") && absl::ConsumeSuffix(&host, "%5D")) {
    return absl::StrCat("[", host, "]");
  }
  return std::string(peer);
}

}  // namespace tidal::server
