// Gathers what is wrong with a message, field by field, into one status. Not thread-safe.
#pragma once

#include <google/protobuf/message.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "google/rpc/error_details.pb.h"

namespace tidal::server {

class Violations {
 public:
  // `field` is a path from the request, as in "sampling.top_p"; `description` follows it after ":
  // ".
  void AddInvalid(absl::string_view field, absl::string_view description);
  void AddUnimplemented(absl::string_view field, absl::string_view description);

  // Every field that the message, or one within it, has and this version of the API does not.
  void AddUnknownFields(const google::protobuf::Message& message);

  // Checks `low <= value <= high`, or `low < value <= high`; NaN is in no range.
  template <typename T>
  void CheckClosed(absl::string_view field, T value, T low, T high) {
    if (value >= low && value <= high) return;
    AddInvalid(field, absl::StrCat(value, " is not in [", low, ", ", high, "]"));
  }
  template <typename T>
  void CheckHalfOpen(absl::string_view field, T value, T low, T high) {
    if (value > low && value <= high) return;
    AddInvalid(field, absl::StrCat(value, " is not in (", low, ", ", high, "]"));
  }

  bool empty() const { return num_violations_ == 0; }

  // OK where nothing is wrong. UNIMPLEMENTED where nothing is invalid, INVALID_ARGUMENT otherwise,
  // with google.rpc.BadRequest (see status_mapping.h).
  absl::Status ToStatus() const;

 private:
  void Add(absl::string_view field, absl::string_view description);

  google::rpc::BadRequest bad_request_;  // the first kMaxViolations
  int num_violations_ = 0;
  int num_invalid_ = 0;
};

}  // namespace tidal::server
