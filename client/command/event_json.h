// The API's messages as JSON objects, for --json: one object a line. Names are those of the proto;
// enums are in the words of client/command/names.h. Pure functions but for WriteJsonLine.
#pragma once

#include <nlohmann/json.hpp>
#include <ostream>

#include "absl/status/status.h"
#include "tidal/inference/v1/inference.pb.h"
#include "tidal/inference/v1/model.pb.h"

namespace tidal::client {

// {"event":"started"|"progress"|"delta"|"finished",...}; an event of a newer API is "unknown".
nlohmann::ordered_json EventJson(const inference::v1::GenerateStreamResponse& event);

// {"event":"response",...}: the whole result of a call that does not stream.
nlohmann::ordered_json ResponseJson(const inference::v1::GenerateResponse& response);

// {"event":"error","code":...,"message":...} and, where the server sent them, "field_violations"
// and "retry_delay_seconds".
nlohmann::ordered_json ErrorJson(const absl::Status& status);

// {"tokens":[{"token_id":...,"token":...,"bytes":[...]},...]}
nlohmann::ordered_json TokensJson(const inference::v1::TokenizeResponse& response);

nlohmann::ordered_json ModelInfoJson(const inference::v1::GetModelInfoResponse& info);

// Writes one line and flushes. Bytes that are no UTF-8 become U+FFFD.
void WriteJsonLine(const nlohmann::ordered_json& json, std::ostream& out);

}  // namespace tidal::client
