// The API's enum values in the words of the command line and of JSON output. Pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tidal/inference/v1/attention.pb.h"
#include "tidal/inference/v1/inference.pb.h"

namespace tidal::client {

// "full", "tidal", "quest", "unspecified"; a value of a newer API as its number.
std::string AttentionModeName(inference::v1::AttentionMode mode);

// The inverse, for full, tidal and quest.
absl::StatusOr<inference::v1::AttentionMode> ParseAttentionMode(absl::string_view name);

// "query_head", "kv_head", "layer", "unspecified".
std::string SelectionScopeName(inference::v1::SelectionScope scope);

// "end_of_sequence", "stop_token", "stop_string", "length", "unspecified".
std::string FinishReasonName(inference::v1::FinishReason reason);

}  // namespace tidal::client
