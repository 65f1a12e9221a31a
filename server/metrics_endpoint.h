// The HTTP server of /metrics. Serves from threads of its own until it is destroyed, which takes
// milliseconds where nobody is being answered.
#pragma once

#include <prometheus/exposer.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace tidal::server {

class MetricsEndpoint {
 public:
  // `address` is host:port, with 0 for a free port. UNAVAILABLE where it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(
      const std::string& address, std::shared_ptr<prometheus::Collectable> metrics);

  MetricsEndpoint(const MetricsEndpoint&) = delete;
  MetricsEndpoint& operator=(const MetricsEndpoint&) = delete;
  ~MetricsEndpoint();

  int port() const { return port_; }

 private:
  MetricsEndpoint(std::unique_ptr<prometheus::Exposer> exposer,
                  std::shared_ptr<prometheus::Collectable> metrics, std::string host, int port)
      : metrics_(std::move(metrics)),
        exposer_(std::move(exposer)),
        host_(std::move(host)),
        port_(port) {}

  std::shared_ptr<prometheus::Collectable> metrics_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::string host_;  // As in the address that is listened on.
  int port_;
};

}  // namespace tidal::server
