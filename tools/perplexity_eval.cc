#include "tools/perplexity_eval.h"

#include <algorithm>
#include <cmath>
#include <ostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/backend/status_macros.h"
#include "tools/eval_sequence.h"

namespace tidal {
namespace {

// -log softmax(logits)[token_id].
double NegativeLogProbability(const std::vector<float>& logits, int32_t token_id) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum) - logits[static_cast<size_t>(token_id)];
}

}  // namespace

absl::StatusOr<std::vector<PerplexityResult>> MeasurePerplexity(
    ServingModel* model, const std::vector<int32_t>& token_ids, const PerplexityOptions& options,
    const std::function<void(int64_t num_done)>& on_progress) {
  std::vector<PerplexityResult> results;
  EvalSequence sequence(model);
  for (const int32_t context : options.contexts) {
    const int64_t num_needed = int64_t{context} + options.num_tokens + 1;
    if (num_needed > static_cast<int64_t>(token_ids.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the text has ", token_ids.size(), " tokens; a context of ", context, " and ",
          options.num_tokens, " tokens to be predicted after its next one need ", num_needed));
    }
    TIDAL_RETURN_IF_ERROR(
        sequence.Prefill(absl::MakeConstSpan(token_ids).first(static_cast<size_t>(context))));
    for (const EvalMethod& method : options.methods) {
      const std::vector<int32_t> budgets =
          method.has_budget() ? options.token_budgets : std::vector<int32_t>{0};
      for (const int32_t budget : budgets) {
        Selection selection = options.selection;
        selection.token_budget = budget;
        double sum = 0;
        std::vector<float> logits;
        for (int32_t i = 0; i < options.num_tokens; ++i) {
          const auto position = static_cast<size_t>(context) + static_cast<size_t>(i);
          TIDAL_RETURN_IF_ERROR(sequence.Decode(token_ids[position], static_cast<int32_t>(position),
                                                method.plan, method.mode, selection, &logits));
          sum += NegativeLogProbability(logits, token_ids[position + 1]);
        }
        results.push_back({.method = method.name,
                           .num_context_tokens = context,
                           .token_budget = budget,
                           .num_tokens = options.num_tokens,
                           .perplexity = std::exp(sum / options.num_tokens)});
        on_progress(static_cast<int64_t>(results.size()));
      }
    }
  }
  return results;
}

nlohmann::json ToJson(const PerplexityResult& result) {
  return {{"method", result.method},
          {"context", result.num_context_tokens},
          {"token_budget", result.token_budget},
          {"tokens", result.num_tokens},
          {"perplexity", result.perplexity}};
}

void PrintTable(const std::vector<PerplexityResult>& results, std::ostream* out) {
  *out << absl::StreamFormat("%9s  %-32s%8s%8s%12s\n", "context", "method", "budget", "tokens",
                             "perplexity");
  for (const PerplexityResult& result : results) {
    const std::string budget =
        result.token_budget == 0 ? std::string("-") : absl::StrCat(result.token_budget);
    *out << absl::StreamFormat("%9d  %-32s%8s%8d%12.4f\n", result.num_context_tokens, result.method,
                               budget, result.num_tokens, result.perplexity);
  }
}

}  // namespace tidal
