#include "server/trace_context.h"

#include <algorithm>

namespace tidal::server {
namespace {

// Where the parts of version 00 are: vv-tttttttttttttttttttttttttttttttt-pppppppppppppppp-ff.
constexpr size_t kTraceIdBegin = 3;
constexpr size_t kTraceIdSize = 32;
constexpr size_t kParentIdBegin = 36;
constexpr size_t kParentIdSize = 16;
constexpr size_t kFlagsBegin = 53;
constexpr size_t kSize = 55;
// What a later version may need; longer ones are not believed.
constexpr size_t kMaxSize = 256;

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsId(absl::string_view text) {
  return IsHex(text) && text.find_first_not_of('0') != absl::string_view::npos;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(absl::string_view traceparent) {
  if (traceparent.size() < kSize || traceparent.size() > kMaxSize) return std::nullopt;
  const absl::string_view version = traceparent.substr(0, 2);
  const absl::string_view trace_id = traceparent.substr(kTraceIdBegin, kTraceIdSize);
  const bool has_form = IsHex(version) && version != "ff" && traceparent[2] == '-' &&
                        IsId(trace_id) && traceparent[kParentIdBegin - 1] == '-' &&
                        IsId(traceparent.substr(kParentIdBegin, kParentIdSize)) &&
                        traceparent[kFlagsBegin - 1] == '-' &&
                        IsHex(traceparent.substr(kFlagsBegin, 2));
  const bool has_size =
      traceparent.size() == kSize || (version != "00" && traceparent[kSize] == '-');
  if (!has_form || !has_size) return std::nullopt;
  return TraceContext{.traceparent = std::string(traceparent), .trace_id = std::string(trace_id)};
}

}  // namespace tidal::server
