#include "tools/bench_report.h"

#include <algorithm>
#include <ostream>

#include "absl/strings/str_format.h"

namespace tidal {
namespace {

nlohmann::json ToJson(const Spread& spread) {
  return {{"min", spread.min}, {"median", spread.median}, {"max", spread.max}};
}

}  // namespace

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values.front(), values[values.size() / 2], values.back()};
}

nlohmann::json ToJson(const DecodeResult& result) {
  return {{"method", result.method},
          {"streams", result.num_streams},
          {"context_tokens", result.num_context_tokens},
          {"token_budget", result.token_budget},
          {"step_ms", ToJson(result.step_ms)},
          {"tokens_per_second", ToJson(result.tokens_per_second)},
          {"attended_share", result.attended_share}};
}

nlohmann::json ToJson(const PrefillResult& result) {
  return {{"prompt_tokens", result.num_prompt_tokens},
          {"chunk_size", result.chunk_size},
          {"seconds", ToJson(result.seconds)},
          {"tokens_per_second", ToJson(result.tokens_per_second)}};
}

void PrintTable(const std::vector<DecodeResult>& results, std::ostream* out) {
  *out << absl::StreamFormat("%-7s %8s %8s %7s %9s   %26s   %26s\n", "method", "context", "streams",
                             "budget", "attended", "ms a step (min med max)",
                             "tokens/s (min med max)");
  for (const DecodeResult& result : results) {
    *out << absl::StreamFormat("%-7s %8d %8d %7d %8.1f%%   %8.2f %8.2f %8.2f   %8.1f %8.1f %8.1f\n",
                               result.method, result.num_context_tokens, result.num_streams,
                               result.token_budget, 100 * result.attended_share, result.step_ms.min,
                               result.step_ms.median, result.step_ms.max,
                               result.tokens_per_second.min, result.tokens_per_second.median,
                               result.tokens_per_second.max);
  }
}

void PrintTable(const std::vector<PrefillResult>& results, std::ostream* out) {
  *out << absl::StreamFormat("%8s %8s   %26s   %29s\n", "prompt", "chunk", "seconds (min med max)",
                             "tokens/s (min med max)");
  for (const PrefillResult& result : results) {
    *out << absl::StreamFormat("%8d %8d   %8.2f %8.2f %8.2f   %9.0f %9.0f %9.0f\n",
                               result.num_prompt_tokens, result.chunk_size, result.seconds.min,
                               result.seconds.median, result.seconds.max,
                               result.tokens_per_second.min, result.tokens_per_second.median,
                               result.tokens_per_second.max);
  }
}

}  // namespace tidal
