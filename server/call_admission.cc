#include "server/call_admission.h"

#include <utility>

#include "engine/backend/status_macros.h"

namespace tidal::server {

absl::StatusOr<ActiveCall> CallAdmission::Admit(const grpc::ServerContextBase& context,
                                                CallInfo* call) const {
  TIDAL_ASSIGN_OR_RETURN(call->client, Identify(context));
  return AdmitToServer();
}

absl::StatusOr<ActiveCall> CallAdmission::AdmitGeneration(const grpc::ServerContextBase& context,
                                                          CallInfo* call) const {
  TIDAL_ASSIGN_OR_RETURN(ActiveCall admission, Admit(context, call));
  ClientLimit exceeded = ClientLimit::kRequests;
  absl::StatusOr<ClientLimits::Lease> lease = limits_->Admit(call->client, &exceeded);
  if (!lease.ok()) {
    metrics_->CountClientLimit(exceeded);
    return lease.status();
  }
  call->lease.emplace(*std::move(lease));
  return admission;
}

absl::StatusOr<std::string> CallAdmission::Identify(const grpc::ServerContextBase& context) const {
  absl::StatusOr<std::string> client = access_->Identify(context);
  if (!client.ok()) metrics_->CountUnauthenticated();
  return client;
}

absl::StatusOr<ActiveCall> CallAdmission::AdmitToServer() const {
  absl::StatusOr<ActiveCall> admission = lifecycle_->Admit();
  if (!admission.ok()) metrics_->CountRefusal(lifecycle_->phase());
  return admission;
}

}  // namespace tidal::server
