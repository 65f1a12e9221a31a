#include "server/client_limits.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "server/status_mapping.h"
#include "tests/engine/fake_clock.h"

namespace tidal::server {
namespace {

using Admission = absl::StatusOr<ClientLimits::Lease>;

absl::Duration RetryDelayOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfoTypeUrl);
  google::rpc::RetryInfo retry_info;
  if (!payload.has_value() || !retry_info.ParseFromString(std::string(*payload))) {
    ADD_FAILURE() << "there is no RetryInfo in " << status;
  }
  return absl::Seconds(retry_info.retry_delay().seconds()) +
         absl::Nanoseconds(retry_info.retry_delay().nanos());
}

class ClientLimitsTest : public testing::Test {
 protected:
  FakeClock clock_;
  ClientLimit exceeded_ = ClientLimit::kRequests;
};

TEST_F(ClientLimitsTest, WithoutLimitsNobodyIsRemembered) {
  ClientLimits limits({}, &clock_);
  std::vector<ClientLimits::Lease> leases;
  for (int i = 0; i < 1000; ++i) {
    Admission lease = limits.Admit("a", &exceeded_);
    ASSERT_TRUE(lease.ok());
    lease->Charge(1'000'000);
    leases.push_back(*std::move(lease));
  }
  EXPECT_EQ(limits.num_clients(), 0u);
}

TEST_F(ClientLimitsTest, CountsTheRequestsOfEachClientByItself) {
  ClientLimits limits({.max_requests = 2}, &clock_);
  Admission first = limits.Admit("a", &exceeded_);
  Admission second = limits.Admit("a", &exceeded_);
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(second.ok());
  const Admission third = limits.Admit("a", &exceeded_);
  EXPECT_EQ(third.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(third.status().message(), "this client has 2 requests in flight, limit 2");
  EXPECT_EQ(RetryDelayOf(third.status()), kDefaultRetryDelay);
  EXPECT_EQ(exceeded_, ClientLimit::kRequests);
  EXPECT_TRUE(limits.Admit("b", &exceeded_).ok());
  { const ClientLimits::Lease ended = *std::move(first); }
  EXPECT_TRUE(limits.Admit("a", &exceeded_).ok());
}

TEST_F(ClientLimitsTest, ADebtIsWorkedOffBeforeTheNextRequest) {
  ClientLimits limits({.max_tokens_per_minute = 600}, &clock_);  // 10 a second
  {
    const Admission lease = limits.Admit("a", &exceeded_);
    ASSERT_TRUE(lease.ok());
    lease->Charge(600);
    lease->Charge(50);
  }
  const Admission early = limits.Admit("a", &exceeded_);
  EXPECT_EQ(early.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(early.status().message(),
            "this client has used up its 600 tokens a minute; it may retry in 5.1s");
  EXPECT_EQ(exceeded_, ClientLimit::kTokens);
  EXPECT_EQ(RetryDelayOf(early.status()), absl::Milliseconds(5100));
  EXPECT_TRUE(limits.Admit("b", &exceeded_).ok());
  clock_.Advance(absl::Seconds(5));
  EXPECT_FALSE(limits.Admit("a", &exceeded_).ok());
  clock_.Advance(absl::Milliseconds(100));
  EXPECT_TRUE(limits.Admit("a", &exceeded_).ok());
}

TEST_F(ClientLimitsTest, TheBucketHoldsNoMoreThanAMinute) {
  ClientLimits limits({.max_tokens_per_minute = 60}, &clock_);
  clock_.Advance(absl::Hours(10));
  const Admission lease = limits.Admit("a", &exceeded_);
  ASSERT_TRUE(lease.ok());
  clock_.Advance(absl::Hours(10));
  lease->Charge(60);
  EXPECT_FALSE(limits.Admit("a", &exceeded_).ok());
}

TEST_F(ClientLimitsTest, ForgetsClientsThatOweNothing) {
  ClientLimits limits({.max_requests = 1, .max_tokens_per_minute = 60, .max_clients = 2}, &clock_);
  { EXPECT_TRUE(limits.Admit("idle", &exceeded_).ok()); }
  EXPECT_EQ(limits.num_clients(), 0u);
  for (const char* client : {"a", "b"}) {
    const Admission lease = limits.Admit(client, &exceeded_);
    ASSERT_TRUE(lease.ok());
    lease->Charge(30);
  }
  EXPECT_EQ(limits.num_clients(), 2u);
  EXPECT_EQ(limits.Admit("c", &exceeded_).status().message(), "more than 2 clients are active");
  clock_.Advance(absl::Seconds(30));
  EXPECT_TRUE(limits.Admit("c", &exceeded_).ok());
}

TEST_F(ClientLimitsTest, ManyThreadsNeverExceedTheLimit) {
  ClientLimits limits({.max_requests = 3, .max_tokens_per_minute = 1 << 30}, &clock_);
  std::atomic<int> num_in_flight = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&limits, &num_in_flight] {
      for (int j = 0; j < 1000; ++j) {
        const Admission lease = limits.Admit("a", nullptr);
        if (!lease.ok()) continue;
        EXPECT_LE(++num_in_flight, 3);
        lease->Charge(1);
        --num_in_flight;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  clock_.Advance(absl::Minutes(1));
  { EXPECT_TRUE(limits.Admit("a", nullptr).ok()); }
  EXPECT_EQ(limits.num_clients(), 0u);
}

}  // namespace
}  // namespace tidal::server
