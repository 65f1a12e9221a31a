// tidal-eval's flags, checked, as what its commands take. INVALID_ARGUMENT names flag, value and
// limit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model_loader.h"
#include "tools/eval_method.h"
#include "tools/needle_eval.h"

ABSL_DECLARE_FLAG(std::string, model_path);
ABSL_DECLARE_FLAG(std::vector<std::string>, contexts);
ABSL_DECLARE_FLAG(std::vector<std::string>, token_budgets);
ABSL_DECLARE_FLAG(int32_t, token_budget);
ABSL_DECLARE_FLAG(int32_t, max_dense_layers);
ABSL_DECLARE_FLAG(int32_t, plans_of_each_size);
ABSL_DECLARE_FLAG(std::string, out);
ABSL_DECLARE_FLAG(uint32_t, seed);
ABSL_DECLARE_FLAG(std::string, haystack);
ABSL_DECLARE_FLAG(std::string, text_file);
ABSL_DECLARE_FLAG(int32_t, num_tokens);

namespace tidal {

inline constexpr int32_t kMaxContext = 1 << 24;  // tokens

absl::Status CheckFlag(const char* flag, int32_t value, int32_t min, int32_t max);

// NOT_FOUND where it cannot be read.
absl::StatusOr<std::string> ReadTextFile(const char* flag, const std::string& path);
// UNAVAILABLE where it cannot be written.
absl::Status WriteTextFile(const std::string& path, const std::string& text);
// --out, made where it does not exist.
absl::StatusOr<std::string> OutDirectory();

// The checkpoint of --model_path, with its tokenizer, for requests of at most `max_tokens` tokens.
absl::StatusOr<ServingModel> LoadEvalModel(int32_t max_tokens, size_t max_running_requests);

absl::StatusOr<std::vector<EvalMethod>> MethodsFromFlags(const ServingModel& model);

// But for the budget; `budgets` are checked to hold what is always kept.
absl::StatusOr<Selection> SelectionFromFlags(const ModelShape& shape,
                                             const std::vector<int32_t>& budgets);

// But for methods and selection, which need the model.
absl::StatusOr<NeedleGrid> NeedleGridFromFlags();

// Tokens that a prompt of the grid and its answer may have together, with room for tokenizers that
// count otherwise inside of a text.
int32_t MaxTokens(const NeedleGrid& grid);

}  // namespace tidal
