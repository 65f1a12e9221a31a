// What one client may ask for: requests in flight, and tokens a minute, prompts' and generated
// ones. Tokens come from a bucket that holds a minute's worth and fills steadily. A request is
// taken while a token is in the bucket, and pays for its prompt when it is queued and for each
// token as it is generated; so the bucket may go into debt, which is to be worked off before the
// next request. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/clock.h"

namespace tidal::server {

struct ClientLimitOptions {
  int32_t max_requests = 0;           // in flight; 0 = no limit
  int64_t max_tokens_per_minute = 0;  // 0 = no limit
  // Clients remembered at the same time: those with requests in flight or a bucket not yet full.
  size_t max_clients = size_t{1} << 16;
};

enum class ClientLimit : uint8_t { kRequests, kTokens };

class ClientLimits {
 public:
  // One request in flight. Move-only; may outlive the call, not the limits. An empty one, as
  // constructed, is nobody's.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept
        : limits_(std::exchange(other.limits_, nullptr)), client_(std::move(other.client_)) {}
    Lease& operator=(Lease&& other) = delete;
    ~Lease() {
      if (limits_ != nullptr) limits_->End(client_);
    }

    // Takes so many tokens out of the client's bucket.
    void Charge(int64_t num_tokens) const {
      if (limits_ != nullptr) limits_->Charge(client_, num_tokens);
    }

   private:
    friend class ClientLimits;
    Lease(ClientLimits* limits, std::string client) : limits_(limits), client_(std::move(client)) {}

    ClientLimits* limits_ = nullptr;
    std::string client_;
  };

  // `clock` must outlive this object.
  ClientLimits(const ClientLimitOptions& options, const Clock* clock)
      : options_(options), clock_(clock) {}
  ClientLimits(const ClientLimits&) = delete;
  ClientLimits& operator=(const ClientLimits&) = delete;

  // RESOURCE_EXHAUSTED, with the time to retry, names the limit; *exceeded, which may be null,
  // then says which one it is.
  absl::StatusOr<Lease> Admit(const std::string& client, ClientLimit* exceeded);

  size_t num_clients() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return clients_.size();
  }

 private:
  struct Client {
    int32_t num_requests = 0;
    double num_tokens = 0;  // in the bucket at `updated`; negative = debt
    absl::Time updated;
  };

  bool has_limits() const { return options_.max_requests > 0 || limits_tokens(); }
  bool limits_tokens() const { return options_.max_tokens_per_minute > 0; }
  double tokens_per_second() const {
    return static_cast<double>(options_.max_tokens_per_minute) / 60;
  }

  void Fill(Client* client) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Nothing would change if it were forgotten.
  bool IsForgettable(const Client& client) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetIdleClients() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Charge(const std::string& client, int64_t num_tokens);
  void End(const std::string& client);

  const ClientLimitOptions options_;
  const Clock* const clock_;
  mutable std::mutex mutex_;
  absl::flat_hash_map<std::string, Client> clients_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tidal::server
