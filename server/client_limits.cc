#include "server/client_limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/check.h"
#include "server/status_mapping.h"

namespace tidal::server {
namespace {

absl::Status Exhausted(const std::string& message, absl::Duration retry_delay) {
  absl::Status status = absl::ResourceExhaustedError(message);
  SetRetryDelay(retry_delay, &status);
  return status;
}

}  // namespace

absl::StatusOr<ClientLimits::Lease> ClientLimits::Admit(const std::string& client,
                                                        ClientLimit* exceeded) {
  if (!has_limits()) return Lease();
  const std::lock_guard<std::mutex> lock(mutex_);
  auto it = clients_.find(client);
  if (it == clients_.end()) {
    if (clients_.size() >= options_.max_clients) ForgetIdleClients();
    if (clients_.size() >= options_.max_clients) {
      if (exceeded != nullptr) *exceeded = ClientLimit::kRequests;
      return Exhausted(absl::StrCat("more than ", options_.max_clients, " clients are active"),
                       kDefaultRetryDelay);
    }
    it = clients_.try_emplace(client).first;
    it->second.num_tokens = static_cast<double>(options_.max_tokens_per_minute);
    it->second.updated = clock_->Now();
  }
  Client& found = it->second;
  if (options_.max_requests > 0 && found.num_requests >= options_.max_requests) {
    if (exceeded != nullptr) *exceeded = ClientLimit::kRequests;
    return Exhausted(absl::StrCat("this client has ", found.num_requests,
                                  " requests in flight, limit ", options_.max_requests),
                     kDefaultRetryDelay);
  }
  Fill(&found);
  if (limits_tokens() && found.num_tokens < 1) {
    if (exceeded != nullptr) *exceeded = ClientLimit::kTokens;
    const absl::Duration delay = absl::Seconds((1 - found.num_tokens) / tokens_per_second());
    return Exhausted(absl::StrCat("this client has used up its ", options_.max_tokens_per_minute,
                                  " tokens a minute; it may retry in ",
                                  absl::FormatDuration(absl::Ceil(delay, absl::Milliseconds(1)))),
                     absl::Ceil(delay, absl::Milliseconds(1)));
  }
  ++found.num_requests;
  return Lease(this, client);
}

void ClientLimits::Fill(Client* client) const {
  if (!limits_tokens()) return;
  const absl::Time now = clock_->Now();
  client->num_tokens = std::min(
      client->num_tokens + absl::ToDoubleSeconds(now - client->updated) * tokens_per_second(),
      static_cast<double>(options_.max_tokens_per_minute));
  client->updated = now;
}

bool ClientLimits::IsForgettable(const Client& client) const {
  return client.num_requests == 0 &&
         client.num_tokens >= static_cast<double>(options_.max_tokens_per_minute);
}

void ClientLimits::ForgetIdleClients() {
  absl::erase_if(clients_, [this](auto& entry) {
    Fill(&entry.second);
    return IsForgettable(entry.second);
  });
}

void ClientLimits::Charge(const std::string& client, int64_t num_tokens) {
  if (!limits_tokens()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  Client& found = clients_.at(client);
  Fill(&found);
  found.num_tokens -= static_cast<double>(num_tokens);
}

void ClientLimits::End(const std::string& client) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = clients_.find(client);
  TIDAL_CHECK(it != clients_.end() && it->second.num_requests > 0, "a lease ends once");
  --it->second.num_requests;
  Fill(&it->second);
  if (IsForgettable(it->second)) clients_.erase(it);
}

}  // namespace tidal::server
