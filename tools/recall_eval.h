// How well neighbouring layers agree on what matters: for each pair of layers, the share of the
// later one's best positions, and of its attention, that the earlier one's selection covers. Layers
// see what full attention computes, so that errors do not add up (the paper's spatial coherence).
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/backend/attention.h"
#include "engine/model_loader.h"

namespace tidal {

// A prompt, and the tokens of its right answer, which are decoded one by one.
struct RecallPrompt {
  std::vector<int32_t> prompt_token_ids;
  std::vector<int32_t> answer_token_ids;
};

struct RecallResult {
  int32_t token_budget = 0;
  int64_t num_decoded_tokens = 0;
  bool has_mass = false;  // whether the device tells attention probabilities
  // [selecting layer][attending layer >= it]: means over tokens and sets of selections. The
  // diagonal of `positions` is 1, that of `mass` what a selection of the layer's own would cover.
  std::vector<std::vector<double>> positions;  // share of the attending layer's top positions
  std::vector<std::vector<double>> mass;       // share of its attention, over its heads

  int32_t num_layers() const { return static_cast<int32_t>(positions.size()); }

  // What an attending layer loses by a selection of another one in place of its own, 0..1: of its
  // attention where that is known, else of its top positions.
  double Loss(int32_t selecting_layer, int32_t attending_layer) const;
};

// The prompts are longer than the selection's budget. `on_progress` hears the number of prompts
// done. RESOURCE_EXHAUSTED where a prompt does not fit the KV cache.
absl::StatusOr<RecallResult> MeasureRecall(ServingModel* model,
                                           const std::vector<RecallPrompt>& prompts,
                                           const Selection& selection,
                                           const std::function<void(int64_t)>& on_progress);

nlohmann::json ToJson(const RecallResult& result);
// A row for each selecting layer, a column for each attending one, in per cent.
void PrintRecallTables(const RecallResult& result, std::ostream* out);
// A line for each selecting layer over the attending layers behind it; positions, and mass where it
// is known.
std::string RecallPlotSvg(const RecallResult& result);

}  // namespace tidal
