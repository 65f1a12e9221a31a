#include "server/status_mapping.h"

#include <google/protobuf/duration.pb.h>
#include <gtest/gtest.h>

#include <string>

#include "google/rpc/status.pb.h"

namespace tidal::server {
namespace {

google::rpc::Status DetailsOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(StatusMappingTest, KeepsEveryCodeAndItsMessage) {
  for (const grpc::StatusCode code : AllCodes()) {
    if (code == grpc::StatusCode::OK) continue;
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(status.error_code(), code);
    EXPECT_EQ(status.error_message(), "why");
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

TEST(StatusMappingTest, CarriesBadRequestAsDetails) {
  google::rpc::BadRequest bad_request;
  bad_request.add_field_violations()->set_field("sampling.top_p");
  absl::Status status = absl::InvalidArgumentError("wrong");
  SetBadRequest(bad_request, &status);
  const google::rpc::Status details = DetailsOf(ToGrpcStatus(status));
  EXPECT_EQ(details.code(), 3);
  EXPECT_EQ(details.message(), "wrong");
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.BadRequest");
  google::rpc::BadRequest parsed;
  ASSERT_TRUE(details.details(0).UnpackTo(&parsed));
  EXPECT_EQ(parsed.field_violations(0).field(), "sampling.top_p");
}

TEST(StatusMappingTest, TellsWhenToRetryWhatMayBeRetried) {
  for (const absl::Status& status :
       {absl::ResourceExhaustedError("full"), absl::UnavailableError("loading")}) {
    const google::rpc::Status details = DetailsOf(ToGrpcStatus(status));
    ASSERT_EQ(details.details_size(), 1);
    google::rpc::RetryInfo retry_info;
    ASSERT_TRUE(details.details(0).UnpackTo(&retry_info));
    EXPECT_EQ(retry_info.retry_delay().seconds(), 1);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::InternalError("bug")).error_details().empty());
}

TEST(StatusMappingTest, KeepsARetryDelayThatIsSetAlready) {
  absl::Status status = absl::UnavailableError("draining");
  SetRetryDelay(absl::Milliseconds(2500), &status);
  const google::rpc::Status details = DetailsOf(ToGrpcStatus(status));
  ASSERT_EQ(details.details_size(), 1);
  google::rpc::RetryInfo retry_info;
  ASSERT_TRUE(details.details(0).UnpackTo(&retry_info));
  EXPECT_EQ(retry_info.retry_delay().seconds(), 2);
  EXPECT_EQ(retry_info.retry_delay().nanos(), 500'000'000);
}

TEST(StatusMappingTest, CutsLongMessagesBetweenCodePoints) {
  std::string message(kMaxStatusMessageBytes - 4, 'a');
  for (int i = 0; i < 10; ++i) message += "\u00e9";  // two bytes each
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError(message));
  EXPECT_LE(status.error_message().size(), kMaxStatusMessageBytes);
  EXPECT_EQ(status.error_message(), std::string(kMaxStatusMessageBytes - 4, 'a') + "...");
}

TEST(StatusMappingTest, NamesCodesAsGrpcDoes) {
  EXPECT_EQ(CodeName(grpc::StatusCode::OK), "OK");
  EXPECT_EQ(CodeName(grpc::StatusCode::RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED");
  EXPECT_EQ(AllCodes().size(), 17u);
}

}  // namespace
}  // namespace tidal::server
