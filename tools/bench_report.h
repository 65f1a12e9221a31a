// Numbers of repeated measurements, as a table for people and JSON for programs.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tidal {

struct Spread {
  double min = 0;
  double median = 0;
  double max = 0;
};

// Of at least one value.
Spread SpreadOf(std::vector<double> values);

struct DecodeResult {
  std::string method;  // "full" or "tidal"
  int32_t num_streams = 0;
  int32_t num_context_tokens = 0;  // at the first measured step
  int32_t token_budget = 0;        // 0 for full
  Spread step_ms;
  Spread tokens_per_second;  // of all streams together
  double attended_share = 1;
};

struct PrefillResult {
  int32_t num_prompt_tokens = 0;
  int32_t chunk_size = 0;
  Spread seconds;
  Spread tokens_per_second;
};

nlohmann::json ToJson(const DecodeResult& result);
nlohmann::json ToJson(const PrefillResult& result);

void PrintTable(const std::vector<DecodeResult>& results, std::ostream* out);
void PrintTable(const std::vector<PrefillResult>& results, std::ostream* out);

}  // namespace tidal
