// W3C Trace Context (www.w3.org/TR/trace-context): which distributed trace a call belongs to.
// Stateless.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace tidal::server {

inline constexpr char kTraceparentKey[] = "traceparent";

struct TraceContext {
  std::string traceparent;  // as the client sent it
  std::string trace_id;     // 32 hexadecimal digits
};

// Nothing where `traceparent` is not of the form version-traceid-parentid-flags, in lower-case
// hexadecimal digits, neither id all zeros. Later versions than 00 may have more at the end.
std::optional<TraceContext> ParseTraceparent(absl::string_view traceparent);

}  // namespace tidal::server
