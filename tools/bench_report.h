// Numbers of repeated measurements, as a table for people and JSON for programs.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tidal {

// Of repeated measurements: nearest ranks.
struct Spread {
  double min = 0;
  double p10 = 0;
  double median = 0;
  double p90 = 0;
  double max = 0;
};

// Of at least one value.
Spread SpreadOf(std::vector<double> values);

struct DecodeResult {
  std::string method;  // "full", "tidal" or "projections"
  int32_t num_streams = 0;
  int32_t num_context_tokens = 0;  // at the first measured step
  int32_t token_budget = 0;        // 0 for full
  Spread step_ms;
  Spread tokens_per_second;  // of all streams together
  double attended_share = 1;
  // Bytes that a step in the middle must read: weights once, and K and V of what is attended.
  double step_bytes = 0;
  // What those bytes take at the read bandwidth measured in the same run.
  double floor_ms = 0;
};

struct PrefillResult {
  int32_t num_prompt_tokens = 0;
  int32_t chunk_size = 0;
  Spread seconds;
  Spread tokens_per_second;
};

// One layer's attention alone.
struct AttentionResult {
  std::string kind;  // "full", "select", "sparse" or "prefill"
  int32_t num_streams = 0;
  int32_t num_context_tokens = 0;
  int32_t token_budget = 0;  // 0 for full and prefill
  Spread layer_us;
  double layer_bytes = 0;  // of K and V that it must read
  double floor_us = 0;     // those bytes at the read bandwidth; 0 for prefill
  double layer_flops = 0;  // of prefill's two products
};

nlohmann::json ToJson(const DecodeResult& result);
nlohmann::json ToJson(const PrefillResult& result);
nlohmann::json ToJson(const AttentionResult& result);

void PrintTable(const std::vector<DecodeResult>& results, std::ostream* out);
void PrintTable(const std::vector<PrefillResult>& results, std::ostream* out);
void PrintTable(const std::vector<AttentionResult>& results, std::ostream* out);

}  // namespace tidal
