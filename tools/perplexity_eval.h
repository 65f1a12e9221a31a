// Perplexity of a text under sparse decoding: its tokens are decoded one by one, each with what the
// method before it left in the cache, and the model's probability of the next one is counted.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model_loader.h"
#include "tools/eval_method.h"

namespace tidal {

struct PerplexityOptions {
  std::vector<int32_t> contexts;  // tokens that are prefilled before the first decoded one
  int32_t num_tokens = 256;       // that are decoded, and predicted
  std::vector<int32_t> token_budgets;
  std::vector<EvalMethod> methods;
  Selection selection;  // but for the budget
};

struct PerplexityResult {
  std::string method;
  int32_t num_context_tokens = 0;
  int32_t token_budget = 0;  // 0 where the method has none
  int32_t num_tokens = 0;
  double perplexity = 0;  // exp of the mean negative log probability
};

// `token_ids` are the text's. INVALID_ARGUMENT where it is shorter than the longest context and the
// tokens after it. `on_progress` hears the number of results there are.
absl::StatusOr<std::vector<PerplexityResult>> MeasurePerplexity(
    ServingModel* model, const std::vector<int32_t>& token_ids, const PerplexityOptions& options,
    const std::function<void(int64_t num_done)>& on_progress);

nlohmann::json ToJson(const PerplexityResult& result);

void PrintTable(const std::vector<PerplexityResult>& results, std::ostream* out);

}  // namespace tidal
