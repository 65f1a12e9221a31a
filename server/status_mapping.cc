#include "server/status_mapping.h"

#include <google/protobuf/duration.pb.h>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/rpc/status.pb.h"

namespace tidal::server {
namespace {

std::string CutMessage(absl::string_view message) {
  constexpr absl::string_view kEllipsis = "...";
  if (message.size() <= kMaxStatusMessageBytes) return std::string(message);
  size_t size = kMaxStatusMessageBytes - kEllipsis.size();
  // Not inside a UTF-8 code point.
  while (size > 0 && (static_cast<unsigned char>(message[size]) & 0xC0) == 0x80) --size;
  return absl::StrCat(message.substr(0, size), kEllipsis);
}

bool WantsRetryInfo(const absl::Status& status) {
  return (absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) &&
         !status.GetPayload(kRetryInfoTypeUrl).has_value();
}

}  // namespace

void SetBadRequest(const google::rpc::BadRequest& bad_request, absl::Status* status) {
  status->SetPayload(kBadRequestTypeUrl, absl::Cord(bad_request.SerializeAsString()));
}

void SetRetryDelay(absl::Duration delay, absl::Status* status) {
  google::rpc::RetryInfo retry_info;
  absl::Duration rest = delay;
  retry_info.mutable_retry_delay()->set_seconds(absl::IDivDuration(delay, absl::Seconds(1), &rest));
  retry_info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  status->SetPayload(kRetryInfoTypeUrl, absl::Cord(retry_info.SerializeAsString()));
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  absl::Status detailed = status;
  if (WantsRetryInfo(detailed)) SetRetryDelay(kDefaultRetryDelay, &detailed);
  const std::string message = CutMessage(detailed.message());

  google::rpc::Status details;
  details.set_code(static_cast<int32_t>(detailed.code()));
  details.set_message(message);
  detailed.ForEachPayload([&details](absl::string_view type_url, const absl::Cord& payload) {
    google::protobuf::Any* any = details.add_details();
    any->set_type_url(std::string(type_url));
    any->set_value(std::string(payload));
  });
  return grpc::Status(static_cast<grpc::StatusCode>(detailed.code()), message,
                      details.details().empty() ? std::string() : details.SerializeAsString());
}

std::string CodeName(grpc::StatusCode code) {
  if (code == grpc::StatusCode::OK) return "OK";
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

std::string CodeName(const absl::Status& status) {
  return CodeName(static_cast<grpc::StatusCode>(status.code()));
}

std::vector<grpc::StatusCode> AllCodes() {
  std::vector<grpc::StatusCode> codes;
  for (int code = grpc::StatusCode::OK; code <= grpc::StatusCode::UNAUTHENTICATED; ++code) {
    codes.push_back(static_cast<grpc::StatusCode>(code));
  }
  return codes;
}

}  // namespace tidal::server
