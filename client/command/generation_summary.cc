#include "client/command/generation_summary.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/command/names.h"

namespace tidal::client {
namespace {

namespace v1 = inference::v1;

std::string FinishText(v1::FinishReason reason, const v1::MatchedStop& stop) {
  std::string text = FinishReasonName(reason);
  if (stop.has_text()) absl::StrAppend(&text, " \"", absl::Utf8SafeCEscape(stop.text()), "\"");
  if (stop.has_token_id()) absl::StrAppend(&text, " (token ", stop.token_id(), ")");
  return text;
}

std::string AttentionText(const v1::EffectiveAttention& attention, const v1::Usage& usage) {
  std::string text = AttentionModeName(attention.mode());
  if (attention.token_budget() > 0) {
    absl::StrAppend(&text, ", token budget ", attention.token_budget());
  }
  if (const auto share = AttendedShare(usage)) {
    absl::StrAppendFormat(&text, ", attended share %.2f %% (%d of %d)", 100 * *share,
                          usage.attended_tokens(), usage.available_tokens());
  }
  return text;
}

}  // namespace

std::optional<double> AttendedShare(const v1::Usage& usage) {
  if (usage.available_tokens() <= 0) return std::nullopt;
  return static_cast<double>(usage.attended_tokens()) /
         static_cast<double>(usage.available_tokens());
}

std::optional<double> DecodeTokensPerSecond(const v1::Usage& usage, const v1::Timings& timings) {
  if (usage.generated_tokens() < 2 || timings.decode_seconds() <= 0) return std::nullopt;
  return (usage.generated_tokens() - 1) / timings.decode_seconds();
}

std::string SummaryText(const v1::Usage& usage, const v1::Timings& timings,
                        const v1::EffectiveAttention& attention, v1::FinishReason finish_reason,
                        const v1::MatchedStop& matched_stop) {
  std::string text;
  const auto add_line = [&text](const char* name, absl::string_view value) {
    absl::StrAppendFormat(&text, "%-21s%s\n", name, value);
  };
  add_line("prompt tokens", absl::StrCat(usage.prompt_tokens(), " (", usage.cached_prompt_tokens(),
                                         " from the cache)"));
  add_line("generated tokens", absl::StrCat(usage.generated_tokens()));
  add_line("time to first token", absl::StrFormat("%.3f s", timings.time_to_first_token_seconds()));
  const auto rate = DecodeTokensPerSecond(usage, timings);
  add_line("decoding", rate.has_value() ? absl::StrFormat("%.1f tokens/s", *rate) : "-");
  add_line("attention", AttentionText(attention, usage));
  add_line("finish reason", FinishText(finish_reason, matched_stop));
  return text;
}

}  // namespace tidal::client
