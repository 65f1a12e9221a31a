#include "tools/bench_report.h"

#include <algorithm>
#include <cmath>
#include <ostream>

#include "absl/strings/str_format.h"

namespace tidal {
namespace {

nlohmann::json ToJson(const Spread& spread) {
  return {{"min", spread.min},
          {"p10", spread.p10},
          {"median", spread.median},
          {"p90", spread.p90},
          {"max", spread.max}};
}

// "  0.95" of the floor, or blanks where there is none.
std::string Ratio(double floor, double measured) {
  return floor > 0 ? absl::StrFormat("%5.1f%%", 100 * floor / measured) : "      ";
}

}  // namespace

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(std::lround(share * static_cast<double>(values.size() - 1)))];
  };
  return {.min = values.front(),
          .p10 = at(0.1),
          .median = at(0.5),
          .p90 = at(0.9),
          .max = values.back()};
}

nlohmann::json ToJson(const DecodeResult& result) {
  return {{"method", result.method},
          {"streams", result.num_streams},
          {"context_tokens", result.num_context_tokens},
          {"token_budget", result.token_budget},
          {"step_ms", ToJson(result.step_ms)},
          {"tokens_per_second", ToJson(result.tokens_per_second)},
          {"attended_share", result.attended_share},
          {"step_bytes", result.step_bytes},
          {"floor_ms", result.floor_ms},
          {"floor_share", result.floor_ms / result.step_ms.median}};
}

nlohmann::json ToJson(const PrefillResult& result) {
  return {{"prompt_tokens", result.num_prompt_tokens},
          {"chunk_size", result.chunk_size},
          {"seconds", ToJson(result.seconds)},
          {"tokens_per_second", ToJson(result.tokens_per_second)}};
}

nlohmann::json ToJson(const AttentionResult& result) {
  return {{"kind", result.kind},
          {"streams", result.num_streams},
          {"context_tokens", result.num_context_tokens},
          {"token_budget", result.token_budget},
          {"layer_us", ToJson(result.layer_us)},
          {"layer_bytes", result.layer_bytes},
          {"floor_us", result.floor_us},
          {"layer_flops", result.layer_flops}};
}

void PrintTable(const std::vector<DecodeResult>& results, std::ostream* out) {
  *out << absl::StreamFormat("%-11s %8s %7s %6s %8s   %26s %9s %9s %8s %7s\n", "method", "context",
                             "streams", "budget", "attended", "ms a step (p10 median p90)",
                             "tokens/s", "GB a step", "floor ms", "floor");
  for (const DecodeResult& result : results) {
    *out << absl::StreamFormat(
        "%-11s %8d %7d %6d %7.1f%%   %8.3f %8.3f %8.3f %9.1f %9.3f %8.3f  %s\n", result.method,
        result.num_context_tokens, result.num_streams, result.token_budget,
        100 * result.attended_share, result.step_ms.p10, result.step_ms.median, result.step_ms.p90,
        result.tokens_per_second.median, 1e-9 * result.step_bytes, result.floor_ms,
        Ratio(result.floor_ms, result.step_ms.median));
  }
}

void PrintTable(const std::vector<PrefillResult>& results, std::ostream* out) {
  *out << absl::StreamFormat("%8s %8s   %26s %12s\n", "prompt", "chunk", "seconds (p10 median p90)",
                             "tokens/s");
  for (const PrefillResult& result : results) {
    *out << absl::StreamFormat("%8d %8d   %8.3f %8.3f %8.3f %12.0f\n", result.num_prompt_tokens,
                               result.chunk_size, result.seconds.p10, result.seconds.median,
                               result.seconds.p90, result.tokens_per_second.median);
  }
}

void PrintTable(const std::vector<AttentionResult>& results, std::ostream* out) {
  *out << absl::StreamFormat("%-8s %8s %7s %6s   %29s %9s %8s %7s %9s\n", "kind", "context",
                             "streams", "budget", "us a layer (p10 median p90)", "GB/s", "floor us",
                             "floor", "TFLOP/s");
  for (const AttentionResult& result : results) {
    const double seconds = 1e-6 * result.layer_us.median;
    *out << absl::StreamFormat("%-8s %8d %7d %6d   %9.2f %9.2f %9.2f %9.1f %8.2f  %s %9.1f\n",
                               result.kind, result.num_context_tokens, result.num_streams,
                               result.token_budget, result.layer_us.p10, result.layer_us.median,
                               result.layer_us.p90, 1e-9 * result.layer_bytes / seconds,
                               result.floor_us, Ratio(result.floor_us, result.layer_us.median),
                               1e-12 * result.layer_flops / seconds);
  }
}

}  // namespace tidal
