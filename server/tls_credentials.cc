#include "server/tls_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <mutex>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "engine/backend/status_macros.h"
#include "engine/check.h"
#include "server/credential_file.h"
#include "server/logging.h"

namespace tidal::server {
namespace {

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Bio = std::unique_ptr<BIO, Deleter<&BIO_free>>;
using Certificate = std::unique_ptr<X509, Deleter<&X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Deleter<&EVP_PKEY_free>>;

Bio BioOf(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Instead of asking on the terminal.
int RefusePassphrase(char* /*buffer*/, int /*size*/, int /*is_writing*/, void* /*argument*/) {
  return 0;
}

// The first certificate; null where there is none.
Certificate ParseCertificate(const std::string& pem) {
  return Certificate(PEM_read_bio_X509(BioOf(pem).get(), nullptr, &RefusePassphrase, nullptr));
}

absl::Status Refuse(absl::string_view flag, const std::string& path, absl::string_view why) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": '", path, "' ", why));
}

// Hands gRPC the files' contents at each handshake where they have changed. Thread-safe.
class TlsReloader {
 public:
  TlsReloader(TlsFiles files, TlsMaterial material, absl::Duration reload_interval,
              const Clock* clock)
      : files_(std::move(files)),
        clock_(clock),
        timer_(reload_interval, clock->Now()),
        material_(std::move(material)) {}

  grpc_ssl_certificate_config_reload_status Fetch(grpc_ssl_server_certificate_config** config) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (timer_.IsDue(clock_->Now())) Reload();
    if (is_fetched_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {.private_key = material_.private_key.c_str(),
                                             .cert_chain = material_.certificate_chain.c_str()};
    // gRPC insists on certificates to check clients by, even where no client is asked for one.
    const std::string& client_ca =
        material_.client_ca.empty() ? material_.certificate_chain : material_.client_ca;
    *config = grpc_ssl_server_certificate_config_create(client_ca.c_str(), &pair, 1);
    is_fetched_ = true;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

 private:
  void Reload() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    absl::StatusOr<TlsMaterial> material = ReadTlsMaterial(files_);
    const absl::Status former_error = std::exchange(last_error_, material.status());
    if (!material.ok()) {
      if (last_error_ == former_error) return;
      Log(LogLevel::err, "certificates cannot be reloaded, the former ones stay in force",
          {{"error", std::string(last_error_.message())}});
      return;
    }
    if (*material == material_) return;
    Log(LogLevel::info, "certificates reloaded", {{"path", files_.certificate_file}});
    material_ = *std::move(material);
    is_fetched_ = false;
  }

  const TlsFiles files_;
  const Clock* const clock_;
  std::mutex mutex_;
  ReloadTimer timer_ ABSL_GUARDED_BY(mutex_);
  TlsMaterial material_ ABSL_GUARDED_BY(mutex_);
  bool is_fetched_ ABSL_GUARDED_BY(mutex_) = false;  // gRPC has material_
  absl::Status last_error_ ABSL_GUARDED_BY(mutex_);  // of the last reload
};

grpc_ssl_certificate_config_reload_status FetchFrom(void* reloader,
                                                    grpc_ssl_server_certificate_config** config) {
  return static_cast<TlsReloader*>(reloader)->Fetch(config);
}

// gRPC's C++ has certificates that never change, and an experimental watcher that takes what it
// reads unchecked; its C API asks at each handshake, and keeps what it has where it gets nothing
// better.
class TlsCredentials : public grpc::ServerCredentials {
 public:
  TlsCredentials(std::unique_ptr<TlsReloader> reloader, bool asks_clients)
      : reloader_(std::move(reloader)),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                asks_clients ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                             : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
                &FetchFrom, reloader_.get()))) {}
  ~TlsCredentials() override { grpc_server_credentials_release(credentials_); }
  TlsCredentials(const TlsCredentials&) = delete;
  TlsCredentials& operator=(const TlsCredentials&) = delete;

  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>& /*processor*/) override {
    TIDAL_CHECK(false, "calls are authenticated by AccessControl");
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  const std::unique_ptr<TlsReloader> reloader_;
  grpc_server_credentials* const credentials_;
};

}  // namespace

absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsFiles& files) {
  TlsMaterial material;
  TIDAL_ASSIGN_OR_RETURN(material.certificate_chain,
                         ReadCredentialFile("tls_certificate_file", files.certificate_file));
  TIDAL_ASSIGN_OR_RETURN(material.private_key, ReadCredentialFile("tls_key_file", files.key_file));
  const Certificate certificate = ParseCertificate(material.certificate_chain);
  if (certificate == nullptr) {
    return Refuse("tls_certificate_file", files.certificate_file, "has no certificate in PEM");
  }
  const PrivateKey key(PEM_read_bio_PrivateKey(BioOf(material.private_key).get(), nullptr,
                                               &RefusePassphrase, nullptr));
  if (key == nullptr) {
    return Refuse("tls_key_file", files.key_file,
                  "has no private key in PEM, or one with a passphrase");
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return Refuse(
        "tls_key_file", files.key_file,
        absl::StrCat("is not the key of the first certificate in '", files.certificate_file, "'"));
  }
  if (files.client_ca_file.empty()) return material;
  TIDAL_ASSIGN_OR_RETURN(material.client_ca,
                         ReadCredentialFile("tls_client_ca_file", files.client_ca_file));
  if (ParseCertificate(material.client_ca) == nullptr) {
    return Refuse("tls_client_ca_file", files.client_ca_file, "has no certificate in PEM");
  }
  return material;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> CreateTlsCredentials(
    TlsFiles files, absl::Duration reload_interval, const Clock* clock) {
  TIDAL_ASSIGN_OR_RETURN(TlsMaterial material, ReadTlsMaterial(files));
  const bool asks_clients = !files.client_ca_file.empty();
  auto reloader =
      std::make_unique<TlsReloader>(std::move(files), std::move(material), reload_interval, clock);
  return std::make_shared<TlsCredentials>(std::move(reloader), asks_clients);
}

}  // namespace tidal::server
