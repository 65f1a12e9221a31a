#include "server/metrics_endpoint.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace tidal::server {
namespace {

// Between connections that wake the library's thread.
constexpr absl::Duration kWakeInterval = absl::Milliseconds(5);

// The host of "host:port", without the brackets of IPv6.
std::string HostOf(const std::string& address) {
  absl::string_view host = address;
  host = host.substr(0, host.rfind(':'));
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  return std::string(host);
}

// Connects to a port of this machine, and closes the connection. Waits for nothing.
void Connect(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found) != 0) return;
  const int descriptor = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (descriptor >= 0) {
    // What comes of it does not matter: where it fails, nobody is woken.
    static_cast<void>(connect(descriptor, found->ai_addr, found->ai_addrlen));
    close(descriptor);
  }
  freeaddrinfo(found);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const std::string& address, std::shared_ptr<prometheus::Collectable> metrics) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address);
    exposer->RegisterCollectable(metrics);
    const std::vector<int> ports = exposer->GetListeningPorts();
    const int port = ports.empty() ? 0 : ports.front();
    return absl::WrapUnique(
        new MetricsEndpoint(std::move(exposer), std::move(metrics), HostOf(address), port));
  } catch (const std::exception& exception) {
    return absl::UnavailableError(
        absl::StrCat("--metrics_address: cannot listen on '", address,
                     "' (in use, or not an address of this machine): ", exception.what()));
  }
}

MetricsEndpoint::~MetricsEndpoint() {
  // The library's thread notices that it is to end when its poll() of 2 s returns, or when somebody
  // connects.
  absl::Notification stopped;
  std::thread waker([this, &stopped] {
    while (!stopped.WaitForNotificationWithTimeout(kWakeInterval)) Connect(host_, port_);
  });
  exposer_.reset();
  stopped.Notify();
  waker.join();
}

}  // namespace tidal::server
