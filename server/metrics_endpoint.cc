#include "server/metrics_endpoint.h"

#include <exception>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"

namespace tidal::server {

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const std::string& address, std::shared_ptr<prometheus::Collectable> metrics) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address);
    exposer->RegisterCollectable(metrics);
    const std::vector<int> ports = exposer->GetListeningPorts();
    const int port = ports.empty() ? 0 : ports.front();
    return absl::WrapUnique(new MetricsEndpoint(std::move(exposer), std::move(metrics), port));
  } catch (const std::exception& exception) {
    return absl::UnavailableError(
        absl::StrCat("--metrics_address: cannot listen on '", address,
                     "' (in use, or not an address of this machine): ", exception.what()));
  }
}

}  // namespace tidal::server
