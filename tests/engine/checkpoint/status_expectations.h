// What a failed absl::Status should say.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace tidal {

// Expects `code` and a message that holds every one of `parts`.
inline void ExpectError(const absl::Status& status, absl::StatusCode code,
                        const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(part));
  }
}

inline void ExpectInvalid(const absl::Status& status, const std::vector<std::string>& parts) {
  ExpectError(status, absl::StatusCode::kInvalidArgument, parts);
}

}  // namespace tidal
